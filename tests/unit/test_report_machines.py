"""A page of several machines, and of several files of one: nothing is mixed up, and nothing is missing unsaid."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.report.losses import losses
from benchmarks.report.page import html
from benchmarks.report.plot import Absent, Plot
from benchmarks.report.plots import accuracy, coldstart, latency, load, peers, published
from benchmarks.report.stored import Source, Stored
from benchmarks.results_file import Results
from tests import results
from tests.results import CPU, GPU


def on(found: Results, environment: dict[str, Any], **options: object) -> Results:
    return replace(found, environment=environment, options={**found.options, **options})


def called(found: Results, target: str) -> Results:
    return replace(
        found,
        measurements=tuple(replace(one, target=target) if one.target == "ours" else one for one in found.measurements),
    )


def stored(**files: Results) -> Stored:
    return Stored([Source(name, found) for name, found in files.items()])


def drawn(module: Any, known: Stored) -> Plot:
    plot = module.plot(known)
    assert isinstance(plot, Plot)
    return plot


L4, A40 = {**GPU, "gpu": "NVIDIA L4"}, {**GPU, "gpu": "NVIDIA A40"}


@pytest.mark.parametrize(
    ("module", "made", "where", "key"),
    [
        (coldstart, results.coldstart(), 0, 1),
        (accuracy, results.accuracy(), 0, 1),
        (load, results.load(), 0, 2),
        (latency, results.latency(GPU, 0.09), 3, 4),
    ],
    ids=["coldstart", "accuracy", "load", "latency"],
)
def test_every_row_names_its_machine_where_there_are_several(module: Any, made: Results, where: int, key: int):
    files = {"a": on(made, L4), "b": on(made, A40)}
    plot = drawn(module, Stored([Source("same name", found) for found in files.values()]))
    names = [tuple(row[:key]) for row in plot.rows]
    assert len(set(names)) == len(names)
    for name in ("NVIDIA L4", "NVIDIA A40"):
        assert sum(f"({name})" in row[where] for row in plot.rows) == len(names) / 2
    assert "NVIDIA" not in str(drawn(module, stored(a=files["a"])).rows)


def test_no_two_curves_of_one_colour_have_the_same_line():
    known = stored(
        l4=on(results.load(), L4),
        a40=on(results.load(), A40),
        cpu=on(results.load(), CPU),
        int8=called(results.load(), "ours-int8"),
    )
    found = load.curves(known)
    assert [curve.target for curve in found] == ["ours", "ours", "ours", "ours-int8"]
    assert len({curve.style for curve in found[:3]}) == 3
    assert found[3].style == found[0].style  # int8 has a colour of its own


def test_two_files_of_a_machine_are_both_drawn_where_their_targets_differ():
    known = stored(fp32=results.load(), int8=called(results.load(), "ours-int8"))
    plot = drawn(load, known)
    assert {row[0] for row in plot.rows} == {"this worker", "this worker, int8"}
    assert plot.source == "fp32, Invented, 2 CPUs; int8, Invented, 2 CPUs"
    cold = results.coldstart()
    stages = cold.details["stages"]
    other = replace(
        called(cold, "ours-int8"), details={"stages": {"ours-int8": stages["ours"], "floor": stages["floor"]}}
    )
    assert [row[0].partition(",")[0] for row in drawn(coldstart, stored(fp32=cold, int8=other)).rows] == [
        "this worker", "this worker", "floor", "floor", "this worker", "this worker",
    ]  # fmt: skip


def test_two_files_of_a_machine_are_both_drawn_where_their_points_differ():
    made = results.latency(CPU, 9.0)
    large = [replace(one, point=one.point.replace("bert-base", "bert-large")) for one in made.measurements]
    plot = drawn(latency, stored(a=made, b=replace(made, measurements=tuple(large))))
    assert [row[0] for row in plot.rows].count("minilm") == [row[0] for row in plot.rows].count("bert-large")
    assert {row[0] for row in plot.rows} == {"minilm", "bert-base", "bert-large"}
    assert "b, Invented, 2 CPUs (what is not in the file before)" in plot.source
    made = results.load()
    closed, rates = (
        replace(made, measurements=tuple(one for one in made.measurements if ("client" in one.point) is of_clients))
        for of_clients in (True, False)
    )
    parts = drawn(load, stored(closed=closed, rates=rates))
    assert {row[0] for row in parts.rows} == {"this worker (closed)", "this worker (rates)"}


def test_a_file_with_nothing_else_is_named_as_left_out():
    few = [one for one in results.load().measurements if one.point == "1 client"]
    known = stored(quick=replace(results.load(), measurements=tuple(few)), load=results.load())
    plot = drawn(load, known)
    assert {row[0] for row in plot.rows} == {"this worker"}
    assert plot.source == (
        "load, Invented, 2 CPUs; left out, for it has nothing else of this worker: quick, Invented, 2 CPUs"
    )
    both = stored(cpu=results.peers(), gpu=on(results.peers(), GPU))
    assert drawn(peers, both).source == "cpu, Invented, 2 CPUs; left out: gpu, NVIDIA Invented 80GB"
    assert "All from cpu, Invented, 2 CPUs.</p>" in html(both, [])


def test_each_precision_s_loss_is_there_whichever_file_has_it():
    known = stored(fp16=called_int8("ours-fp16"), bf16=called_int8("ours-bf16"))
    assert [row[0] for row in drawn(accuracy, known).rows] == [
        "this worker, fp32",
        "this worker, fp16",
        "this worker, bf16",
    ]
    assert [one.target for one in losses(known.sources)] == ["ours", "ours-fp16", "ours", "ours-bf16"]
    assert [one.speed for one in losses(known.having("accuracy"))] == pytest.approx([1.0, 1.9, 1.9])


def called_int8(target: str) -> Results:
    found = results.accuracy()
    return replace(
        found,
        measurements=tuple(
            replace(one, target=target) if one.target == "ours-int8" else one for one in found.measurements
        ),
    )


def test_a_cpu_s_engine_on_a_gpu_s_machine_is_not_the_gpu_s():
    on_cpu = on(results.latency(L4, 9.0), L4, engine="onnxruntime-cpu")
    assert isinstance(published.plot(stored(cpu=on_cpu)), Absent)
    both = stored(cpu=on_cpu, gpu=on(results.latency(L4, 0.09), L4, engine="tensorrt"))
    alone = stored(gpu=both.sources[1].results)
    assert drawn(published, both).rows == drawn(published, alone).rows
    names = {row[3] for row in drawn(latency, both).rows if "alone" in row[3]}
    assert names == {"this worker's engine alone (onnxruntime-cpu)", "this worker's engine alone (tensorrt)"}


@pytest.mark.parametrize(
    ("environment", "options", "target", "engine"),
    [
        (L4, {"engine": "onnxruntime-cpu"}, "ours", "onnxruntime-cpu"),
        (L4, {"engine": "auto"}, "ours", "auto"),
        (L4, {}, "ours", "auto"),
        (L4, {"engine": "auto", "served_engine": "tensorrt"}, "ours", "tensorrt"),
        (L4, {"load": {"engine": "tensorrt"}, "engine": "auto"}, "ours-fp16", "tensorrt"),
        (L4, {}, "ours-onnxruntime-cuda-fp16", "onnxruntime-cuda"),
        (CPU, {"engine": "auto"}, "ours-int8", "onnxruntime-cpu"),
    ],
)
def test_what_engine_a_target_ran_on(environment: dict[str, Any], options: dict[str, Any], target: str, engine: str):
    assert Source("a", Results(environment, options, ())).engine("load", target) == engine
