"""Depth estimators, offline. The graph gives depths at the model's own resolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from export.errors import Refused
from export.gate.measures import Measure
from export.images import UNUSED_OF_DPT, ImageExport
from export.tasks.base import Layout

if TYPE_CHECKING:
    from pathlib import Path

    from engine.tensors import Arrays
    from export.recipe import Recipe
    from export.source import Source


class DepthEstimationExport(ImageExport):
    """DPT, Depth Anything, GLPN."""

    tag: ClassVar[str] = "depth-estimation"
    heads: ClassVar[tuple[str, ...]] = ("ForDepthEstimation",)
    may_miss: ClassVar[tuple[str, ...]] = UNUSED_OF_DPT
    # Relative to the largest depth of the image.
    measures: ClassVar[Sequence[Measure]] = (
        Measure("relative_difference", 1e-3, 0.1, column="difference", half_limit=0.02),
    )

    def processors(self, folder: Path, model: str, layout: Layout, recipe: Recipe) -> Mapping[str, Any]:
        """The image processor; the worker enlarges depths as those of DPT and GLPN do."""
        found = super().processors(folder, model, layout, recipe)
        name = type(found["processor"].processor).__name__
        if not name.startswith(("DPT", "GLPN")):
            raise Refused(f"{model}'s {name} treats depths in its own way; choose a DPT or GLPN model")
        return found

    def answer(self, source: Source, model: Any, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """The depths (batch, height, width)."""
        return {"predicted_depth": model(**values).predicted_depth}

    def compare(self, source: Source, expected: Arrays, found: Arrays) -> Sequence[float]:
        """The largest difference."""
        a, b = expected["predicted_depth"], found["predicted_depth"]
        return (float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-12)),)


TASK = DepthEstimationExport()
