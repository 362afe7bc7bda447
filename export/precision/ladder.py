"""Stage 6, the precision ladder: for every target the fastest graph that passes the parity gate.

The portable fp32 graph goes through the gate first: it is what everything else is compared with, and what is left at
the end of every ladder. What was tried for each target, how far off it was, how long it took and why it was left
stands in parity.json under "ladder".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Set
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.bundle import open_bundle
from export.command.progress import stage
from export.errors import ParityFailed
from export.gate.data import read_payloads
from export.gate.limits import GateLimits
from export.gate.reply import check_reply
from export.int8.ladder import climb_int8
from export.parity import Gate, worst
from export.plans.recipe import AS_BUNDLE, PlanRecipe
from export.precision.ladder_cpu import climb_cpu
from export.precision.ladder_gpu import HalfGraphs, climb_gpu
from export.precision.options import AUTO, wanted
from export.precision.trials import Climbed, Record
from export.write import add_parity

if TYPE_CHECKING:
    from export.optimize import Places
    from export.recipe import Recipe
    from export.source import Source

LADDER_HEADER = ("target", "tried", "outcome", "figures", "seconds")
_ORDER = ("cuda", "tensorrt", "cpu")
"""In which the targets are put through their ladders."""


def choose_precisions(
    recipe: Recipe, source: Source, folder: Path, files: Mapping[str, tuple[Path, Path, Places]]
) -> dict[str, Any]:
    """Put every target of the bundle in `folder` through its ladder, and return the figures of parity.json.

    `files` are what `optimize` returned for every graph. Raises ParityFailed when nothing passes that was asked for,
    and Refused for parity data or limits that do not fit the task.
    """
    asked = wanted(recipe)
    limits = GateLimits(recipe.parity_thresholds)
    limits.of(source.task, "fp32")  # an unknown name is found out before the work
    failures: list[str] = []

    def allowed(check: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `check` returns; where failing is allowed, the figures of a failure as well."""
        try:
            return check()
        except ParityFailed as failure:
            if not recipe.allow_parity_failure:
                raise
            failures.append(str(failure))
            return dict(failure.figures)

    with stage("parity") as note:
        payloads = read_payloads(recipe.parity_data, open_bundle(folder))
        gate = Gate(source, folder, payloads)
        figures = allowed(lambda: gate.check(_of_fp32(limits, source, set(asked.values()))))
        note(f"{figures[source.task.unit]} {source.task.unit}, {worst(source, figures)}")
        check_reply(source, open_bundle(folder))
        gate.add_payloads()
    records: dict[str, list[Record]] = {}
    chosen: dict[str, str] = {}
    halves = HalfGraphs(gate, source, folder, limits, recipe.allow_parity_failure)

    def climb(target: str) -> Climbed:
        if target == "cpu":
            return climb_cpu(gate, folder, files, asked[target], limits, recipe.allow_parity_failure)
        if asked[target] == "int8":
            return climb_int8(halves, folder, files, limits, recipe.allow_parity_failure)
        return climb_gpu(halves, target, asked[target])

    for target in _ORDER:
        if target not in asked or (target, asked[target]) == ("cpu", "fp32"):
            continue
        with stage(target) as note:
            found = climb(target)
            records[target], chosen[target] = found.records, found.precision
            graphs = figures["graphs"]
            figures = {**figures, **found.figures}
            figures["graphs"] = {**found.graphs, **graphs} if target == "cpu" else {**graphs, **found.graphs}
            failures += [f"{target}: {one}" for one in found.failures]
            note(found.said)
    figures["precisions"] = {"cpu": "fp32", **chosen}
    if records:
        figures["ladder"] = {target: [one.told() for one in steps] for target, steps in records.items()}
    if limits.given:
        figures["overridden"] = sorted(limits.named(source.task))
    if failures:
        figures["failed"] = failures
    said = worst(source, figures)
    figures = _without_nan(figures)
    add_parity(folder, figures, precisions=dict(figures["precisions"]), parity_failed="; ".join(failures))
    return {**figures, "worst": said}


def _of_fp32(limits: GateLimits, source: Source, asked: Set[str]) -> GateLimits:
    """What the fp32 graph is held to.

    Beside others it is their reference: limits that are meant for them do not loosen its own. Where a ladder may end at
    it, stricter ones hold.
    """
    if asked <= {"fp32"}:
        return limits
    return limits.stricter(source.task, "fp32") if AUTO in asked else GateLimits()


def plan_of(recipe: Recipe, figures: Mapping[str, Any]) -> PlanRecipe:
    """The plans to build: in the precision that was asked for, else in the one that the ladder came to.

    Where the ladder left int8, there is no graph to build plans in int8 from, and its choice is taken for them as well.
    """
    assert recipe.plan is not None
    found: Mapping[str, str] = figures["precisions"]
    lacks_int8 = recipe.plan.precision == "int8" != found.get("tensorrt")
    return (replace(recipe.plan, precision=AS_BUNDLE) if lacks_int8 else recipe.plan).of(found)


def ladder_rows(figures: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """What was tried, for the table at the end: target, step, outcome, figures, seconds."""
    return [
        (
            target,
            step["step"],
            "passed" if step["passed"] else "left",
            ", ".join(f"{name} {_shown(value)}" for name, value in step["figures"].items()) or step["reason"],
            f"{step['seconds']:.1f}",
        )
        for target, steps in figures.get("ladder", {}).items()
        for step in steps
    ]


def _shown(value: float | None) -> str:
    return "not a number" if value is None else f"{value:g}"


def _without_nan(figures: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for them."""
    if isinstance(figures, Mapping):
        return {name: _without_nan(value) for name, value in figures.items()}
    if isinstance(figures, list | tuple):
        return [_without_nan(value) for value in figures]
    return None if isinstance(figures, float) and not math.isfinite(figures) else figures
