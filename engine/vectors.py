"""Embeddings in a reply, of texts or images: what a request may ask of them, and how they are written."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.tasks import payload as check

if TYPE_CHECKING:
    from engine.tasks.base import Json
    from engine.tensors import Array, Arrays

OUTPUT = "embedding"
OPTIONS = ("normalize", "encoding_format")
FORMATS = ("float", "base64")
_NORM_FLOOR = 1e-12  # torch.nn.functional.normalize's default eps


def options(payload: dict[str, Any], normalize: bool) -> Mapping[str, Any]:
    """The options, checked; `normalize` is the default of the one of that name. Raises InvalidInput."""
    return {
        "normalize": check.boolean(payload, "normalize", normalize),
        "encoding_format": check.choice(payload, "encoding_format", FORMATS),
    }


def reply(outputs: Sequence[Arrays], options: Mapping[str, Any], single: bool) -> Json:
    """`{"embedding": ..., "dimensions": n}`, or `embeddings`; an embedding may be several vectors, one a row."""
    vectors = np.stack([row[OUTPUT] for row in outputs])
    if options["normalize"]:
        vectors = normalized(vectors)
    encoded: Any = in_base64(vectors) if options["encoding_format"] == "base64" else vectors
    key, value = ("embedding", encoded[0]) if single else ("embeddings", encoded)
    return {key: value, "dimensions": vectors.shape[-1]}


def normalized(vectors: Array) -> Array:
    """`vectors`, along the last axis, scaled to length 1; those of zeros stay."""
    scaled: Array = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), _NORM_FLOOR)
    return scaled


def in_base64(embeddings: Array) -> list[str]:
    """Each embedding as little-endian float32, row after row, which is what OpenAI's client decodes."""
    return [base64.b64encode(embedding.astype("<f4").tobytes()).decode() for embedding in embeddings]
