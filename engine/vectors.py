"""Embeddings in a reply: what a request may ask of them, and how they are written."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.tasks import payload as check

if TYPE_CHECKING:
    from engine.tasks.base import Json
    from engine.tensors import Arrays

OUTPUT = "embedding"
OPTIONS = ("normalize", "encoding_format")
_FORMATS = ("float", "base64")
_NORM_FLOOR = 1e-12  # torch.nn.functional.normalize's default eps


def options(payload: dict[str, Any], normalize: bool) -> Mapping[str, Any]:
    """The options, checked; `normalize` is the default of the one of that name. Raises InvalidInput."""
    return {
        "normalize": check.boolean(payload, "normalize", normalize),
        "encoding_format": check.choice(payload, "encoding_format", _FORMATS),
    }


def reply(outputs: Sequence[Arrays], options: Mapping[str, Any], single: bool) -> Json:
    """`{"embedding": ..., "dimensions": n}`, or `embeddings`; an embedding may be several vectors, one a row.

    In base64 it is little-endian float32, row after row.
    """
    vectors = np.stack([row[OUTPUT] for row in outputs])
    if options["normalize"]:
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), _NORM_FLOOR)
    encoded: Any = vectors
    if options["encoding_format"] == "base64":
        encoded = [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in vectors]
    key, value = ("embedding", encoded[0]) if single else ("embeddings", encoded)
    return {key: value, "dimensions": vectors.shape[-1]}
