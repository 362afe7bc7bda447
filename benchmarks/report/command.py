"""The command: which files, where to."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "files", nargs="*", type=Path, metavar="FILE", help="results (default: benchmarks/results/*.json)"
    )
    parser.add_argument("--out", type=Path, default=Path("build/report"), metavar="DIR", help="(default: %(default)s)")
    parser.add_argument("--png", action="store_true", help="the plots as PNG, too")


def main(args: argparse.Namespace) -> int:
    """Write the page, the plots and the Markdown. Raises RuntimeError when no file could be read."""
    from benchmarks.report import page
    from benchmarks.report.plot import Plot, png, svg
    from benchmarks.report.plots import plots
    from benchmarks.report.stored import RESULTS, committed, stored

    known = stored(args.files or committed())
    for sentence in known.unread:
        print(f"report: {sentence}", file=sys.stderr)
    if not known.sources:
        raise RuntimeError("there is no results file to read; a command with --json FILE writes one")
    # What is missing is to be measured to where the files that were named lie, not over the committed results.
    beside = args.files[0].parent if args.files else RESULTS
    made = [one if isinstance(one, Plot) else one.into(beside) for one in plots(known)]
    args.out.mkdir(parents=True, exist_ok=True)
    for one in made:
        if isinstance(one, Plot):
            (args.out / f"{one.name}.svg").write_text(svg(one))
            if args.png:
                (args.out / f"{one.name}.png").write_bytes(png(one))
        else:
            print(f"no plot of {one.name}: nothing measured it; {one.command}")
    (args.out / "report.md").write_text(page.report_markdown(known, made))
    index = args.out / "index.html"
    index.write_text(page.html(known, made))
    print(f"{index}  {index.stat().st_size / 1e3:.0f} kB, {sum(isinstance(one, Plot) for one in made)} plots")
    return 0
