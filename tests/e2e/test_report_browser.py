"""The report's page in a headless Chromium: no error, every plot to be seen, nothing wider than the window."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.report.page import html
from benchmarks.report.plots import plots
from benchmarks.report.stored import Source, Stored, stored
from tests import results
from tests.browser import CHROMIUM, chromium

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH"),
]

SEEN = """[...document.querySelectorAll("section.plot")].map(section => {
    const shown = [...section.querySelectorAll("svg[role=img]")].filter(one => one.getBoundingClientRect().width > 0);
    const size = shown[0].getBoundingClientRect();
    return {name: section.id, drawings: shown.length, width: size.width, height: size.height, right: size.right};
})"""
CUT = """[...document.querySelectorAll("section.plot svg")].filter(one => one.getBoundingClientRect().width > 0)
    .flatMap(svg => [...svg.querySelectorAll("text")].filter(text => {
        const inner = text.getBoundingClientRect(), outer = svg.getBoundingClientRect();
        return inner.left < outer.left - 2 || inner.right > outer.right + 2;
    }).map(text => text.textContent))"""
SMALLEST = """Math.min(...[...document.querySelectorAll("section.plot svg text")].map(text => {
    const svg = text.ownerSVGElement.getBoundingClientRect();
    const size = parseFloat(getComputedStyle(text).fontSize);
    return svg.width ? size * svg.width / text.ownerSVGElement.viewBox.baseVal.width : 99;
}))"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of everything, one of nothing, and one of a machine with two engines beside another."""
    folder = tmp_path_factory.mktemp("report")
    a100 = {**results.GPU, "gpu": "NVIDIA A100-SXM4-80GB"}
    machines = [
        Source(name, replace(found, environment=environment, options={"engine": engine}))
        for name, found in (("load", results.load()), ("accuracy", results.accuracy()), ("padding", results.batching()))
        for environment, engine in ((a100, "tensorrt"), (a100, "onnxruntime-cpu"), (results.CPU, "onnxruntime-cpu"))
    ]
    made = {"all": stored(results.write_all(folder / "results")), "none": Stored([]), "machines": Stored(machines)}
    for name, known in made.items():
        (folder / f"{name}.html").write_text(html(known, plots(known)))
    return {name: folder / f"{name}.html" for name in made}


async def test_the_page_is_read_at_every_width(pages: dict[str, Path]):
    async with chromium() as page:
        for width in (1280, 390):
            await page.open(pages["all"], width)
            assert page.said == []
            assert await page.value("window.innerWidth") == width
            assert await page.value("document.documentElement.scrollWidth") <= width
            seen = await page.value(SEEN)
            assert [plot["name"] for plot in seen] == [
                "peers", "coldstart", "latency", "load", "padding", "accuracy", "published",
            ]  # fmt: skip
            for plot in seen:
                assert plot["drawings"] == 1, plot  # the other is for another width
                assert plot["width"] > 0.75 * min(width, 1120) and plot["height"] > 80, plot
                assert plot["right"] <= width, plot
            assert await page.value(CUT) == []
            assert await page.value(SMALLEST) >= 10
            # Tables open, the page is still no wider: they scroll in their own boxes.
            await page.value("document.querySelectorAll('details').forEach(one => one.open = true)")
            assert await page.value("document.documentElement.scrollWidth") <= width


async def test_names_of_machines_have_room(pages: dict[str, Path]):
    async with chromium() as page:
        for width in (1280, 390):
            await page.open(pages["machines"], width)
            assert await page.value(CUT) == []
            assert await page.value(SMALLEST) >= 10
            assert await page.value("document.documentElement.scrollWidth") <= width


async def test_the_page_follows_dark_mode(pages: dict[str, Path]):
    inks = {}
    async with chromium() as page:
        for scheme in ("light", "dark"):
            await page.open(pages["all"], 1280, scheme=scheme)
            ink = "getComputedStyle(document.querySelector('#load svg.wide text')).fill"
            inks[scheme] = await page.value(f"[getComputedStyle(document.body).backgroundColor, {ink}]")
    assert inks["light"][0] != inks["dark"][0]
    assert inks["light"][1] != inks["dark"][1]


async def test_a_page_without_figures_names_the_commands(pages: dict[str, Path]):
    async with chromium() as page:
        await page.open(pages["none"], 390)
        assert page.said == []
        assert await page.value("document.querySelectorAll('#absent li code').length") == 7
        assert await page.value("document.documentElement.scrollWidth") <= 390


async def test_an_error_on_a_page_is_noticed(tmp_path: Path):
    (tmp_path / "wrong.html").write_text("<script>console.error('so'); undefined.x</script><img src='none.png'>")
    async with chromium() as page:
        await page.open(tmp_path / "wrong.html", 1280)
        await page.value("1")  # what was said on the way comes before this answer
        assert len(page.said) >= 2
