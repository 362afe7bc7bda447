"""NaN and infinity in an engine's outputs: numbers that no row asked for and that JSON cannot carry."""

from __future__ import annotations

import numpy as np

from engine.tensors import Array, Arrays

_FEW = 4096  # numbers, which are looked at one by one


def rows_not_finite(outputs: Arrays, count: int) -> dict[int, str]:
    """Of the first `count` rows of a run those that hold NaN or infinity, and the first output that does.

    Costs one pass over the real numbers, and a second over an output only where the first one was suspicious.
    """
    found: dict[int, str] = {}
    for name, values in outputs.items():
        if values.dtype.kind != "f" or _all_finite(values[:count]):
            continue
        flat = values[:count].reshape(count, -1)
        for index in np.flatnonzero(~np.isfinite(flat).all(axis=1)):
            found.setdefault(int(index), name)
    return found


def _all_finite(values: Array) -> bool:
    """True means true; false means "look closer": finite numbers may add up to infinity.

    A sum is not finite when one of its terms is not, and adding makes no array of its own, which for few numbers costs
    less than to keep numpy from warning.
    """
    if values.size <= _FEW:
        return bool(np.isfinite(values).all())
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(values.sum(dtype=np.float32 if values.dtype == np.float16 else None)))
