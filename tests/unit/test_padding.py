"""Models that look at padding: with hooks a row of a batch is answered like the row alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.zoo.encoders import model as write_model
from export.padding import hide_padding
from export.tokenizer.esm import esm_tokenizer


@pytest.mark.filterwarnings("ignore")  # deprecations inside the libraries, at the import of some architectures
@pytest.mark.parametrize("architecture", ["convbert", "mobilebert"])
def test_the_other_rows_of_a_batch_change_nothing(architecture: str, tmp_path: Path):
    import transformers

    write_model(tmp_path, "feature-extraction", architecture)
    model = transformers.AutoModel.from_pretrained(tmp_path).eval()
    ids = torch.randint(5, 200, (1, 9), generator=torch.Generator().manual_seed(0))
    padded = torch.cat([ids, torch.zeros(1, 4, dtype=torch.int64)], 1)
    mask = (torch.arange(13) < 9).to(torch.int64)[None]

    def answers() -> tuple[Any, Any]:
        with torch.inference_mode():
            alone = model(input_ids=ids, attention_mask=mask[:, :9]).last_hidden_state
            return alone, model(padded, mask).last_hidden_state[:, :9]

    alone, beside_others = answers()
    assert (alone - beside_others).abs().max() > 1e-2, "transformers hides padding by itself; export/padding.py can go"
    assert hide_padding(model) is model
    again, hidden = answers()
    torch.testing.assert_close(again, alone)
    torch.testing.assert_close(hidden, alone, atol=1e-5, rtol=1e-5)


def test_a_masked_residue_weighs_the_same_beside_padding(tmp_path: Path):
    import transformers

    write_model(tmp_path, "fill-mask", "esm")
    model = hide_padding(transformers.AutoModelForMaskedLM.from_pretrained(tmp_path).eval())
    ids = torch.tensor([[0, 5, 25, 7, 2]])
    padded = torch.tensor([[0, 5, 25, 7, 2, 1, 1]])
    with torch.inference_mode():
        alone = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        beside_others = model(input_ids=padded, attention_mask=(padded != 1).to(torch.int64)).logits[:, :5]
    torch.testing.assert_close(beside_others, alone, atol=1e-5, rtol=1e-5)


def test_the_residues_tokenizer_is_that_of_transformers(tmp_path: Path):
    from benchmarks.zoo.encoders import SPECS

    slow = SPECS["esm"][1](tmp_path)
    fast = esm_tokenizer(slow)
    assert fast is not None
    assert fast.is_fast
    for text in ("MKTAYIAKQR", "M <mask>K\nB1b <eos>", "x"):
        assert fast(text)["input_ids"] == slow(text)["input_ids"]
    assert esm_tokenizer(transformers_ctc(tmp_path)) is None


def transformers_ctc(folder: Path) -> Any:
    import transformers

    (folder / "vocab.json").write_text('{"<pad>": 0, "<unk>": 1, "|": 2, "A": 3}')
    return transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
