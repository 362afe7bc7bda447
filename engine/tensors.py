"""What travels between a task and an engine. Imports no numpy at run time, so that reading a bundle does not either."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any, TypeAlias

from engine.bucket import Bucket

if TYPE_CHECKING:
    import numpy.typing as npt

# Quoted: the names exist at run time, numpy need not.
Array: TypeAlias = "npt.NDArray[Any]"
Arrays: TypeAlias = "Mapping[str, npt.NDArray[Any]]"

_GROWING = re.compile(r"(?:(\d+)\*)?length(?:\+(\d+))?")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A named input or output of a graph.

    `dtype` is numpy's name for it. `shape` holds integers for fixed axes and "batch" and "length" for dynamic ones;
    "batch" is the first, "length" may be missing. An axis that grows by several steps with each step of the length is
    written as "320*length+399": the samples that a speech model makes `length` frames of. `pad` is the value that fills
    an input behind the end of a shorter row.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    pad: int = 0

    def shape_at(self, bucket: Bucket) -> tuple[int, ...]:
        """The concrete shape of this tensor at `bucket`."""
        return tuple(_size_at(axis, bucket) for axis in self.shape)

    @property
    def length_axis(self) -> int | None:
        """Which axis grows with the length of a row; None when every row has the same shape."""
        return _length_axis(self.shape)


@lru_cache  # asked for every tensor of every run
def _length_axis(shape: tuple[int | str, ...]) -> int | None:
    return next((index for index, axis in enumerate(shape) if isinstance(axis, str) and axis != "batch"), None)


def _size_at(axis: int | str, bucket: Bucket) -> int:
    if isinstance(axis, int):
        return axis
    if axis == "batch":
        return bucket.batch
    found = _GROWING.fullmatch(axis)
    if found is None:
        raise ValueError(f"{axis!r} is no axis; known are batch, length and multiples such as 320*length+399")
    factor, offset = found.groups()
    return int(factor or 1) * bucket.length + int(offset or 0)


@dataclass(frozen=True, slots=True)
class Row:
    """One model input: tensor name -> array without the batch axis, its length, and which of the graphs it is for.

    The length counts tokens, or frames, or whatever the inputs' "length" axis does; it is 1 where none has one.
    """

    feeds: Arrays
    length: int
    graph: str = "model"


def bytes_at(specs: Sequence[TensorSpec], length: int) -> int:
    """Bytes of tensors of `specs` for one row of `length`, without padding."""
    from numpy import dtype

    bucket = Bucket(1, length)
    return sum(dtype(spec.dtype).itemsize * prod(spec.shape_at(bucket)) for spec in specs)


def fill(target: Array, rows: Sequence[Row], spec: TensorSpec) -> None:
    """Write `rows` into `target`, of the spec's shape at a bucket, in place, each padded with `spec.pad` to its length.

    Rows of the bucket beyond the last real one repeat it: a row that is all mask may turn a softmax into NaN.
    Allocates nothing.
    """
    axis = spec.length_axis
    for index in range(len(target)):
        values = rows[min(index, len(rows) - 1)].feeds[spec.name]
        if axis is None:
            target[index] = values
        elif axis == 1:
            size = len(values)
            target[index, :size] = values
            target[index, size:] = spec.pad
        else:
            size, before = values.shape[axis - 1], (slice(None),) * (axis - 1)
            target[(index, *before, slice(size))] = values
            target[(index, *before, slice(size, None))] = spec.pad
