"""The gate of plans, and what becomes of a plan that fails it, with engines that are wrong in one way each."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import engine.backends
from benchmarks import bert_bundle
from benchmarks.bert_graph import Shape, bert_graph, weights_of
from engine.backends.onnxruntime import OnnxRuntimeEngine
from engine.batching.feed import run_rows
from engine.bucket import Bucket, Ladder
from engine.bundle import Graph, open_bundle, write_manifest
from engine.plans.sidecar import PlanFile, plans_of
from engine.tensors import Arrays, Row, TensorSpec
from export.errors import ParityFailed
from export.nodes import replace_all
from export.optimize import add_graph, load_whole
from export.plan_from_onnx import add_plans
from export.plans.builder import Builder, Target
from export.plans.gate import MAX_DIFFERENCE, _figure, _Rows, gate
from export.plans.recipe import PlanRecipe
from export.precision.candidates import candidate_of, in_precision

BUCKETS = list(Ladder((1, 4), (8, 32)))
Change = Callable[[dict[str, Any]], None]


class Changed(OnnxRuntimeEngine):
    """ONNX Runtime, with outputs that `change` spoils."""

    change: Change = staticmethod(lambda outputs: None)

    def finish(self, slot: int = 0) -> Arrays:
        outputs = {name: values.copy() for name, values in super().finish(slot).items()}
        self.change(outputs)
        return outputs


def changed(bundle: Path, change: Change) -> Changed:
    made = Changed(open_bundle(bundle))
    made.change = change
    return made


def add_noise(outputs: dict[str, Any], size: float) -> None:
    values = outputs["embedding"]
    values += size * np.abs(values).max(axis=1, keepdims=True) * np.linspace(-1, 1, values.shape[1], dtype=np.float32)


def test_the_reference_answers_each_row_once_for_all_batch_sizes(small_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """Larger batches have the rows of the smaller ones, and more."""
    bundle = open_bundle(small_bundle)
    engine, asked, run = changed(small_bundle, lambda _: None), list[int](), run_rows

    def counted(on: OnnxRuntimeEngine, rows: Any) -> Any:
        if on is not engine:
            asked.extend(row.length for row in rows)
        return run(on, rows)

    monkeypatch.setattr("export.plans.gate.run_rows", counted)
    monkeypatch.setattr("export.plans.gate._REFERENCE_TOKENS", 64)
    order: list[Bucket] = []
    gate(bundle, "model", engine, list(Ladder((1, 4, 8), (8, 32))), "fp32", order.append)
    rows = _Rows(bundle.manifest.graphs["model"], bundle.file(bundle.manifest.graphs["model"].onnx["fp32"]))
    assert asked[:8] == [row.length for row in rows.at(Bucket(8, 8))]
    compared = {0, 3, 7}  # the first of each batch and, where 64 tokens are two rows, the last
    assert asked[8:] == [row.length for place, row in enumerate(rows.at(Bucket(8, 32))) if place in compared]
    assert asked.count(32) == 1
    assert order == sorted(order, key=lambda bucket: bucket.length)
    small, large = rows.at(Bucket(4, 32)), rows.at(Bucket(8, 32))
    ids = [row.feeds["input_ids"].tobytes() for row in large]
    assert [row.feeds["input_ids"].tobytes() for row in small] == ids[:4]
    assert len(set(ids)) == 8


def test_int8_is_compared_with_the_int8_graph(small_bundle: Path, tmp_path: Path):
    """An int8 graph that is far from fp32 on rows drawn from a seed; how far is the business of the export."""
    path = Path(shutil.copytree(small_bundle, tmp_path / "bundle"))
    manifest = open_bundle(path).manifest
    graph = manifest.graphs["model"]
    model = onnx.load(path / graph.onnx["fp32"], load_external_data=False)
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(helper.make_node("Neg", ["before"], ["embedding"]))
    onnx.save(model, path / "graphs/model/int8.onnx")
    graph = replace(graph, onnx={**graph.onnx, "int8": "graphs/model/int8.onnx"})
    write_manifest(path, replace(manifest, graphs={"model": graph}))
    bundle = open_bundle(path)
    right = Changed(in_precision(bundle, "model", "int8"))
    assert gate(bundle, "model", right, BUCKETS, "int8")["min_cosine"] == 1.0
    with pytest.raises(ParityFailed, match="outputs in int8 differ from int8 on the CPU"):
        gate(bundle, "model", Changed(in_precision(bundle, "model", "fp32")), BUCKETS, "int8")


def test_equal_answers_pass_and_the_figures_say_so(small_bundle: Path):
    figures = gate(open_bundle(small_bundle), "model", changed(small_bundle, lambda _: None), BUCKETS, "fp32")
    assert figures["buckets"] == 4
    assert figures["min_cosine"] == 1.0
    assert figures["max_relative_difference"] < 1e-6


def test_an_answer_of_zeros_is_the_same_in_both_and_none_of_zeros_is_not(small_bundle: Path, tmp_path: Path):
    """As sparse models have it, and layers behind a ReLU; as in the export's gate."""
    path = Path(shutil.copytree(small_bundle, tmp_path / "bundle"))
    graph = open_bundle(path).manifest.graphs["model"].onnx["fp32"]
    model = onnx.load(path / graph, load_external_data=False)
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(helper.make_node("Sub", ["before", "before"], ["embedding"]))
    onnx.save(model, path / graph)
    write_manifest(path, open_bundle(path).manifest)
    zeros = Changed(in_precision(open_bundle(path), "model", "fp32"))
    assert gate(open_bundle(path), "model", zeros, BUCKETS, "fp32")["min_cosine"] == 1.0
    with pytest.raises(ParityFailed, match="4 of 4 outputs in fp32 differ"):
        gate(open_bundle(small_bundle), "model", zeros, BUCKETS, "fp32")
    with pytest.raises(ParityFailed, match="4 of 4 outputs in fp32 differ"):
        gate(open_bundle(path), "model", OnnxRuntimeEngine(open_bundle(small_bundle)), BUCKETS, "fp32")


@pytest.mark.parametrize(
    ("precision", "noise", "passes"),
    [("fp32", 5e-4, True), ("fp32", 5e-3, False), ("fp16", 5e-3, True), ("fp16", 5e-2, False), ("bf16", 2e-2, True)],
)
def test_the_limit_is_that_of_the_precision(small_bundle: Path, precision: str, noise: float, passes: bool):
    noisy = changed(small_bundle, lambda outputs: add_noise(outputs, noise))
    if passes:
        found = gate(open_bundle(small_bundle), "model", noisy, BUCKETS, precision)["max_relative_difference"]
        assert found == pytest.approx(noise, rel=0.2)
        return
    with pytest.raises(ParityFailed, match=f"4 of 4 outputs in {precision} differ from fp32") as failed:
        gate(open_bundle(small_bundle), "model", noisy, BUCKETS, precision)
    assert {row[0] for row in failed.value.rows} == {"1 x 8", "1 x 32", "4 x 8", "4 x 32"}


def with_short_products(graph: Path, path: Path, bits: int) -> Path:
    """The graph with what its matrix products read rounded to so many bits of mantissa: Veltkamp's splitting."""
    model = load_whole(graph)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(2 ** (23 - bits) + 1), "splitter"))
    nodes: list[Any] = []
    for node in model.graph.node:
        for place, name in enumerate(node.input if node.op_type == "MatMul" else ()):
            own = f"{node.output[0]}/{place}"
            large, low, node.input[place] = f"{own}/large", f"{own}/low", f"{own}/high"
            nodes.append(helper.make_node("Mul", [name, "splitter"], [large], name=large))
            nodes.append(helper.make_node("Sub", [large, name], [low], name=low))
            nodes.append(helper.make_node("Sub", [large, low], [f"{own}/high"], name=f"{own}/high"))
        nodes.append(node)
    replace_all(model.graph.node, nodes)
    del model.graph.value_info[:]
    add_graph(model, path, {})
    return path


@pytest.fixture(scope="module")
def sharp_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small encoder whose matrices are so large that a rounding comes to what it does in a trained one."""
    with pytest.MonkeyPatch.context() as patch:

        def weights(shape: Shape) -> dict[str, Any]:
            found = weights_of(shape)
            return {
                name: 10 * one if re.search(r"layer.*(self|dense).*weight", name) else one
                for name, one in found.items()
            }

        patch.setattr(bert_bundle, "weights_of", weights)
        shape = Shape(6, 64, 4, 128, vocab_size=500, max_position_embeddings=64)
        return bert_bundle.bert_bundle("sharp", tmp_path_factory.mktemp("sharp") / "bundle", shape)


@pytest.mark.parametrize(("bits", "precision", "passes"), [(10, "tf32", True), (10, "fp32", False), (7, "tf32", False)])
def test_products_of_ten_bits_are_tf32_and_no_other(sharp_encoder: Path, bits: int, precision: str, passes: bool):
    bundle = open_bundle(sharp_encoder)
    exact = bundle.file(bundle.manifest.graphs["model"].onnx["fp32"])
    path = with_short_products(exact, exact.with_name(f"{bits}-bits.onnx"), bits)
    rounded = OnnxRuntimeEngine(candidate_of(sharp_encoder, "fp32", path).view, max_batch=4)
    if passes:
        ends = set[int]()

        def ran(bucket: Bucket) -> None:
            ends.add(int(rounded.feeds(bucket)["input_ids"][0, -1]))

        figures = gate(bundle, "model", rounded, BUCKETS, precision, ran)
        assert figures["max_relative_difference"] > MAX_DIFFERENCE["fp32"]
        assert len(ends) == 1  # as the task's own examples end
        return
    with pytest.raises(ParityFailed, match=f"outputs in {precision} differ from fp32"):
        gate(bundle, "model", rounded, BUCKETS, precision)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_what_is_no_answer_fails_wherever_it_stands(small_bundle: Path, value: float):
    def spoil(outputs: dict[str, Any]) -> None:
        outputs["embedding"][-1] = value

    with pytest.raises(ParityFailed):
        gate(open_bundle(small_bundle), "model", changed(small_bundle, spoil), [Bucket(4, 32)], "fp16")


def test_what_is_no_answer_fails_in_a_row_that_is_not_compared(small_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("export.plans.gate._REFERENCE_TOKENS", 64)  # two rows of 32: the first and the last

    def spoil(outputs: dict[str, Any]) -> None:
        outputs["embedding"][1:-1] = np.nan

    with pytest.raises(ParityFailed):
        gate(open_bundle(small_bundle), "model", changed(small_bundle, spoil), [Bucket(4, 32)], "fp16")


def test_the_worst_of_all_buckets_is_told(small_bundle: Path):
    def spoil(outputs: dict[str, Any]) -> None:
        add_noise(outputs, 5e-3 if len(outputs["embedding"]) == 4 else 1e-4)

    figures = gate(open_bundle(small_bundle), "model", changed(small_bundle, spoil), BUCKETS, "fp16")
    assert figures["min_cosine"] < 0.99999
    assert figures["max_relative_difference"] == 5e-3


def test_rows_that_changed_places_fail(small_bundle: Path):
    def swap(outputs: dict[str, Any]) -> None:
        outputs["embedding"][[0, -1]] = outputs["embedding"][[-1, 0]]

    with pytest.raises(ParityFailed):
        gate(open_bundle(small_bundle), "model", changed(small_bundle, swap), [Bucket(4, 32)], "fp16")


def test_one_whole_number_that_differs_fails(small_bundle: Path):
    """Of one row, and the last."""
    file = small_bundle / "graphs/model/fp32.onnx"
    model = onnx.load(file)
    model.graph.node.append(helper.make_node("Cast", ["ids"], ["tokens"], to=TensorProto.INT32))
    model.graph.output.append(helper.make_tensor_value_info("tokens", TensorProto.INT32, ["batch", "length"]))
    onnx.save(model, file)
    manifest = open_bundle(small_bundle).manifest
    graph = manifest.graphs["model"]
    graph = replace(graph, outputs=(*graph.outputs, TensorSpec("tokens", "int32", ("batch", "length"))))
    write_manifest(small_bundle, replace(manifest, graphs={"model": graph}))
    bundle = open_bundle(small_bundle)
    assert gate(bundle, "model", changed(small_bundle, lambda _: None), [Bucket(4, 32)], "fp16")["min_equal"] == 1

    def spoil(outputs: dict[str, Any]) -> None:
        outputs["tokens"][-1] += 1

    with pytest.raises(ParityFailed, match="1 of 2 outputs in fp16 differ"):
        gate(bundle, "model", changed(small_bundle, spoil), [Bucket(4, 32)], "fp16")


def test_rows_suit_the_graph(tmp_path: Path):
    """Token ids below the vocabulary's size, types below theirs, a mask of ones, and rows of many lengths."""
    shape = Shape(1, 32, 4, 64, vocab_size=40, max_position_embeddings=64)
    add_graph(bert_graph(shape, weights_of(shape)), tmp_path / "fp32.onnx", {})
    specs = tuple(
        TensorSpec(name, "int32", ("batch", "length")) for name in ("input_ids", "token_type_ids", "attention_mask")
    )
    specs += (
        TensorSpec("pixels", "uint8", ("batch", 3, "length")),
        TensorSpec("sound", "float32", ("batch", "length")),
    )
    rows = _Rows(Graph(specs, (), {}), tmp_path / "fp32.onnx").at(Bucket(32, 64))
    assert [len(rows), rows[0].length] == [32, 64]
    assert len({row.length for row in rows}) > 10
    joined = {spec.name: np.concatenate([row.feeds[spec.name].ravel() for row in rows]) for spec in specs}
    assert set(joined["input_ids"]) == set(range(40))
    assert set(joined["token_type_ids"]) == {0, 1}
    assert set(joined["attention_mask"]) == {1}
    assert joined["pixels"].max() > 250
    assert abs(joined["sound"].mean()) < 0.2 < joined["sound"].std()
    assert rows[1].feeds["pixels"].shape == (3, rows[1].length)


def test_rows_end_as_the_tasks_own_and_say_how_much_there_is(tmp_path: Path):
    """Models that look for their end token find it; a recording and a canvas are as full as they can be."""
    shape = Shape(1, 32, 4, 64, vocab_size=40, max_position_embeddings=64)
    add_graph(bert_graph(shape, weights_of(shape)), tmp_path / "fp32.onnx", {})
    ids = TensorSpec("input_ids", "int32", ("batch", "length"))
    example = Row({"input_ids": np.array([7, 1, 2, 9], np.int32)}, 4)
    (*rows, _) = _Rows(Graph((ids,), (), {}), tmp_path / "fp32.onnx", example).at(Bucket(32, 64))
    for row in rows:
        assert row.feeds["input_ids"][-1] == 9
        assert row.length == 1 or row.feeds["input_ids"][0] == 7
    sound = TensorSpec("input_values", "float32", ("batch", "320*length+79"))
    samples = TensorSpec("input_length", "int32", ("batch",))
    for row in _Rows(Graph((sound, samples), (), {}), tmp_path / "fp32.onnx").at(Bucket(4, 16)):
        assert row.feeds["input_length"] == len(row.feeds["input_values"]) == 320 * row.length + 79
    pixels, extent = TensorSpec("pixels", "uint8", ("batch", 48, 64, 3)), TensorSpec("extent", "int32", ("batch", 2))
    (row,) = _Rows(Graph((pixels, extent), (), {}), tmp_path / "fp32.onnx").at(Bucket(1, 1))
    assert row.feeds["extent"].tolist() == [48, 64]


def with_a_place(bundle: Path) -> None:
    """Let the bundle's graph look at one place of each row, as fill-mask's does; none beyond the row is taken."""
    manifest = open_bundle(bundle).manifest
    graph = manifest.graphs["model"]
    model = onnx.load(bundle / graph.onnx["fp32"])
    model.graph.input.append(helper.make_tensor_value_info("place", TensorProto.INT32, ["batch", 1]))
    model.graph.initializer.append(helper.make_tensor("last", TensorProto.INT64, [1], [-1]))
    del model.graph.node[-2:]  # the sum over the row, and its scale
    model.graph.node.extend(
        [
            helper.make_node("Cast", ["place"], ["places"], to=TensorProto.INT64),
            helper.make_node("GatherND", ["masked", "places"], ["found"], batch_dims=1),
            helper.make_node("Unsqueeze", ["found", "last"], ["column"]),
            helper.make_node("Mul", ["column", "scale"], ["embedding"]),
        ]
    )
    onnx.save(model, bundle / graph.onnx["fp32"])
    graph = replace(graph, inputs=(*graph.inputs, TensorSpec("place", "int32", ("batch", 1))))
    config = {**manifest.task_config, "max_length": 512}
    write_manifest(bundle, replace(manifest, graphs={"model": graph}, task_config=config))


def test_a_place_in_a_text_is_within_it_at_all_the_default_sizes(small_bundle: Path):
    """Of 32 rows of up to 16 tokens one has a single token, and the reference has no padding behind it."""
    with_a_place(small_bundle)
    bundle = open_bundle(small_bundle)
    ladder = PlanRecipe("fp32").ladder(bundle.manifest, "model")
    figures = gate(bundle, "model", OnnxRuntimeEngine(bundle), ladder, "fp32")
    assert (figures["buckets"], figures["min_cosine"]) == (len(ladder), 1.0)
    graph = bundle.manifest.graphs["model"]
    rows = _Rows(graph, bundle.file(graph.onnx["fp32"])).at(Bucket(ladder.batches[-1], ladder.lengths[0]))
    assert {(row.length > 1, *row.feeds["place"].tolist()) for row in rows} == {(True, 1), (False, 0)}


@pytest.mark.parametrize(
    ("shape", "axis", "expected", "found", "equal"),
    [
        (("batch", 4), "a list", [5, 3, 8, 1], [3, 5, 8, 2], 0.75),
        (("batch", 2, 2), "a map", [[5, 3], [8, 1]], [[3, 5], [8, 1]], 0.5),
    ],
)
def test_whole_numbers_of_a_list_may_change_places(shape: Any, axis: str, expected: Any, found: Any, equal: float):
    pair = (np.array(expected), np.array(found))
    assert _figure(Bucket(1, 1), TensorSpec("tokens", "int32", shape), [pair]).equal == equal


def test_a_score_alone_is_relative_where_it_is_large():
    spec = TensorSpec("logits", "float32", ("batch", 1))

    def difference(expected: float, found: float) -> float:
        pair = (np.array([expected], np.float32), np.array([found], np.float32))
        return _figure(Bucket(1, 1), spec, [pair]).difference

    assert difference(0.001, 0.002) == pytest.approx(0.001)
    assert difference(100, 101) == pytest.approx(0.01)
    assert np.isnan(difference(0.5, np.nan))


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[Change], None]:
    """A machine whose TensorRT is TensorRT-RTX and whose TensorRT engine is ONNX Runtime, changed."""
    trt = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")

    def set_up(change: Change) -> None:
        def make(bundle: Any, graph: str, plan: PlanFile) -> Changed:
            assert plan.path.read_bytes()
            made = Changed(bundle, graph, max_batch=plan.plan.batches[-1])
            made.change = change
            return made

        module = type("tensorrt", (), {"TensorRtEngine": staticmethod(make)})
        monkeypatch.setitem(__import__("sys").modules, "engine.backends.tensorrt", module)
        monkeypatch.setattr(engine.backends, "tensorrt", module, raising=False)
        target = Target("8.9", "NVIDIA L4", "535.104", "12.2")
        monkeypatch.setattr("export.plan_from_onnx.open_builder", lambda _: Builder(trt, "tensorrt", [target]))

    return set_up


RECIPE = PlanRecipe("fp16", batches=(1, 4), lengths=(8, 32), compute_capabilities=((8, 9),), optimization_level=0)


def test_a_plan_that_passes_is_added_with_its_figures(small_bundle: Path, on_a_gpu: Callable[[Change], None]):
    on_a_gpu(lambda outputs: add_noise(outputs, 5e-3))
    (name,) = add_plans(small_bundle, RECIPE)
    bundle = open_bundle(small_bundle)
    bundle.verify()
    (found,) = plans_of(bundle)
    assert (found.plan.gpu_name, found.plan.driver_version, found.plan.cuda_version) == ("NVIDIA L4", "535.104", "12.2")
    figures = json.loads((small_bundle / "parity.json").read_text())["plans"][name]
    assert figures["max_relative_difference"] == pytest.approx(5e-3, rel=0.2)


def test_a_plan_that_fails_is_not_added(
    small_bundle: Path, on_a_gpu: Callable[[Change], None], capsys: pytest.CaptureFixture[str]
):
    from export.__main__ import main

    on_a_gpu(lambda outputs: add_noise(outputs, 0.5))
    before = {path: path.read_bytes() for path in small_bundle.rglob("*") if path.is_file()}
    options = ["--batches", "1,4", "--lengths", "8,32", "--optimization-level", "0"]
    options += ["--builder", "tensorrt-rtx", "--compute-capability", "8.9"]
    assert main(["plan", str(small_bundle), *options]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: 4 of 4 outputs in fp16 differ")
    assert "bucket  output     cosine" in said
    assert {path: path.read_bytes() for path in small_bundle.rglob("*") if path.is_file()} == before
