"""Models of benchmarks/zoo with the files of sentence-transformers, small enough to export in a second.

torch is imported when a model is made, so that a test that writes only JSON files starts fast.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.zoo.decoders import SPECS
from benchmarks.zoo.text import HIDDEN, POSITIONS, model_of, tiny_model

__all__ = ["HIDDEN", "POSITIONS"]  # of all of them


def _tiny(
    write: Callable[..., Path],
    folder: Path,
    *,
    pooling: str = "mean",
    normalize: bool = True,
    sentence_transformers: bool = True,
    seed: int = 0,
    **settings: Any,
) -> Path:
    write(folder, seed=seed)
    if sentence_transformers:
        write_sentence_files(folder, pooling, normalize, **settings)
    return folder


tiny_bert, tiny_roberta, tiny_mpnet = (
    partial(_tiny, partial(tiny_model, architecture=name, auto_class="AutoModel"))
    for name in ("bert", "roberta", "mpnet")
)
tiny_qwen3 = partial(_tiny, partial(model_of, spec=SPECS["qwen3"], auto_class="AutoModel"), pooling="lasttoken")
"""A decoder: causal attention, rotary positions, an end-of-text token; pools the last token."""


def lora(base: Path, folder: Path, seed: int = 1, auto_class: str = "AutoModel", **options: Any) -> Path:
    """An adapter for the model in `base`, whose weights are drawn, both matrices, so that it changes every answer."""
    import peft
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()  # its words would go to the stderr of whichever test imported it
    model = getattr(transformers, auto_class).from_pretrained(base)
    config = peft.LoraConfig(**{"r": 4, "target_modules": ["query", "value"], **options})
    adapted = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(str(folder))
    return folder


def write_json(path: Path, content: Any) -> None:
    """Write `content` to `path`, folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def edit_json(path: Path, **changes: Any) -> None:
    """Set fields of a JSON object in place."""
    write_json(path, {**json.loads(path.read_text()), **changes})


def without_processor(folder: Path) -> Path:
    """The model in `folder`, whose tokenizer then adds no special tokens, nor says which of two texts a token is of."""
    edit_json(folder / "tokenizer.json", post_processor=None)
    return folder


def write_sentence_files(
    folder: Path, pooling: str = "mean", normalize: bool = True, max_length: int = 32, **settings: Any
) -> None:
    """The files of a sentence-transformers model, in the form that most models on the Hub have."""
    kinds = ["Transformer", "Pooling", "Normalize"] if normalize else ["Transformer", "Pooling"]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    key = {"cls": "cls_token", "lasttoken": "lasttoken"}.get(pooling, f"{pooling}_tokens")
    write_json(folder / "modules.json", modules)
    write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": HIDDEN, f"pooling_mode_{key}": True})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    write_json(folder / "config_sentence_transformers.json", {"__version__": {}, **settings})
