"""One file per plot. Each has `plot(known)`, which returns a Plot, or Absent with the command that measures it."""

from __future__ import annotations

from benchmarks.report.plot import Absent, Plot
from benchmarks.report.plots import accuracy, coldstart, latency, load, peers, published
from benchmarks.report.stored import Stored

_PLOTS = (peers, coldstart, latency, load, accuracy, published)


def plots(known: Stored) -> list[Plot | Absent]:
    """Every plot, in the order of the page."""
    return [module.plot(known) for module in _PLOTS]
