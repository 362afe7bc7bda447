"""No page of the project says a measured figure by hand: it stands between markers, or a reason stands here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import readme

_UNITS = (
    r"ms|µs|us|microseconds?|milliseconds?|s|sec|seconds?|min|minutes?|hours?|kB|KB|MB|GB|KiB|MiB|GiB|%|percent|x|times|"
    r"(?:jobs|rows|texts|tokens|requests|samples)(?:/s| a second| per second)"
)
FIGURE = re.compile(rf"(?<![\w.,])\d[\d,.]*(?: ?(?:{_UNITS})(?![\w-])(?! \d))")
"""A number with a unit of time, size, share or speed. `1333 x 1333` is a size in pixels."""
_COLUMN = re.compile(rf"(?:^|[ ,(])(?:{_UNITS}|dollars[\w ]*|(?:jobs|rows|texts) per second)(?:$|[ ,);])")
"""The head of a table's column whose numbers have their unit there."""

ALLOWED = {
    "README.md": {
        "a round trip of 40 ms": "the default of the command's --rtt-ms",
        "after 20 s of none": "the default of its --pause",
    },
    "docs/api.md": {
        "more than 30 MB": "RunPod's limit for a request to a load-balancing endpoint",
        "not here within 60 s": "handler/web/bodies.py's limit for a body",
        "nothing of its reply for 60 s": "handler/web/routes.py's limit for a client that does not read",
        "ends after 5 minutes": "handler/web/front.py's limit for an idle connection",
        "takes at once (1 MB)": "RunPod's limit for a part of a stream",
        "RunPod takes (20 MB)": "RunPod's limit for /runsync",
    },
    "docs/audio.md": {"up to 30 s at once": "the default of --max-length for speech"},
    "docs/compatibility.md": {"more than 7 minutes": "RunPod's limit for a boot"},
    "docs/deploy.md": {
        "than 100 MB, as the": "GitHub's limit for a file",
        "within 30 minutes": "RunPod's limit for a build",
        "up to 80 GB": "RunPod's limit for an image",
        "container disk 20 GB": "a setting of the endpoint",
        "up to 20 GB before it": "a limit of handler/startup/unpack.py",
        "within the 7 minutes": "RunPod's limit for a start",
        "1800 s a GPU": "a default of --on-runpod, in a transcript that a test compares",
        "budget is 450 MB": "the limit that make test-image checks",
        "more than 16 GB": "memory of a kind of GPU",
        "default is 4 s": "RunPod's default of the queue delay",
        "after 5.5 minutes": "RunPod's limit for a request to a load-balancing endpoint",
        "no more than 30 MB": "likewise",
    },
    "docs/export.md": {"above 2 GB": "ONNX's limit for a graph with its weights"},
    "docs/large-models.md": {
        "every 50 ms": "how often memory is looked at",
        "graphs of 2 GB": "ONNX's limit for a graph with its weights",
    },
    "docs/media.md": {
        "up to 10 MB": "RunPod's limit for /run",
        "20 MB (`/runsync`)": "RunPod's limit for /runsync",
    },
    "docs/peers.md": {
        "0.1 s after the answer": "what the command does",
        "1 s a cell": "a default of --duration",
        "2 s in `latency`": "likewise",
    },
    "docs/precision.md": {
        "at least 1.05 times as fast": "the limit that a step on the CPU must keep",
        "at least 1.2 times as fast": "the limit that static int8 must keep beside dynamic",
    },
    "docs/regressions.md": {
        "At 95 %": "a confidence, not a measurement",
        "effect is 5 %": "a default",
        "sleep of 2 ms": "what the test plants",
    },
    "docs/without-a-model.md": {
        "about 0.25 s": "a constant of the retries",
        "up to 8 s": "likewise",
    },
}
"""Page -> what stands there -> why it is no measurement. Limits, defaults, constants."""


def bare(text: str) -> Iterator[tuple[str, str]]:
    """Every figure outside the markers, and the line that it is in."""
    text = re.sub(r"<!-- begin ([\w-]+) -->.*?<!-- end \1 -->", "", text, flags=re.DOTALL)
    text = re.sub(r"<!-- (figure|ratio) [^>]*-->.*?<!-- /\1 -->", "", text)
    columns: list[bool] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            columns = []
        elif not columns:
            columns = [bool(_COLUMN.search(cell)) for cell in cells]
            continue
        for cell, unit in zip(cells, columns, strict=False):
            if unit and re.fullmatch(r"[\d,.]+", cell):
                yield cell, line
        for found in FIGURE.finditer(line):
            yield found[0], line


def _allowed(page: str, figure: str, line: str) -> bool:
    """An allowed snippet of the page covers the figure where it stands."""
    covered = re.sub("|".join(map(re.escape, ALLOWED.get(page, {}))) or r"(?!)", "", line)
    return figure not in covered


@pytest.mark.parametrize("page", readme.pages(), ids=str)
def test_a_measured_figure_stands_between_markers(page: Path):
    found = [(figure, line) for figure, line in bare(page.read_text()) if not _allowed(str(page), figure, line)]
    assert found == [], (
        "take it from a results file (see benchmarks/readme.py), or say in ALLOWED why it is no measurement"
    )


@pytest.mark.parametrize("page", readme.pages(), ids=str)
def test_what_is_between_the_markers_is_what_the_files_say(page: Path):
    text = page.read_text()
    assert readme.rendered(text) == text, "run `python -m benchmarks readme`"


def test_what_is_allowed_is_a_figure():
    """Whether it is still there, or a fork has written a page of its own."""
    assert [snippet for snippets in ALLOWED.values() for snippet in snippets if not list(bare(snippet))] == []


@pytest.mark.parametrize(
    "text",
    [
        "It takes 12.4 ms.", "| what | MB |\n| --- | --- |\n| numpy | 63.7 |", "4.2x as fast", "70% of it",
        "| GPU | jobs per second |\n|---|---|\n| L4 | 146 |", "    p50 5.0 ms, p90 7.3 ms", "it serves 1,200 jobs/s",
        "twice 3 times", "it needs 178 MB",
    ],
)  # fmt: skip
def test_a_figure_is_found(text: str):
    assert list(bare(text))


@pytest.mark.parametrize(
    "text",
    [
        "1333 x 1333 pixels", "opset 17", "sm_80, sm_86", "`MAX_BATCH_ROWS=32`", "CUDA 11.8 serves it",
        "<!-- begin a -->\n12 ms\n<!-- end a -->", "<!-- figure f a/b/c/d -->12 ms<!-- /figure -->",
        "| field | default |\n| --- | --- |\n| `top_k` | 5 |",
    ],
)  # fmt: skip
def test_what_is_no_figure_is_not(text: str):
    assert list(bare(text)) == []
