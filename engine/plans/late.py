"""Builds that took too long here, noted beside the plans: else every boot would wait for one, and end as the first.

    PLAN_CACHE/<graph>-<digest>/NVIDIA_L4-trt10.13.0.35-auto.late      the limits in seconds that were too short

The name says what was tried: another GPU, version of TensorRT, PRECISION or graph has no such note. Its lines are those
of WAYS: the boot after one that was too slow takes the next, and after the last none is tried. A limit is what the
build had: the boot may have fetched a bundle before, or waited for another worker, and the next has more time then.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import EngineError
from engine.plans.plan_cache import folder_of, machine

if TYPE_CHECKING:
    from engine.bundle import Bundle

WAYS: tuple[tuple[str, ...], ...] = ((), ("--profiles", "length"))
"""Options of `python -m export plan`, the best plan first: a profile a bucket is a search for kernels each, and most of
a build's time; one a length is a fraction of them, and best for the largest batch."""
FIX = "raise BUILD_TIMEOUT_S, or build ahead with `python -m export plan`"


class TooLong(EngineError):
    """A build that was ended at its time limit."""


def notes_of(bundle: Bundle, cache: Path, precision: str) -> list[Path]:
    """Where such a build is noted: for every graph, for the build is one."""
    if (here := machine()) is None:
        return []
    return [folder_of(cache, bundle, graph) / f"{here}-{precision}.late" for graph in bundle.manifest.graphs]


def limit(left_s: float, timeout_s: float) -> float:
    """What a note says of a build that has `left_s` of `timeout_s` seconds: whole tenths of these, rounded up.

    Boots differ by seconds, and the next is not to try again for so little.
    """
    return timeout_s * min(ceil(10 * left_s / timeout_s), 10) / 10


def way(notes: Sequence[Path], limit_s: float) -> int:
    """Which of WAYS to try. Raises EngineError where `limit_s` or more was too short for every one."""
    limits = _limits(notes)
    for number in range(len(WAYS)):
        if number >= len(limits) or limits[number] < limit_s:
            return number
    raise EngineError(
        f"an earlier build here had as much time as this one (BUILD_TIMEOUT_S) and was ended; {FIX}; to try again as "
        f"it is remove {notes[0]}"
    )


def note(notes: Sequence[Path], number: int, limit_s: float) -> None:
    """Leave word that `limit_s` is too short for way `number`."""
    limits = [*_limits(notes)[:number], limit_s]
    with suppress(OSError):
        for path in notes:
            path.unlink(missing_ok=True)  # it may be another user's
            path.write_text("".join(f"{one}\n" for one in limits))


def _limits(notes: Sequence[Path]) -> list[float]:
    try:
        return min([float(line) for line in path.read_text().split()] for path in notes)
    except (OSError, ValueError):  # none, or none of some graph
        return []
