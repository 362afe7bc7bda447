"""What the tasks on texts refuse before anything is traced."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from export.errors import Refused
from export.tasks import export_task


@pytest.mark.parametrize(
    "task", ["feature-extraction", "text-ranking", "zero-shot-classification", "question-answering"]
)
def test_attention_to_blocks_drawn_at_random_is_refused(task: str):
    labels = {"entailment": 0, "neutral": 1, "contradiction": 2}
    config = SimpleNamespace(attention_type="block_sparse", num_labels=1, label2id=labels, id2label={0: "entailment"})
    with pytest.raises(Refused, match="m attends to blocks .* set attention_type to original_full in its config.json"):
        export_task(task).check("m", config)
    config.attention_type = "original_full"
    export_task(task).check("m", config)
