"""Embeddings in a reply, of texts or images: what a request may ask of them, and how they are written."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.tasks import payload as check

if TYPE_CHECKING:
    from engine.config import Limits
    from engine.tasks.base import Json
    from engine.tensors import Array, Arrays, TensorSpec

OUTPUT = "embedding"
OPTIONS = ("normalize", "encoding_format")
FORMATS = ("float", "base64")
LEAST_BYTES = {"float": 8, "base64": 16 / 3}
"""Of a number in a reply: in base64 exactly; as digits it hardly has so few, for most numbers have eight or nine."""
ZERO_BYTES = 4
"""Of a zero as digits; what a ReLU leaves is full of them."""
_NORM_FLOOR = 1e-12  # torch.nn.functional.normalize's default eps


def options(payload: dict[str, Any], normalize: bool) -> Mapping[str, Any]:
    """The options, checked; `normalize` is the default of the one of that name. Raises InvalidInput."""
    return {
        "normalize": check.boolean(payload, "normalize", normalize),
        "encoding_format": check.choice(payload, "encoding_format", FORMATS),
    }


def numbers_of(outputs: Sequence[TensorSpec]) -> int:
    """How many numbers the embedding of a row has by the graph's `outputs`, all its vectors together."""
    return sum(prod(size for size in spec.shape if isinstance(size, int)) for spec in outputs if spec.name == OUTPUT)


def refuse_many(
    numbers: int,
    options: Mapping[str, Any],
    limits: Limits,
    things: str,
    *,
    may_stream: bool,
    may_be_zeros: bool = False,
) -> None:
    """Raise AnswerTooLarge for more numbers than RunPod's queue takes, before they are computed.

    `things` is what to send fewer of; `may_stream`, whether the job has parts; `may_be_zeros`, whether most may.
    """
    if not limits.posts_replies:
        return
    ways = [f"send fewer {things} at once"]
    least = LEAST_BYTES[options["encoding_format"]]
    if options["encoding_format"] == "float":
        least = ZERO_BYTES if may_be_zeros else least
        ways.append("ask for `encoding_format` base64")
    if may_stream:
        ways.append("ask for a `stream`")
    check.refuse_large_answer(int(numbers * least), ", or ".join(ways))


def reply(outputs: Sequence[Arrays], options: Mapping[str, Any], single: bool) -> Json:
    """`{"embedding": ..., "dimensions": n}`, or `embeddings`; an embedding may be several vectors, one a row."""
    vectors, dimensions = encoded(outputs, options["normalize"], options["encoding_format"])
    key, value = ("embedding", vectors[0]) if single else ("embeddings", vectors)
    return {key: value, "dimensions": dimensions}


def encoded(
    outputs: Sequence[Arrays], normalize: bool, encoding_format: str, dimensions: int | None = None
) -> tuple[Any, int]:
    """The embeddings of `outputs` as one of FORMATS, and how many numbers each vector has.

    Vectors are cut to their first `dimensions` before they are normalised, as OpenAI does it.
    """
    # np.stack makes the same of them, in three times the time.
    vectors = np.array([row[OUTPUT] for row in outputs])[..., :dimensions]
    if normalize:
        vectors = normalized(vectors)
    return in_base64(vectors) if encoding_format == "base64" else vectors, vectors.shape[-1]


def normalized(vectors: Array) -> Array:
    """`vectors`, along the last axis, scaled to length 1; those of zeros stay."""
    scaled: Array = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), _NORM_FLOOR)
    return scaled


def in_base64(embeddings: Array) -> list[str]:
    """Each embedding as little-endian float32, row after row, which is what OpenAI's client decodes."""
    return [base64.b64encode(embedding.astype("<f4").tobytes()).decode() for embedding in embeddings]
