"""More models of two encoders that meet in one space: texts through BERT, XLM-RoBERTa and ALIGN's BERT."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.zoo.case import Case
from benchmarks.zoo.image_specs import EXACT, SIDE, VIT, Architecture
from benchmarks.zoo.images import write_model
from benchmarks.zoo.vocabulary import ROBERTA_TOKENS, sentence_pieces, word_piece_tokenizer

_POSITIONS = 48
_TEXT: dict[str, Any] = {
    **{name: value for name, value in VIT.items() if name not in ("image_size", "patch_size")},
    "vocab_size": 400,
    "max_position_embeddings": _POSITIONS,
}
_BERT = word_piece_tokenizer("BertTokenizerFast")
_XLM_ROBERTA = sentence_pieces("XLMRobertaTokenizerFast", ROBERTA_TOKENS, "<s>", "</s>", "</s> $B:0 </s>:0")
_CROP = ("CLIPImageProcessor", {"size": {"shortest_edge": SIDE}, "crop_size": EXACT})
_EFFICIENTNET: dict[str, Any] = {
    "image_size": 64,
    "width_coefficient": 0.25,
    "depth_coefficient": 0.3,
    "depth_divisor": 8,
    "hidden_dim": 80,
}

SPECS: Mapping[str, tuple[Callable[[Path], Any], Architecture]] = {
    "chinese_clip": (
        _BERT,
        (
            "ChineseCLIPConfig",
            {"text_config": {**_TEXT, "pad_token_id": 0}, "vision_config": VIT, "projection_dim": 24},
            "ChineseCLIPImageProcessor",
            {"size": EXACT, "crop_size": EXACT, "do_center_crop": False},
        ),
    ),
    "altclip": (
        _XLM_ROBERTA,
        (
            "AltCLIPConfig",
            {
                "text_config": {
                    **_TEXT,
                    "max_position_embeddings": _POSITIONS + 2,
                    "pad_token_id": 1,
                    "type_vocab_size": 1,
                    "project_dim": 32,
                },
                "vision_config": VIT,
                "projection_dim": 24,
            },
            *_CROP,
        ),
    ),
    "align": (
        _BERT,
        (
            "AlignConfig",
            {"text_config": {**_TEXT, "pad_token_id": 0}, "vision_config": _EFFICIENTNET, "projection_dim": 80},
            "EfficientNetImageProcessor",
            {"size": {"height": 64, "width": 64}},
        ),
    ),
}
# Architecture -> task, and what the row says.
_TASKS: Mapping[str, tuple[str, str]] = {
    "chinese_clip": ("zero-shot-image-classification", "texts through BERT"),
    "altclip": ("image-text-embedding", "texts through XLM-RoBERTa"),
    "align": ("zero-shot-image-classification", "images through EfficientNet, texts through BERT; a temperature"),
}


def model(folder: Path, task: str, architecture: str) -> Path:
    """Write a small model of `architecture` for `task` to `folder`."""
    make_tokenizer, spec = SPECS[architecture]
    write_model(folder, task, spec)
    tokenizer = make_tokenizer(folder)
    tokenizer.model_max_length = _POSITIONS
    tokenizer.save_pretrained(folder)
    return folder


MORE = [
    Case(task, name, partial(model, task=task, architecture=name), note=note) for name, (task, note) in _TASKS.items()
]
