"""The report from invented results: what each plot says, what stands for one without figures, that it is one file.

And its page in a headless Chromium: no error, every plot to be seen, nothing wider than the window.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.__main__ import main
from benchmarks.report import compared, targets
from benchmarks.report.headline import cards
from benchmarks.report.losses import losses
from benchmarks.report.page import html
from benchmarks.report.plot import GRID, INK, PAPER, SOFT, Absent, Plot
from benchmarks.report.plots import accuracy, plots
from benchmarks.report.plots.load import curves
from benchmarks.report.stored import Source, Stored, stored
from benchmarks.results_file import Results, write
from benchmarks.rounds import Shape, shape
from tests import results
from tests.browser import CHROMIUM, chromium

EVERY = ["peers", "coldstart", "latency", "load", "accuracy", "published"]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    return stored(results.write_all(tmp_path_factory.mktemp("results")))


@pytest.fixture(scope="module")
def page(known: Stored) -> str:
    return html(known, plots(known))


def figures(made: list[Plot | Absent], name: str) -> list[list[str]]:
    (plot,) = [one for one in made if one.name == name]
    assert isinstance(plot, Plot)
    return [list(row) for row in plot.rows]


def test_every_plot_is_made_and_has_its_figures_as_a_table(known: Stored):
    made = plots(known)
    assert [one.name for one in made if isinstance(one, Plot)] == EVERY
    assert figures(made, "peers")[2][:3] == ["stock SDK + sentence-transformers", "12 s (24x)", "288 ms (24x)"]
    assert ["this worker", "open loop at 80% of the best closed loop", "123", "35.7", "84.7", "knee"] in figures(
        made, "load"
    )
    assert figures(made, "coldstart")[0][:3] == ["this worker, page cache warm", "26.2", "158"]
    assert figures(made, "accuracy")[1] == ["this worker, int8", "0.9871", "1.3e-02", "192", "1.9x", "500 texts"]
    assert figures(made, "latency")[0][:4] == ["minilm", "16", "1", "this worker's engine alone (Invented, 2 CPUs)"]
    assert [row[:2] for row in figures(made, "published")][:2] == [
        ["minilm, 16 tokens, batch 1", "this worker's engine alone, NVIDIA Invented 80GB"],
        ["bert-base, 128 tokens, batch 1", "this worker's engine alone, NVIDIA Invented 80GB"],
    ]


def test_another_percentile_does_not_stand_in_for_p99():
    found = results.latency(results.CPU, 1.0)
    ninety = [replace(one, metric=one.metric.replace("p99", "p90")) for one in found.measurements]
    made = plots(Stored([Source("latency-cpu", replace(found, measurements=tuple(ninety)))]))
    assert {row[5] for row in figures(made, "latency")} == {"-"}


def test_the_grid_of_a_bundle_is_beside_that_of_encoders():
    def grid(environment: dict[str, Any]) -> Source:
        rows = [
            replace(one, scenario="throughput", point=one.point.removeprefix("minilm, "))
            for one in results.latency(environment, 2.0).measurements
            if one.target == "ours" and one.point.startswith("minilm, ")
        ]
        return Source("throughput-cpu", Results(environment, {"model": "some/minilm"}, tuple(rows)))

    encoders = Source("latency-cpu", results.latency(results.CPU, 1.0))
    here = figures(plots(Stored([grid(results.CPU), encoders])), "latency")
    assert next(row[:4] for row in here if row[0] == "bundle of minilm") == [
        "bundle of minilm", "16", "1", "this worker's engine, with copies",
    ]  # fmt: skip
    assert len({tuple(row[:4]) for row in here}) == len(here)
    both = plots(Stored([grid(results.GPU), encoders]))
    assert {row[3] for row in figures(both, "latency") if row[0] == "bundle of minilm"} == {
        "this worker's engine, with copies (NVIDIA Invented 80GB)"
    }
    (latency,) = (one for one in both if isinstance(one, Plot) and one.name == "latency")
    assert "throughput-cpu, NVIDIA Invented 80GB" in latency.source
    assert "published" not in [one.name for one in both if isinstance(one, Plot)]


def test_published_figures_stand_beside_a_gpu_s_only(known: Stored):
    without = Stored([source for source in known.sources if not source.results.environment["gpu"]])
    (found,) = [one for one in plots(without) if one.name == "published"]
    assert isinstance(found, Absent)


def test_ratios_are_round_by_round_and_say_how_many_times_better_ours_is(known: Stored):
    source = compared.chosen(known)
    assert source is not None
    cold, _, many = compared.QUESTIONS[:3]
    assert {one.target: round(one.ratio, 3) for one in compared.against(source, cold)}["stock"] == 24.0
    assert {one.target: round(one.ratio, 2) for one in compared.against(source, many)}["stock"] == 4.9  # 24 ** 0.5
    rates: dict[str, list[float | None]] = {"ours": [100.0, None, 90.0], "stock": [50.0, 40.0, 30.0]}
    mine, other = (results.one("peers", name, "idle", "jobs_per_s", values) for name, values in rates.items())
    both = compared.compare(mine, other)
    assert both is not None
    assert list(both.ratios) == [2.0, 3.0]
    assert compared.compare(mine, results.one("peers", "stock", "idle", "jobs_per_s", [None, 1.0])) is None


def test_the_headline_has_five_figures_with_the_floor_last(known: Stored):
    made = cards(known)
    assert [card.title for card in made] == ["Cold start", "Idle job, p50", "32 clients", "Bulk", "Memory"]
    assert {card.lines[-1].than for card in made} == {"floor"}
    assert (made[0].lines[1].ratio, made[0].lines[1].their) == ("24x", "12 s")


def test_nothing_measured_makes_a_page_of_commands():
    nothing = Stored([])
    made = plots(nothing)
    assert [one.name for one in made if isinstance(one, Absent)] == EVERY
    page = html(nothing, made)
    assert "<svg" not in page
    for one in made:
        assert isinstance(one, Absent)
        assert one.command in page


def test_a_peer_that_had_to_be_killed_and_one_that_is_not_there_leave_no_hole():
    found = [one for one in results.peers().measurements if (one.target, one.point) != ("stock", "bulk")]
    found.append(results.one("peers", "infinity", "stop", "sigterm_to_exit_s", [None, None]))
    made = plots(Stored([Source("peers", Results(results.CPU, {}, tuple(found)))]))
    assert figures(made, "peers")[2][4] == "-"
    assert "not measured" in html(Stored([]), made)


def test_what_cannot_be_read_is_left_out_and_said(tmp_path: Path):
    write(tmp_path / "good.json", results.load())
    (tmp_path / "old.json").write_text('{"runs": {}}')
    found = stored([tmp_path / "good.json", tmp_path / "old.json", tmp_path / "none.json"])
    assert [source.name for source in found.sources] == ["good"]
    assert ["measure it anew" in found.unread[0], "none.json cannot be read" in found.unread[1]] == [True, True]
    assert "old.json is not a results file" in html(found, plots(found))


@pytest.mark.parametrize("target", ["ours-int8", "ours-fake", "ours-fake-int8"])
def test_a_worker_without_an_engine_is_no_curve_at_any_precision(target: str):
    found = [replace(one, target=target) for one in results.load().measurements]
    drawn = [curve.target for curve in curves(Stored([Source("load", Results(results.CPU, {}, tuple(found)))]))]
    assert drawn == [target] * ("fake" not in target)


@pytest.mark.parametrize("fake", ["ours-fake", "ours-fake-int8"])
def test_of_two_files_of_a_machine_the_one_with_more_of_ours_is_drawn(fake: str):
    quick = [one for one in results.load().measurements if one.point == "1 client"]
    quick += [results.one("load", fake, f"{n} clients", "p50_ms", [1.0], False) for n in range(99)]
    files = [Source("quick-cpu", Results(results.CPU, {}, tuple(quick))), Source("load-cpu", results.load())]
    assert [source.name for source in Stored(files).having("load")] == ["load-cpu"]


def test_the_page_is_whole_in_itself(page: str):
    assert re.findall(r'(?:src|href)="(?!#|data:|\d)(?!http://www\.w3\.org)([^"]+)"', page) == []
    assert "<script" not in page
    assert "@import" not in page
    assert re.findall(r"url\((?!#)", page) == []
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert {target for target in re.findall(r'href="#([^"]+)"', page) if "-" not in target} <= set(ids)


def test_every_drawing_is_there_twice_with_title_and_description(page: str):
    for name in EVERY:
        for kind in ("wide", "narrow"):
            (drawing,) = re.findall(
                rf'<svg class="{kind}"[^>]*aria-labelledby="{name}-{kind}-title.*?</svg>', page, re.DOTALL
            )
            ElementTree.fromstring(drawing)
            assert len(re.findall(r"<desc[^>]*>[^<]{20,}</desc>", drawing)) == 1
            assert "<text" in drawing  # not outlines


def test_a_target_has_one_colour_everywhere_and_no_two_share_one():
    names = [
        *results.PEERS,
        "ours",
        "ours-alone",
        "ours-handler",
        "sentence-transformers",
        "transformers-pipeline",
        "torch-eager",
        "torch-compile",
    ]
    assert len({targets.colour(name) for name in names}) == len(names)
    assert targets.colour("something new") == targets.colour("something new")


def test_a_precision_is_in_what_a_target_is_called():
    assert targets.name("ours-fp16") == "this worker, fp16"
    assert targets.name("ours-fp16-alone") == "this worker's engine alone, fp16"
    assert targets.name("torch-eager-fp16") == "PyTorch, eager, fp16"


@pytest.mark.parametrize("colour", [*targets.ALL, *targets.STAGES, INK, SOFT], ids=lambda colour: colour.light)
def test_colours_stand_out_from_the_page(colour: targets.Colour):
    assert contrast(colour.light, PAPER.light) >= 3
    assert contrast(colour.dark, PAPER.dark) >= 3
    if colour in (INK, SOFT):
        assert min(contrast(colour.light, PAPER.light), contrast(colour.dark, PAPER.dark)) >= 4.5
    assert GRID not in (INK, SOFT)


def contrast(one: str, other: str) -> float:
    """As WCAG 2 has it."""
    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_a_point_tells_its_shape():
    assert shape("bert-base, batch 8, 128 tokens") == Shape(8, 128, "bert-base")
    assert shape("batch 32, 16 tokens") == Shape(32, 16, "")
    assert shape("batch 4") == Shape(4, 0, "")
    assert shape("32 clients") is None


def test_the_worst_cosine_with_fp32_is_the_loss_and_the_floor_is_no_precision():
    found = losses([Source("a", results.accuracy())])
    assert [(one.target, round(one.loss, 6), round(one.speed or 0, 6)) for one in found] == [
        ("ours", 0.0, 1.0),
        ("ours-int8", 0.0129, 1.9),
    ]
    assert isinstance(accuracy.plot(Stored([])), Absent)


def test_the_command_writes_page_plots_and_markdown(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write(tmp_path / "accuracy-cpu.json", results.accuracy())
    assert main(["report", str(tmp_path / "accuracy-cpu.json"), "--out", str(tmp_path / "out"), "--png"]) == 0
    assert f"python -m benchmarks peers --json {tmp_path}/peers-cpu.json" in (tmp_path / "out/index.html").read_text()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "index.html",
        "report.md",
        "accuracy.svg",
        "accuracy.png",
    }
    assert (tmp_path / "out/accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert "var(--" not in (tmp_path / "out/accuracy.svg").read_text()
    report = (tmp_path / "out/report.md").read_text()
    assert "| this worker, int8 | 0.9871 | 1.3e-02 |" in re.sub(r" +", " ", report)
    assert "This measures it: `python -m benchmarks coldstart" in report
    assert "no plot of load" in capsys.readouterr().out


def test_the_command_fails_without_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "old.json").write_text(json.dumps({"rounds": []}))
    assert main(["report", str(tmp_path / "old.json"), "--out", str(tmp_path / "out")]) == 2
    assert "there is no results file to read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# In a browser

NO_BROWSER = "no chromium, chromium-browser or google-chrome on the PATH"
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


def in_a_browser(test: Any) -> Any:
    return pytest.mark.browser(pytest.mark.skipif(CHROMIUM is None, reason=NO_BROWSER)(test))


@pytest.fixture(scope="module")
def pages(page: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of everything, one of nothing, and one of a machine with two engines beside another."""
    folder = tmp_path_factory.mktemp("report")
    a100 = {**results.GPU, "gpu": "NVIDIA A100-SXM4-80GB"}
    machines = [
        Source(name, replace(found, environment=environment, options={"engine": engine}))
        for name, found in (("load", results.load()), ("accuracy", results.accuracy()))
        for environment, engine in ((a100, "tensorrt"), (a100, "onnxruntime-cpu"), (results.CPU, "onnxruntime-cpu"))
    ]
    made = {name: html(known, plots(known)) for name, known in (("none", Stored([])), ("machines", Stored(machines)))}
    for name, text in {"all": page, **made}.items():
        (folder / f"{name}.html").write_text(text)
    return {path.stem: path for path in folder.iterdir()}


@in_a_browser
async def test_the_page_is_read_at_every_width(pages: dict[str, Path]):
    async with chromium() as page:
        for width in (1280, 390):
            await page.open(pages["all"], width)
            assert page.said == []
            assert await page.value("window.innerWidth") == width
            assert await page.value("document.documentElement.scrollWidth") <= width
            seen = await page.value(SEEN)
            assert [plot["name"] for plot in seen] == EVERY
            for plot in seen:
                assert plot["drawings"] == 1, plot  # the other is for another width
                assert plot["width"] > 0.75 * min(width, 1120) and plot["height"] > 80, plot
                assert plot["right"] <= width, plot
            assert await page.value(CUT) == []
            assert await page.value(SMALLEST) >= 10
            # Tables open, the page is still no wider: they scroll in their own boxes.
            await page.value("document.querySelectorAll('details').forEach(one => one.open = true)")
            assert await page.value("document.documentElement.scrollWidth") <= width


@in_a_browser
async def test_names_of_machines_have_room(pages: dict[str, Path]):
    async with chromium() as page:
        for width in (1280, 390):
            await page.open(pages["machines"], width)
            assert await page.value(CUT) == []
            assert await page.value(SMALLEST) >= 10
            assert await page.value("document.documentElement.scrollWidth") <= width


@in_a_browser
async def test_the_page_follows_dark_mode(pages: dict[str, Path]):
    inks = {}
    async with chromium() as page:
        for scheme in ("light", "dark"):
            await page.open(pages["all"], 1280, scheme=scheme)
            ink = "getComputedStyle(document.querySelector('#load svg.wide text')).fill"
            inks[scheme] = await page.value(f"[getComputedStyle(document.body).backgroundColor, {ink}]")
    assert inks["light"][0] != inks["dark"][0]
    assert inks["light"][1] != inks["dark"][1]


@in_a_browser
async def test_a_page_without_figures_names_the_commands(pages: dict[str, Path]):
    async with chromium() as page:
        await page.open(pages["none"], 390)
        assert page.said == []
        assert await page.value("document.querySelectorAll('#absent li code').length") == len(EVERY)
        assert await page.value("document.documentElement.scrollWidth") <= 390


@in_a_browser
async def test_an_error_on_a_page_is_noticed(tmp_path: Path):
    (tmp_path / "wrong.html").write_text("<script>console.error('so'); undefined.x</script><img src='none.png'>")
    async with chromium() as page:
        await page.open(tmp_path / "wrong.html", 1280)
        await page.value("1")  # what was said on the way comes before this answer
        assert len(page.said) >= 2
