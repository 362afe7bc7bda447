"""What the worker's imports cost, package by package: `python -X importtime`, read and added up.

Rule: pure; coldstart.py runs the process. Times are wall times: where threads import side by side, each one's hold what
the others took, and their indentation gets mixed up, so the column of cumulated times is close, not exact.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from benchmarks.measure import markdown

_LINE = re.compile(r"import time:\s*(\d+) \|\s*(\d+) \| ( *)(\S+)")


class Cost(NamedTuple):
    """One top-level package: ms in its own modules, ms with everything that they were the first to pull in."""

    package: str
    own_ms: float
    cumulative_ms: float
    modules: int


def costs(lines: Iterable[str]) -> list[Cost]:
    """By top-level package, the dearest first. A package inside its own imports is counted once."""
    found = [match.groups() for line in lines if (match := _LINE.match(line))]
    own: defaultdict[str, int] = defaultdict(int)
    cumulative: defaultdict[str, int] = defaultdict(int)
    modules: defaultdict[str, int] = defaultdict(int)
    parents: list[tuple[int, str]] = []  # depth and package of the imports around the current one
    for self_us, total_us, indent, module in reversed(found):  # a line stands below those of what it imported
        depth, package = len(indent), module.partition(".")[0]
        while parents and parents[-1][0] >= depth:
            parents.pop()
        own[package] += int(self_us)
        modules[package] += 1
        if all(parent != package for _, parent in parents):
            cumulative[package] += int(total_us)
        parents.append((depth, package))
    found_costs = [Cost(name, own[name] / 1e3, cumulative[name] / 1e3, modules[name]) for name in own]
    return sorted(found_costs, key=lambda cost: -cost.cumulative_ms)


def table(found: Iterable[Cost], top: int = 20) -> str:
    """The dearest `top`, as Markdown."""
    rows = [
        (cost.package, f"{cost.cumulative_ms:.1f}", f"{cost.own_ms:.1f}", str(cost.modules))
        for cost in list(found)[:top]
    ]
    return markdown(("package", "with all it pulled in, ms", "own, ms", "modules"), rows)
