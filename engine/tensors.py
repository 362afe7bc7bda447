"""What travels between a task and an engine. Imports no numpy at run time, so that reading a bundle does not either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from engine.bucket import Bucket

if TYPE_CHECKING:
    import numpy.typing as npt

# Quoted: the names exist at run time, numpy need not.
Array: TypeAlias = "npt.NDArray[Any]"
Arrays: TypeAlias = "Mapping[str, npt.NDArray[Any]]"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A named input or output of a graph.

    `dtype` is numpy's name for it. `shape` holds integers for fixed axes and "batch" and "length" for dynamic ones;
    "batch" is the first, "length" may be missing. `pad` is the value that fills an input behind the end of a shorter
    row.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    pad: int = 0

    def shape_at(self, bucket: Bucket) -> tuple[int, ...]:
        """The concrete shape of this tensor at `bucket`."""
        sizes = {"batch": bucket.batch, "length": bucket.length}
        return tuple(sizes[axis] if isinstance(axis, str) else axis for axis in self.shape)

    @property
    def length_axis(self) -> int | None:
        """Which axis grows with the length of a row; None when every row has the same shape."""
        return self.shape.index("length") if "length" in self.shape else None


@dataclass(frozen=True, slots=True)
class Row:
    """One model input: tensor name -> array without the batch axis, and its length.

    The length counts tokens, or samples, or whatever the inputs' "length" axis does; it is 1 where none has one.
    """

    feeds: Arrays
    length: int


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
