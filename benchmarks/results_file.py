"""The one form of every results file: measurements, each a list of repeats, with what they are to be compared with.

A measurement names the floor or peer that ran in the same rounds. On a shared machine only the ratios of one run mean
something, so whatever reads results files (report, compare, the budgets) divides repeat by repeat before it compares.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.machine import machine
from benchmarks.measure import text_of, write_json

SCHEMA_VERSION = 1

Key = tuple[str, str, str, str]
"""Scenario, target, point, metric."""


@dataclass(frozen=True)
class Measurement:
    """One figure of one target at one point, as often as it was measured."""

    scenario: str
    """The command that measured it: load, coldstart, throughput ..."""
    target: str
    """Who was measured: ours, ours-int8, floor, stock, infinity, torch-eager ..."""
    point: str
    """Where: "32 clients", "batch 8, 128 tokens", "idle"."""
    metric: str
    """What: jobs_per_s, p99_ms, rss_mb ..."""
    unit: str
    better: Literal["higher", "lower"]
    repeats: tuple[float | None, ...]
    """A value a round, in the order of the rounds; None where there was none (a peer that had to be killed)."""
    floor: tuple[str, str, str] | None = None
    """Target, point and metric, of the same file and scenario, that this is a multiple of."""

    @property
    def key(self) -> Key:
        """What makes it the same measurement in another file."""
        return self.scenario, self.target, self.point, self.metric

    @property
    def median(self) -> float:
        """Of the repeats that have a value; NaN without any."""
        values = [value for value in self.repeats if value is not None]
        return statistics.median(values) if values else math.nan


@dataclass(frozen=True)
class Results:
    """What one run of one or more scenarios found."""

    environment: Mapping[str, Any]
    """See `environment`."""
    options: Mapping[str, Any]
    """What the command was told: seeds, durations, the model."""
    measurements: tuple[Measurement, ...]
    details: Mapping[str, Any] = field(default_factory=dict)
    """What does not fit a measurement, by name: stages of a boot, histograms, raw times."""

    def find(self, key: Key) -> Measurement | None:
        """The measurement of this key, or None."""
        return next((one for one in self.measurements if one.key == key), None)

    def of(self, scenario: str) -> tuple[Measurement, ...]:
        """The measurements of one scenario, in order."""
        return tuple(one for one in self.measurements if one.scenario == scenario)

    def ratios(self, one: Measurement) -> tuple[float, ...]:
        """`one` as multiples of its floor, round by round; empty when it has no floor or no round has both values."""
        floor = one.floor and self.find((one.scenario, *one.floor))
        if not floor:
            return ()
        pairs = zip(one.repeats, floor.repeats, strict=False)
        return tuple(value / base for value, base in pairs if value is not None and base)


def environment() -> dict[str, Any]:
    """GPU, driver, CPU, versions and day (`machine`), and the commit; "-dirty" behind it where files were changed."""
    return {**machine(), "commit": _commit()}


def write(path: Path, results: Results) -> None:
    """Write a results file, folders included."""
    write_json(path, {"schema_version": SCHEMA_VERSION, **asdict(results)})


def read(path: Path) -> Results:
    """Read a results file. Raises ValueError, with the fix, for one of another form."""
    try:
        found = a_mapping(json.loads(text_of(path)), "the file")
        version = found["schema_version"]
        if version != SCHEMA_VERSION:
            raise ValueError(f"{path} has schema_version {version!r}, this reads {SCHEMA_VERSION}; measure it anew")
        return Results(
            environment=_environment(a_mapping(found["environment"], "environment")),
            options=a_mapping(found["options"], "options"),
            measurements=tuple(map(_measurement, a_list(found["measurements"], "measurements"))),
            details=_details(a_mapping(found.get("details", {}), "details")),
        )
    except (KeyError, TypeError, RecursionError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a results file of this suite ({error!r}); measure it anew") from error


_LOOPS = {"counts": ("jobs", "errors"), "open_loop": ("offered_per_s", "reached_per_s")}
"""Lists of `details` that are read again -> the numbers of each entry, beside its target and its point."""


def _environment(found: Mapping[str, Any]) -> Mapping[str, Any]:
    a_mapping(found.get("versions", {}), "environment.versions")
    for target, told in a_mapping(found.get("targets", {}), "environment.targets").items():
        a_mapping(told, f"environment.targets.{target}")
    return found


def _measurement(found: Any) -> Measurement:
    one = a_mapping(found, "a measurement")
    floor = one.get("floor")
    made = Measurement(
        **{**one, "repeats": _numbers(one["repeats"]), "floor": tuple(a_list(floor, "floor")) if floor else None}
    )
    texts = (made.scenario, made.target, made.point, made.metric, made.unit, *(made.floor or ()))
    if not all(isinstance(text, str) for text in texts) or made.better not in ("higher", "lower"):
        raise TypeError(f"a measurement of {made.target} has something else for a name")
    if made.floor and len(made.floor) != 3:
        raise TypeError(f"the floor of a measurement of {made.target} is not a target, a point and a metric")
    return made


def _details(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """As it is. Raises TypeError or KeyError where what is read again, of one scenario or of several, is damaged."""
    for part in (found, *(part for part in found.values() if isinstance(part, Mapping))):
        for name, figures in _LOOPS.items():
            for entry in a_list(part.get(name) or [], name):
                if not all(isinstance(a_mapping(entry, name)[word], str) for word in ("target", "point")):
                    raise TypeError(f"{name} has something else for a name")
                for figure in figures:
                    if None in _numbers(entry[figure]):
                        raise TypeError(f"{name} has no {figure}")
        if part.get("knee") is not None:
            a_mapping(part["knee"], "knee")["point"]
        for stages in a_mapping(part.get("stages") or {}, "stages").values():
            for times in a_mapping(stages, "stages").values():
                for ms in a_mapping(times or {}, "stages").values():
                    _numbers(ms)
    return found


def a_mapping(found: Any, name: str) -> Mapping[str, Any]:
    """`found`. Raises TypeError when it is something else."""
    if not isinstance(found, Mapping):
        raise TypeError(f"{name} is no object but {_shown(found)}")
    return found


def a_list(found: Any, name: str) -> Sequence[Any]:
    """As `a_mapping`."""
    if not isinstance(found, list):
        raise TypeError(f"{name} is no list but {_shown(found)}")
    return found


def _numbers(found: Any) -> tuple[float | None, ...]:
    for value in a_list(found, "a figure's rounds"):
        if not isinstance(value, int | float | None):
            raise TypeError(f"{_shown(value)} is no number")
    return tuple(found)


def _shown(found: Any) -> str:
    return repr(found)[:40]


def earlier(before: Results, now: Mapping[str, Any], rows: Iterable[str]) -> list[dict[str, Any]]:
    """What `details["earlier"]` is to be in a file of `before` where all but these rows were measured `now`, anew.

    Each entry has an environment, and the names of the rows that were measured in it: the file's own is of the others.
    """
    known = {row: one["environment"] for one in before.details.get("earlier", []) for row in one["rows"]}
    found: list[dict[str, Any]] = []
    for row in rows:
        of = known.get(row, dict(before.environment))
        if same := next((one for one in found if one["environment"] == of), None):
            same["rows"].append(row)
        elif of != now:
            found.append({"environment": of, "rows": [row]})
    return found


def commit_of(*folders: str) -> str | None:
    """The last commit that changed these folders; behind it, where files in them were changed since, a digest of how.

    So that two states of changed files are not taken for one version: 0123456789ab-dirty-89abcdef.
    """
    last = _git("log", "-1", "--abbrev=12", "--format=%h", "--", *folders)
    if not last or not _git("status", "--porcelain", "--", *folders):
        return last
    digest = hashlib.sha256((_git("diff", "HEAD", "--binary", "--", *folders) or "").encode())
    for name in (_git("ls-files", "-z", "--others", "--exclude-standard", "--", *folders) or "").split("\0"):
        if (path := Path(name)).is_file():
            digest.update(f"{name}\0".encode() + path.read_bytes())
    return f"{last}-dirty-{digest.hexdigest()[:8]}"


def _commit() -> str | None:
    return _git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")


def _git(*arguments: str) -> str | None:
    try:
        found = subprocess.run(["git", *arguments], capture_output=True, text=True, errors="replace", check=True)
    except (OSError, subprocess.CalledProcessError):
        return None  # not a checkout: the files came without their history
    return found.stdout.strip()
