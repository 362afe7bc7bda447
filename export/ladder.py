"""Stage 6, the precision ladder: for every target the fastest graph that passes the parity gate.

The portable fp32 graph goes through the gate first: it is what everything else is compared with, and what is left at
the end of every ladder. What was tried for each target, how far off it was, how long it took and why it was left
stands in parity.json under "ladder".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.parity import Gate, worst
from export.precision_options import wanted
from export.progress import stage
from export.write import add_parity

if TYPE_CHECKING:
    from export.optimize import Places
    from export.plan_recipe import PlanRecipe
    from export.recipe import Recipe
    from export.source import Source


def choose_precisions(
    recipe: Recipe, source: Source, folder: Path, files: Mapping[str, tuple[Path, Path, Places]]
) -> dict[str, Any]:
    """Put every target of the bundle in `folder` through its ladder, and return the figures of parity.json.

    `files` are what `optimize` returned for every graph. Raises ParityFailed when nothing passes.
    """
    asked = wanted(recipe)
    threshold = recipe.parity_thresholds.get("")
    with stage("parity") as note:
        gate = Gate(source, folder)
        figures = gate.check(threshold if set(asked.values()) == {"fp32"} else None)
        add_parity(folder, figures)
        note(f"{figures[source.task.unit]} {source.task.unit}, {worst(source, figures)}")
    if asked.get("cpu") == "int8":
        with stage("int8") as note:
            fp32 = figures["graphs"]
            portable, _, places = files["model"]
            figures = _quantize(gate, folder, portable, places, threshold)
            figures["graphs"].update(fp32)
            add_parity(folder, figures)
            note(f"{figures['kept']}, {worst(source, figures)}")
    figures["worst"] = worst(source, figures)
    return figures


def plan_of(recipe: Recipe, figures: Mapping[str, Any]) -> PlanRecipe:
    """The plans to build: in the precision that the ladder came to, where it was asked."""
    assert recipe.plan is not None
    chosen = figures.get("precisions", {}).get("tensorrt", recipe.plan.precision)
    return replace(recipe.plan, precision=chosen)


def ladder_rows(figures: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """What was tried, for the table at the end: target, step, outcome, figures, seconds. Empty where nothing was."""
    return []


LADDER_HEADER = ("target", "tried", "outcome", "figures", "seconds")


def _quantize(gate: Gate, folder: Path, portable: Path, places: Any, threshold: float | None) -> dict[str, Any]:
    """The figures of the fastest int8 graph that passes the gate, with what it keeps and what was refused.

    Raises ParityFailed when none passes.
    """
    from export.precision import ROWS_TRIED, SHORTLIST, Int8, Step, search
    from export.smooth import ALPHAS
    from export.write import choose

    gate.add_samples()
    int8 = Int8(portable, folder / "work", places, gate.rows)  # odd rows first: their activations are the largest

    def attempt(step: Step) -> dict[str, Any]:
        choose(folder, "int8", int8.write(step))
        figures: dict[str, Any] = gate.check(threshold)
        return figures

    def badness(step: Step) -> float:
        choose(folder, "int8", int8.write(step))
        figure: float = gate.mean_badness(ROWS_TRIED)
        return figure

    def best_alpha() -> float:
        return min(ALPHAS, key=lambda alpha: badness(Step(alpha)))

    def ranked(alpha: float) -> Sequence[str]:
        names = int8.suffering()
        found = {name: badness(Step(alpha, (name,))) for name in names[:SHORTLIST]}
        return sorted(found, key=lambda name: found[name]) + names[SHORTLIST:]

    figures, step, refused = search(attempt, best_alpha, ranked)
    return {**figures, "kept": f"int8: {step}", "kept_in_fp32": list(step.kept), "refused": refused}
