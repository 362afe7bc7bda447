"""What got slower between two results files, and how sure that is.

Measurements are paired by scenario, target, point and metric. Where one has a floor its ratios to it are compared,
round by round, so that another day's machine counts for nothing; else its plain values. A machine so much busier that
its floor itself is far from the other file's does count, and nothing is said. A change counts when, at the given
confidence, it is larger than the least effect (see shift.py): one that is sure but small is not called worse, and
one that is large but unsure is not called unchanged. What has no value any more is worse, too, and what only one of the
files has is named.

Figures that are good near 1 are compared by their distance from it, or a loss that is ten times as large would pass for
unchanged: cosines as 1 - cosine, growth as growth - 1.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from benchmarks import arguments
from benchmarks.measure import figure, markdown, times
from benchmarks.results_file import Key, Measurement, Results, read
from benchmarks.shift import Shift, shift

WORSE, BETTER, NOISY, UNCHANGED = "worse", "better", "too noisy to say", "unchanged"
_VERDICTS = (WORSE, BETTER, NOISY, UNCHANGED)
CONFIDENCE, EFFECT = 0.95, 0.05
_FLOOR_APART = 1.5  # beyond it a busy machine does not slow worker and floor by the same
_NOT_THE_MACHINE = ("date", "commit")  # of an environment: these are meant to differ
_NOT_THE_LOAD = ("rounds", "runs")
_FROM_ONE = {
    "cosine": ("1 - ", "", 1e-6),  # what float32 sums of the same vectors differ by
    "growth": ("", " - 1", 0.01),  # what is allowed of it: less is the allocator's, not of jobs
}
"""End of a metric's name -> how its distance from 1 is written, and the least that means anything."""


@dataclass(frozen=True)
class Finding:
    """One measurement in both files; figures are after over before, so 1.1 is a tenth more."""

    key: Key
    verdict: str
    change: float
    low: float
    high: float
    basis: str
    """What was compared: "floor" (multiples of it), "value", or "from 1" (the distance from it)."""
    before: float
    """The median of what was compared."""
    after: float
    """NaN, as all of the change, where there is no value any more."""
    repeats: tuple[int, int]

    @property
    def name(self) -> str:
        """As in "load: ours, 32 clients, p99_ms"."""
        scenario, target, point, metric = self.key
        if self.basis == "from 1":
            front, behind, _ = _from_one(metric) or ("", "", 0.0)
            metric = f"{front}{metric}{behind}"
        return f"{scenario}: {target}, {point}, {metric}"

    @property
    def is_gone(self) -> bool:
        """Whether there was a value before, and none after."""
        return not self.repeats[1]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("before", type=Path, metavar="A.json", help="a results file")
    parser.add_argument("after", type=Path, metavar="B.json", help="a later one of the same scenarios")
    add_compare_arguments(parser)
    parser.add_argument("--targets", default="ours*", help="whose figures count (default: %(default)s)")
    parser.add_argument("--all", action="store_true", help="also list what did not change")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def add_compare_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say what counts as a change."""
    parser.add_argument(
        "--confidence", type=arguments.share, default=CONFIDENCE, help="of a verdict (default: %(default)s)"
    )
    parser.add_argument(
        "--effect", type=arguments.share, default=EFFECT, help="least change that counts (default: %(default)s)"
    )


def main(args: argparse.Namespace) -> int:
    """Print the findings; 1 when something got worse. Raises OSError, ValueError where the files cannot be compared."""
    before, after = read(args.before), read(args.after)
    findings = compare(before, after, confidence=args.confidence, effect=args.effect, targets=args.targets)
    if args.json:
        told = notes(before, after, args.targets)
        print(json.dumps({"notes": told, "findings": [_as_json(one) for one in findings]}, indent=1))
    else:
        options = {"confidence": args.confidence, "effect": args.effect, "targets": args.targets}
        print(report(before, after, findings, **options, all_=args.all))
    return int(any(one.verdict == WORSE for one in findings))


def compare(
    before: Results,
    after: Results,
    *,
    confidence: float = CONFIDENCE,
    effect: float = EFFECT,
    targets: str = "ours*",
) -> list[Finding]:
    """What both files measured of `targets`, the worst first; of the second also what has no value any more.

    Raises ValueError when they have nothing in common.
    """
    pairs = list(_pairs(before, after, targets))
    if not pairs:
        raise ValueError(
            f"the files have no measurement of {targets} in common: the first holds {_scenarios(before)}, the second "
            f"{_scenarios(after)}; measure both with the same command"
        )
    found = [_finding(old, new, before, after, confidence, effect) for old, new in pairs]
    return sorted(found, key=lambda one: _VERDICTS.index(one.verdict))


def _pairs(before: Results, after: Results, targets: str) -> Iterator[tuple[Measurement, Measurement]]:
    for one in before.measurements:
        same = after.find(one.key)
        if same and fnmatch(one.target, targets) and _values(one.repeats) and not _is_offered(one):
            yield one, same


def _is_offered(one: Measurement) -> bool:
    """Jobs a second of an open loop that is a share of its own day's best closed loop: a slower machine gets fewer."""
    return one.metric == "jobs_per_s" and one.point.startswith("rate ") and not one.point.endswith("/s")


def _floors_apart(old: Measurement, before: Results, after: Results) -> tuple[float, float] | None:
    """The medians of its floor in both files, where they are more than _FLOOR_APART times each other."""
    found = [one.find((old.scenario, *old.floor)) if old.floor else None for one in (before, after)]
    first, second = (one.median if one else math.nan for one in found)
    return (first, second) if max(first, second) > _FLOOR_APART * min(first, second) else None


def _values(repeats: Iterable[float | None]) -> list[float]:
    return [value for value in repeats if value is not None and not math.isnan(value)]


def _scenarios(results: Results) -> str:
    held = sorted({f"{one.scenario} of {one.target}" for one in results.measurements})
    return ", ".join(held) or "nothing"


def _finding(
    old: Measurement, new: Measurement, before: Results, after: Results, confidence: float, effect: float
) -> Finding:
    basis, better, first, second = "floor", old.better, _values(before.ratios(old)), _values(after.ratios(new))
    if not first or not second or old.floor != new.floor:
        basis, first, second = "value", _values(old.repeats), _values(new.repeats)
    if not second:
        nothing = (math.nan,) * 3
        return Finding(old.key, WORSE, *nothing, basis, statistics.median(first), math.nan, (len(first), 0))
    if basis == "value" and (distance := _from_one(old.metric)):
        basis, better = "from 1", "lower"
        sign = 1 if old.better == "lower" else -1
        first, second = ([max(distance[2], sign * (one - 1)) for one in values] for values in (first, second))
    moved = shift(first, second, confidence)
    medians = statistics.median(first), statistics.median(second)
    is_known = basis != "floor" or _floors_apart(old, before, after) is None
    word = verdict(moved, better, effect) if is_known else NOISY
    return Finding(old.key, word, *moved, basis, *medians, (len(first), len(second)))


def _from_one(metric: str) -> tuple[str, str, float] | None:
    return next((found for end, found in _FROM_ONE.items() if metric.endswith(end)), None)


def verdict(moved: Shift, better: str, effect: float) -> str:
    """Whether the change is beyond the least effect for certain, within it for certain, or neither."""
    least, most = 1 / (1 + effect), 1 + effect
    if moved.low > most or moved.high < least:
        return BETTER if (moved.low > most) == (better == "higher") else WORSE
    return UNCHANGED if least <= moved.low and moved.high <= most else NOISY


def notes(before: Results, after: Results, targets: str = "ours*") -> list[str]:
    """What differs between the files besides the figures of both, a sentence each."""
    found = []
    for what, old, new, left_out in (
        ("environment differs", before.environment, after.environment, _NOT_THE_MACHINE),
        ("options differ", before.options, after.options, _NOT_THE_LOAD),
    ):
        if differing := _differences(old, new, left_out):
            found.append(f"The {what}: {'; '.join(differing)}.")
    apart = [
        f"{old.scenario}: {', '.join(old.floor or ())} {figure(floors[0])} / {figure(floors[1])}"
        for old, new in _pairs(before, after, targets)
        if old.floor == new.floor and _values(after.ratios(new)) and (floors := _floors_apart(old, before, after))
    ]
    if apart:
        named = "; ".join(dict.fromkeys(apart))  # many figures have one floor
        found.append(
            f"The floor itself is more than {times(_FLOOR_APART)} apart: {named}; what is beside it is {NOISY}."
        )
    measured = {one.key for one in before.measurements if _values(one.repeats)}
    for which, one, theirs in (("first", before, {one.key for one in after.measurements}), ("second", after, measured)):
        if alone := list(_alone(one, theirs, targets)):
            found.append(f"Only the {which} file has {'; '.join(alone)}.")
    return found


def _alone(one: Results, theirs: Collection[Key], targets: str) -> Iterator[str]:
    """What has a value and is not among `theirs`: a target, a point of it, or some metrics at a point."""
    known = {key[:depth] for key in theirs for depth in (2, 3)}
    metrics: dict[tuple[str, ...], list[str]] = {}
    for found in one.measurements:
        if not fnmatch(found.target, targets) or not _values(found.repeats) or found.key in theirs:
            continue
        place = next((found.key[:depth] for depth in (2, 3) if found.key[:depth] not in known), found.key[:3])
        metrics.setdefault(place, []).append(found.metric)
    for place, names in metrics.items():
        scenario, *rest = (*place, *(names if place in known else []))
        yield f"{scenario}: {', '.join(rest)}"


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], left_out: Sequence[str], path: str = "") -> list[str]:
    found = []
    for name in dict.fromkeys([*old, *new]):
        a, b = old.get(name), new.get(name)
        if name in left_out or a == b:
            continue
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += _differences(a, b, left_out, f"{path}{name}.")
        else:
            found.append(f"{path}{name} {a} / {b}")
    return found


def report(
    before: Results,
    after: Results,
    findings: Sequence[Finding],
    *,
    confidence: float,
    effect: float,
    targets: str = "ours*",
    all_: bool = False,
) -> str:
    """What changed, as Markdown, and a sentence for what is worse, scenario by scenario."""
    shown = [one for one in findings if all_ or one.verdict != UNCHANGED]
    lines = [
        f"{before.environment.get('commit')} of {before.environment.get('date')} -> "
        f"{after.environment.get('commit')} of {after.environment.get('date')}: {len(findings)} measurements, each at "
        f"{confidence:.0%} confidence, changes of {effect:.0%} and less left out",
        *notes(before, after, targets),
        "",
    ]
    if shown:
        rows = [(one.verdict, one.name, *_medians(one), change(one), span(one)) for one in shown]
        lines += [markdown(("", "", "before", "after", "change", "between"), rows), "x: multiples of the floor.", ""]
    counts = [f"{sum(one.verdict == what for one in findings)} {what}" for what in _VERDICTS]
    lines.append(", ".join(counts))
    if any(one.verdict == NOISY for one in findings):
        lines.append("What is too noisy to say needs more rounds, a quieter machine, or a larger --effect.")
    for scenario in dict.fromkeys(one.key[0] for one in findings if one.verdict == WORSE):
        names = [", ".join(one.key[1:]) for one in findings if one.verdict == WORSE and one.key[0] == scenario]
        lines.append(f"WORSE {scenario}: {'; '.join(names)}")
    return "\n".join(lines)


def _medians(one: Finding) -> tuple[str, str]:
    show = times if one.basis == "floor" else figure
    return show(one.before), show(one.after)


def change(one: Finding) -> str:
    """As in +12%."""
    return "no value" if one.is_gone else _percent(one.change)


def span(one: Finding) -> str:
    """Both bounds; "-" where there are too few repeats for any."""
    if one.is_gone:
        return "-"
    if math.isinf(one.low):
        return f"- ({one.repeats[0]} and {one.repeats[1]} repeats are too few)"
    return f"{_percent(one.low)} to {_percent(one.high)}"


def _percent(factor: float) -> str:
    return f"{factor - 1:+.0%}" if factor < 3 else f"{figure(factor)}x"


def _as_json(one: Finding) -> dict[str, Any]:
    """JSON knows neither infinity nor NaN."""
    return {name: value if _is_finite(value) else None for name, value in asdict(one).items()}


def _is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
