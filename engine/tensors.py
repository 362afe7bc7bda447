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

    `dtype` is numpy's name for it. `shape` holds integers for fixed axes and "batch" and "length" for dynamic ones.
    `pad` is the value that fills an input behind the end of a shorter row.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    pad: int = 0

    def shape_at(self, bucket: Bucket) -> tuple[int, ...]:
        """The concrete shape of this tensor at `bucket`."""
        sizes = {"batch": bucket.batch, "length": bucket.length}
        return tuple(sizes[axis] if isinstance(axis, str) else axis for axis in self.shape)


@dataclass(frozen=True, slots=True)
class Row:
    """One model input: tensor name -> array without the batch axis, and its length in tokens."""

    feeds: Arrays
    length: int


def fill(target: Array, rows: Sequence[Row], spec: TensorSpec) -> None:
    """Write `rows` into `target` (batch, length, ...) in place, each padded with `spec.pad`.

    Rows of the bucket beyond the last real one repeat it: a row that is all mask may turn a softmax into NaN.
    """
    for index in range(len(target)):
        values = rows[min(index, len(rows) - 1)].feeds[spec.name]
        size = len(values)
        target[index, :size] = values
        target[index, size:] = spec.pad
