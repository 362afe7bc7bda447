"""By what answers are judged, for tasks on texts, images and sound alike: vectors, and scores of labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from engine.text.scores import FUNCTIONS
from engine.vectors import OUTPUT
from export.gate.measures import (
    NEIGHBOURS,
    SAME_BEST,
    SCORES,
    VECTORS,
    Measure,
    compare_scores,
    compare_vectors,
    same_best,
    same_neighbours,
)
from export.tasks.base import ExportTask

if TYPE_CHECKING:
    from engine.tensors import Arrays
    from export.source import Source


class VectorsExport(ExportTask):
    """A task whose graph answers with a vector a row, or several."""

    measures: ClassVar[Sequence[Measure]] = VECTORS
    measures_of_all: ClassVar[Sequence[Measure]] = (NEIGHBOURS,)
    output: ClassVar[str] = OUTPUT

    def compare(self, source: Source, expected: Arrays, found: Arrays) -> Sequence[float]:
        """Cosine, and the largest difference relative to the norm of what was expected."""
        return compare_vectors(expected[self.output], found[self.output])

    def compare_all(self, source: Source, expected: Sequence[Arrays], found: Sequence[Arrays]) -> Sequence[float]:
        """Whether the neighbours of every row are the same; of several graphs, among the rows of its own."""
        return [same_neighbours(expected, found, self.output)]


class LabelsExport(ExportTask):
    """A classifier, whose graph answers with a logit a label."""

    measures: ClassVar[Sequence[Measure]] = SCORES
    measures_of_all: ClassVar[Sequence[Measure]] = (SAME_BEST,)

    def function(self, source: Source) -> str:
        """The key of FUNCTIONS that makes scores of the logits."""
        return "softmax"

    def compare(self, source: Source, expected: Arrays, found: Arrays) -> Sequence[float]:
        """Of the scores."""
        function = FUNCTIONS[self.function(source)]
        return compare_scores(function(expected["logits"]), function(found["logits"]))

    def compare_all(self, source: Source, expected: Sequence[Arrays], found: Sequence[Arrays]) -> Sequence[float]:
        """How often the best label is the same."""
        return [same_best(expected, found, "logits")]
