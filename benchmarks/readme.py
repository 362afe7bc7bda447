"""Writes what README and docs/*.md say in figures or lists from where it comes: code, settings, committed results.

Between two markers on lines of their own stands a table:

    <!-- begin peers -->
    <!-- end peers -->

and inside a sentence a figure, or how many times better the first target is than another:

    <!-- figure peers-cpu peers/ours/idle/p50_ms -->12.4 ms<!-- /figure -->
    <!-- ratio peers-cpu peers/ours/idle/p50_ms stock -->65.2x<!-- /ratio -->

The first word is the file, benchmarks/results/peers-cpu.json, then come scenario, target, point and metric. What no
file holds (yet) becomes a sentence that says so, never an old figure.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from benchmarks import results_file
from benchmarks.exported import BUILD
from benchmarks.measure import figure, markdown, times
from benchmarks.report import compared
from benchmarks.report.stored import RESULTS, Source, Stored, committed, stored
from benchmarks.results_file import Results, environment
from engine.config import settings_table

README = Path("README.md")
DOCS = Path("docs")
NOT_MEASURED = "not measured yet"
_DEMO = RESULTS / "demo-cpu.json"


def pages() -> list[Path]:
    """README.md and every page of docs/."""
    return [README, *sorted(DOCS.glob("*.md"))]


def write(page: Path) -> None:
    """Write a page anew; a fork may have removed it."""
    if page.exists():
        page.write_text(rendered(page.read_text()))


def rendered(text: str, known: Stored | None = None) -> str:
    """`text` with all between its markers made anew. Raises ValueError for a marker without an end, or of no table."""
    known = known or stored(committed())
    text = re.sub(r"<!-- begin ([\w-]+) -->\n(.*?)(?=<!-- begin|<!-- end|\Z)", _table(known), text, flags=re.DOTALL)
    for begin, end in (("begin", "end"), ("figure", "/figure"), ("ratio", "/ratio")):
        if (begun := len(re.findall(f"<!-- {begin} ", text))) != (ended := len(re.findall(f"<!-- {end} ", text))):
            raise ValueError(
                f"{begun} markers <!-- {begin} ... --> and {ended} <!-- {end} ... -->; each needs the other"
            )
    text = re.sub(r"<!-- figure (\S+) (.+?) -->.*?<!-- /figure -->", lambda found: _figure(found, known), text)
    return re.sub(r"<!-- ratio (\S+) (\S.*?) (\S+) -->.*?<!-- /ratio -->", lambda found: _ratio(found, known), text)


def _table(known: Stored) -> Callable[[re.Match[str]], str]:
    def made(found: re.Match[str]) -> str:
        name = found[1]
        if name not in TABLES:
            raise ValueError(f"there is no table {name!r} for the marker <!-- begin {name} -->; {', '.join(TABLES)}")
        return f"<!-- begin {name} -->\n{TABLES[name](known)}\n"

    return made


def _figure(found: re.Match[str], known: Stored) -> str:
    source, key = _found(found[1], found[2], known)
    one = source.value(*key) if source else None
    return (
        f"<!-- figure {found[1]} {found[2]} -->{figure(one.median, one.unit) if one else NOT_MEASURED}<!-- /figure -->"
    )


def _ratio(found: re.Match[str], known: Stored) -> str:
    source, (scenario, target, point, metric) = _found(found[1], found[2], known)
    mine = source.value(scenario, target, point, metric) if source else None
    other = source.value(scenario, found[3], point, metric) if source else None
    both = compared.compare(mine, other) if mine else None
    text = times(both.ratio) if both else NOT_MEASURED
    return f"<!-- ratio {found[1]} {found[2]} {found[3]} -->{text}<!-- /ratio -->"


def _found(file: str, key: str, known: Stored) -> tuple[Source | None, tuple[str, str, str, str]]:
    parts = key.split("/")
    if len(parts) < 4:
        raise ValueError(f"a marker's figure is SCENARIO/TARGET/POINT/METRIC, not {key!r}")
    source = next((one for one in known.sources if one.name == file), None)
    return source, (parts[0], parts[1], "/".join(parts[2:-1]), parts[-1])


# The tables


def _peers(known: Stored) -> str:
    from benchmarks.report.plots import peers

    source = compared.chosen(known)
    answers = peers.answers(source) if source else []
    if source is None or not answers:
        return f"{NOT_MEASURED.capitalize()}: `{compared.COMMAND}`."
    table = markdown(peers.table_header(answers), peers.table_rows(source, answers), aligned=False)
    rounds = max(len(mine.repeats) for _, mine, _ in answers)
    known_of = source.results.environment
    where = f"{source.machine}, {known_of.get('date', 'no date')}, commit {known_of.get('commit') or 'not known'}"
    return f"{table}\n\nMedians of {rounds} round{'s' * (rounds > 1)} on {where}; `{RESULTS}/{source.name}.json`."


def _demo(known: Stored) -> str:
    found = next(
        (source.results.details.get("transcript") for source in known.sources if source.name == _DEMO.stem), None
    )
    if not found:
        return f"{NOT_MEASURED.capitalize()}: `python -m benchmarks readme --record-demo`."
    return "\n" + "\n".join(f"    {line}".rstrip() for line in found) + "\n"


def _made(module: str, function: str) -> Callable[[Stored], str]:
    """The table of a command with results of its own."""
    return lambda known: str(getattr(import_module(f"benchmarks.{module}"), function)())


TABLES: dict[str, Callable[[Stored], str]] = {
    "settings": lambda known: settings_table(),
    "demo": _demo,
    "peers": _peers,
    "tasks": _made("tasks", "tasks_table"),
    "architectures": _made("tasks", "architectures_table"),
    "stages": _made("tasks", "stages_table"),
    "count": _made("models", "count"),
    "models": _made("models", "exported_table"),
    "refused": _made("models", "refused_table"),
    "budgets": _made("quick", "budgets_table"),
    "large": _made("large", "table"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's option."""
    parser.add_argument(
        "--record-demo", action="store_true", help=f"first run the demo, and keep what it prints in {_DEMO}"
    )


def main(args: argparse.Namespace) -> int:
    """Rewrite the pages in place, and name those that changed. Not 0 when a marker is wrong, or a command failed."""
    if args.record_demo and not _recorded():
        return 1
    for page in pages():
        before = page.read_text()
        try:
            after = rendered(before)
        except ValueError as error:
            print(f"readme: {page}: {error}", file=sys.stderr)
            return 1
        if after != before:
            page.write_text(after)
            print(f"{page} changed")
    return 0


def _recorded() -> bool:
    """Run the demo from nothing to its end and keep its output."""
    bundle = BUILD / "recorded-demo" / "bundle"
    shutil.rmtree(bundle, ignore_errors=True)
    command = [sys.executable, "-m", "benchmarks", "demo", "--out", str(bundle)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        print(f"readme: the demo ended with exit code {done.returncode}", file=sys.stderr)
        return False
    lines = done.stdout.replace(str(bundle), str(BUILD / "demo" / "bundle")).rstrip().splitlines()
    results_file.write(_DEMO, Results(environment(), {}, (), {"transcript": lines}))
    return True
