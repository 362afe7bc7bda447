"""Builds that took too long here, noted beside the plans: else every boot would wait for one, and end as the first.

    PLAN_CACHE/<graph>-<digest>/NVIDIA_L4-trt10.13.0.35-auto.late      the limit in seconds that was too short

The name says what was tried: another GPU, version of TensorRT, PRECISION or graph has no such note.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import EngineError
from engine.plans.plan_cache import folder_of, machine

if TYPE_CHECKING:
    from engine.bundle import Bundle

FIX = "raise BUILD_TIMEOUT_S, or build ahead with `python -m export plan`"


class TooLong(EngineError):
    """A build that was ended at its time limit."""


def notes_of(bundle: Bundle, cache: Path, precision: str) -> list[Path]:
    """Where such a build is noted: for every graph, for the build is one."""
    if (here := machine()) is None:
        return []
    return [folder_of(cache, bundle, graph) / f"{here}-{precision}.late" for graph in bundle.manifest.graphs]


def refuse_again(notes: Sequence[Path], timeout_s: float) -> None:
    """Raise EngineError where `timeout_s` or more was too short before."""
    try:
        late_s = min(float(note.read_text()) for note in notes)
    except (OSError, ValueError):  # none, or none of some graph
        return
    if late_s >= timeout_s:
        raise EngineError(
            f"an earlier build here took longer than {late_s:g} s (BUILD_TIMEOUT_S) and was ended; {FIX}; to try again "
            f"as it is remove {notes[0]}"
        )


def note(notes: Sequence[Path], timeout_s: float) -> None:
    """Leave word that `timeout_s` is too short."""
    with suppress(OSError):
        for path in notes:
            path.unlink(missing_ok=True)  # it may be another user's
            path.write_text(f"{timeout_s:g}\n")
