"""What a check of the gate is held to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from export.errors import Refused
from export.gate.measures import Measure
from export.precision.options import FIRST

if TYPE_CHECKING:
    from export.tasks.base import ExportTask


@dataclass(frozen=True)
class GateLimits:
    """What a check is held to. `given` are limits that were asked for, by name; the empty name is the first measure's.

    `reserve` is the share of every other limit that must be left over, for a search that would otherwise stop at the
    edge.
    """

    given: Mapping[str, float] = field(default_factory=dict)
    reserve: float = 0.0

    def named(self, task: ExportTask) -> dict[str, float]:
        """What was asked for, by the names that stand in parity.json."""
        known = [*task.measures, *task.measures_of_all]
        names = {FIRST: known[0].key, **{measure.name: measure.key for measure in known}}
        return {names.get(name, name): limit for name, limit in self.given.items()}

    def of(self, task: ExportTask, precision: str) -> tuple[list[Measure], list[Measure]]:
        """The task's measures of rows, and of all rows together, with their limits. Raises Refused."""
        known = [*task.measures, *task.measures_of_all]
        given = self.named(task)
        if unknown := set(given) - {measure.key for measure in known}:
            raise Refused(
                f"--parity-threshold {min(unknown)}: {task.tag} has {', '.join(measure.key for measure in known)}; "
                "name one of them"
            )
        held = [
            measure.at(precision, given.get(measure.key), 0.0 if measure.key in given else self.reserve)
            for measure in known
        ]
        return held[: len(task.measures)], held[len(task.measures) :]

    def stricter(self, task: ExportTask, precision: str) -> GateLimits:
        """Without those that are looser than the task's own for `precision`."""
        own = {measure.key: measure.at(precision) for measure in (*task.measures, *task.measures_of_all)}
        given = self.named(task).items()
        return replace(self, given={key: limit for key, limit in given if own[key].passes(limit)})
