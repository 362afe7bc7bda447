"""Speech models with the true lengths of recordings as an input: what stands beside a row changes nothing in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.zoo.audio import tiny_speech

_SAMPLES, _LONGEST = 4000, 6000


@pytest.mark.parametrize("architecture", ["data2vec-audio", "wav2vec2-conformer"])
def test_convolutions_between_layers_see_no_padding(architecture: str, tmp_path: Path):
    import torch
    from transformers import AutoModelForCTC

    from export.audio import frame
    from export.speech import with_lengths

    model = AutoModelForCTC.from_pretrained(tiny_speech(tmp_path, architecture, "ForCTC")).eval()
    torch.manual_seed(0)
    rows = torch.randn(2, _LONGEST)
    rows[0, _SAMPLES:] = 0
    with torch.inference_mode():
        alone = model(rows[:1, :_SAMPLES]).logits
        module = with_lengths(model, frame(model.config)).module
        found = module(rows, torch.tensor([_SAMPLES, _LONGEST], dtype=torch.int32))["logits"]
    assert alone.shape[1] < found.shape[1]
    torch.testing.assert_close(found[:1, : alone.shape[1]], alone, atol=1e-5, rtol=1e-4)
