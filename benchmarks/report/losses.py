"""How far each precision is from fp32, by what `accuracy` measured. No matplotlib here: `recommend` asks, too."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.report.compared import compare
from benchmarks.report.stored import Source
from benchmarks.results_file import Measurement

SCENARIO = "accuracy"
_COSINE, _RATE = "min_cosine", "rows_per_s"


@dataclass(frozen=True)
class Loss:
    """The worst row of a precision, and its speed."""

    source: Source
    target: str
    point: str
    cosine: float
    """With the same row in fp32."""
    rate: Measurement | None
    """Rows a second."""
    speed: float | None
    """As a multiple of ours in fp32, the median of the rounds."""

    @property
    def loss(self) -> float:
        """1 - cosine; 0 is equal."""
        return max(0.0, 1 - self.cosine)


def losses(sources: Iterable[Source]) -> list[Loss]:
    """One for each of our precisions, in the order of the files."""
    made = []
    for source in sources:
        cosines = (one for one in source.of(SCENARIO) if one.metric == _COSINE and one.target != "floor")
        for one in (one for one in cosines if one.median == one.median):
            mine, base = (source.value(SCENARIO, target, one.point, _RATE) for target in (one.target, "ours"))
            both = compare(mine, base) if mine else None
            made.append(Loss(source, one.target, one.point, one.median, mine, both.ratio if both else None))
    return made
