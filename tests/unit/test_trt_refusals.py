"""What stands between a user and a plan, with the exit code: packages, GPUs, versions, and the builder's own words."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from engine.bucket import Bucket
from engine.bundle import open_bundle, write_manifest
from engine.probe import Gpu
from engine.tensors import TensorSpec
from export.__main__ import main
from export.command import interrupts
from export.errors import Refused, Unavailable
from export.plan_from_onnx import write_plans
from export.plans import builder as trt_builder
from export.plans import messages as trt_messages
from export.plans import network as trt_network
from export.plans.messages import deferred_interrupt, errors_of, monitor_of
from export.plans.network import _fix, build_plan
from export.plans.recipe import PlanRecipe
from tests.processes import killed


def said(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> tuple[int, str]:
    code = main(["plan", *map(str, argv)])
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    return code, printed.removeprefix("error: ").rstrip()


@pytest.fixture
def l4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt_builder, "gpu", lambda: Gpu("NVIDIA L4", (8, 9)))


@pytest.mark.usefixtures("l4")
def test_a_gpu_without_tensorrt(
    small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # as Python notes that there is none
    packages = "requirements/all.txt (in a checkout `make setup EXTRA=gpu` does, in .venv-gpu)"
    assert said(capsys, small_bundle) == (3, f"tensorrt is not installed; install {packages}")
    monkeypatch.delitem(sys.modules, "tensorrt")
    (tmp_path / "packages/tensorrt").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    for source, why in (
        (
            "raise OSError('libnvinfer.so.10: cannot open shared object file')",
            "libnvinfer.so.10: cannot open shared object file",
        ),
        ("from tensorrt_bindings import *", "No module named 'tensorrt_bindings'"),  # of a wheel of its own
    ):
        (tmp_path / "packages/tensorrt/__init__.py").write_text(source)
        sentence = f"tensorrt does not load ({why}); install again {packages}"
        assert said(capsys, small_bundle) == (3, sentence)


@pytest.mark.usefixtures("l4")
def test_a_level_of_compatibility_that_the_version_does_not_have(
    small_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    levels = SimpleNamespace(__members__={"NONE": 0, "AMPERE_PLUS": 1})
    trt = SimpleNamespace(__version__="8.6.1", HardwareCompatibilityLevel=levels)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    assert said(capsys, small_bundle, "--hardware-compatibility", "same-compute-capability") == (
        2,
        "TensorRT 8.6.1 has no hardware compatibility same-compute-capability; it has none, ampere-plus",
    )


@pytest.mark.usefixtures("l4")
def test_tensorrt_without_what_runs_a_plan_is_refused_before_the_build(
    small_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    trt = SimpleNamespace(__version__="8.6.1", HardwareCompatibilityLevel=SimpleNamespace(__members__={"NONE": 0}))
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setattr(trt_builder, "missing_packages", lambda *names: names)
    assert said(capsys, small_bundle) == (
        3,
        "pycuda and cuda not installed, by which a plan is run before it is kept; install requirements/all.txt (in a "
        "checkout `make setup EXTRA=gpu` does, in .venv-gpu)",
    )


def test_without_the_builder_that_needs_no_gpu(
    small_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    assert said(capsys, small_bundle, "--builder", "tensorrt-rtx", "--compute-capability", "8.9") == (
        3,
        "tensorrt_rtx_bindings is not installed; install tensorrt-rtx-cu12-bindings tensorrt-rtx-cu12-libs",
    )


def test_an_old_gpu_and_a_new_type(
    small_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(trt_builder, "gpu", lambda: Gpu("Tesla T4", (7, 5)))
    for precision in ("tf32", "bf16"):
        code, sentence = said(capsys, small_bundle, "--precision", precision)
        assert (code, sentence) == (2, f"a GPU of compute capability 7.5 has no {precision}; use fp16 or fp32")


def test_plans_for_ampere_are_not_built_on_what_came_before_it(
    small_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(trt_builder, "gpu", lambda: Gpu("Tesla T4", (7, 5)))
    levels = SimpleNamespace(__members__={"NONE": 0, "AMPERE_PLUS": 1})
    monkeypatch.setitem(
        sys.modules, "tensorrt", SimpleNamespace(__version__="8.6.1", HardwareCompatibilityLevel=levels)
    )
    assert said(capsys, small_bundle, "--hardware-compatibility", "ampere-plus") == (
        2,
        "plans for ampere-plus are built on sm_80 and newer, and this GPU is Tesla T4 (sm_75)",
    )


def test_what_is_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code, sentence = said(capsys, tmp_path)
    assert code == 2
    assert sentence.startswith(f"{tmp_path} is not a bundle (no manifest.json); make one with")
    assert said(capsys)[1].startswith("the following arguments are required: BUNDLE; see python -m export plan --help")


@pytest.mark.parametrize("severity", [1, 2])  # TensorRT 8.6 calls it a warning
def test_a_driver_that_is_too_old_for_the_builder(tmp_path: Path, severity: int):
    class Trt(SimpleNamespace):
        __version__ = "10.13.0.35"

        class ILogger:
            Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)

        @staticmethod
        def Builder(logger: Any) -> None:
            logger.log(2, "Unable to determine GPU memory usage")
            logger.log(severity, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    with pytest.raises(Unavailable) as refused:
        build_plan(Trt, tmp_path / "fp32.onnx", [], [], PlanRecipe())
    assert str(refused.value) == (
        "TensorRT 10.13.0.35 does not start (CUDA initialization failure with error: 35); update the NVIDIA driver"
    )


NORMS = "InstanceNormalization"


@pytest.mark.parametrize(
    ("kind", "flags", "options", "set_"),
    [
        (NORMS, "EXPLICIT_BATCH", {"hardware_compatibility": "ampere-plus"}, [4]),
        (NORMS, "EXPLICIT_BATCH", {"version_compatible": True}, [4]),
        (NORMS, "EXPLICIT_BATCH", {}, []),
        ("Relu", "EXPLICIT_BATCH", {"version_compatible": True}, []),
        (NORMS, "STRONGLY_TYPED", {"version_compatible": True}, []),
    ],
)
def test_the_parser_of_8_makes_no_plugin_for_plans_that_may_hold_none(
    tmp_path: Path, kind: str, flags: str, options: dict[str, Any], set_: list[int]
):
    found: list[int] = []

    class Parser(SimpleNamespace):
        num_errors = 0
        set_flag = staticmethod(found.append)

        def parse_from_file(self, path: str) -> bool:
            return False

    class Trt(SimpleNamespace):
        __version__ = "8.6.1"
        NetworkDefinitionCreationFlag = SimpleNamespace(**{flags: 0})
        OnnxParserFlag = SimpleNamespace(NATIVE_INSTANCENORM=4)

        class ILogger:
            Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)

        @staticmethod
        def Builder(logger: Any) -> Any:
            return SimpleNamespace(create_network=lambda flags: None)

        @staticmethod
        def OnnxParser(network: Any, logger: Any) -> Any:
            return Parser()

    path = tmp_path / "fp32.onnx"
    made = helper.make_graph([helper.make_node(kind, ["x"], ["y"])], "g", [], [])
    onnx.save(helper.make_model(made), path)
    with pytest.raises(Refused, match="cannot read fp32.onnx"):
        build_plan(Trt, path, [], [], PlanRecipe(**options))
    assert found == set_


def test_of_many_errors_the_first_and_the_last_are_told():
    """Between them a builder tells of every tactic that it skips."""
    errors = [f"skipping\ntactic {number}" for number in (1, 1, 2, 3, 4, 5, 6)]
    said = "skipping tactic 1; skipping tactic 2; skipping tactic 3; skipping tactic 4; "
    assert errors_of(SimpleNamespace(errors=errors[:-1])) == f"{said}skipping tactic 5"
    assert (
        errors_of(SimpleNamespace(errors=[*errors, "no implementation for node"]))
        == f"{said}no implementation for node"
    )


def test_what_else_may_be_tried():
    """The wheel of TensorRT's libraries has no lean runtime for a version-compatible plan to bring along."""
    assert _fix(PlanRecipe()) == "try another --precision, or other --batches"
    assert _fix(PlanRecipe(version_compatible=True)) == (
        "--version-compatible needs libnvinfer_lean, of the package tensorrt-lean-cu11-libs; else try another "
        "--precision, or other --batches"
    )


BEFORE_10 = SimpleNamespace(
    __version__="8.6.1",
    NetworkDefinitionCreationFlag=SimpleNamespace(EXPLICIT_BATCH=0),
    BuilderFlag=SimpleNamespace(FP16=0, INT8=1),
)


@pytest.mark.usefixtures("l4")
@pytest.mark.parametrize("asked", ["by an option", "by the bundle", "by an export's ladder"])
def test_bf16_before_tensorrt_10_is_refused_before_its_parser_reads_a_graph(
    small_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, asked: str
):
    """Which knows no size of bf16 there, and ends the process with SIGABRT."""
    monkeypatch.setitem(sys.modules, "tensorrt", BEFORE_10)
    monkeypatch.setattr("export.plan_from_onnx.add_precision", lambda *_, **__: pytest.fail("a graph is made"))
    sentence = (
        "TensorRT 8.6.1 has no bf16; use fp16 or fp32 (--precision, --plan-precision; of a worker that builds at its "
        "boot PRECISION), or TensorRT 10"
    )
    if asked == "by an option":
        assert said(capsys, small_bundle, "--precision", "bf16") == (2, sentence)
        return
    write_manifest(small_bundle, replace(open_bundle(small_bundle).manifest, precisions={"tensorrt": "bf16"}))
    if asked == "by the bundle":
        assert said(capsys, small_bundle) == (2, sentence)
        return
    with pytest.raises(Refused, match=f"^{re.escape(sentence)}$"):
        write_plans(small_bundle, PlanRecipe(), trt_builder.Builder(BEFORE_10, "tensorrt", []))


# By a real builder


SPEC = TensorSpec("x", "float32", ("batch", "length"))


def graph(folder: Path, table: int) -> Path:
    """x + a table of so many columns: the parser cannot know that they differ from x's, the builder does."""
    made = helper.make_graph(
        [helper.make_node("Add", ["x", "table"], ["y"], name="sum")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "length"])],
        [helper.make_tensor("table", TensorProto.FLOAT, [1, table], [0.5] * table)],
    )
    path = folder / "fp32.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def refusal(path: Path, *buckets: Bucket) -> str:
    trt: Any = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
    options = PlanRecipe("fp32", compute_capabilities=((8, 9),), optimization_level=0)
    low, best, high = buckets
    with pytest.raises(Refused) as refused:
        build_plan(trt, path, [SPEC], [(low, best, high)], options)
    return str(refused.value)


def test_a_profile_that_does_not_rise(tmp_path: Path):
    said = refusal(graph(tmp_path, 1), Bucket(4, 16), Bucket(4, 16), Bucket(1, 16))
    assert said.startswith("the builder takes no optimization profile from Bucket(batch=4, length=16) to")
    assert said.endswith("; give other --batches or --lengths")


def test_shapes_that_do_not_go_together_are_the_builders_words(tmp_path: Path):
    said = refusal(graph(tmp_path, 7), *[Bucket(1, 16)] * 3)
    assert said.startswith("TensorRT 1.7.1.116 cannot build fp32.onnx in fp32: ")
    assert "sum" in said
    assert "the builder gave no reason" not in said
    assert said.endswith("; try another --precision, or other --batches")


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def interrupt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[signal.Signals]:
    """One of the signals that end an export, and would end the tests."""
    monkeypatch.setattr(interrupts, "_came", False)
    before = signal.signal(request.param, signal.default_int_handler)
    yield request.param
    assert signal.signal(request.param, before) is signal.default_int_handler


@pytest.mark.parametrize("phase", ["before", "during"])
def test_an_interrupt_ends_a_build_and_leaves_the_bundle_as_it_was(
    small_bundle: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    interrupt: signal.Signals,
    phase: str,
):
    """It comes while TensorRT's own code calls ours, where an exception is swallowed with a line on stderr."""
    trt: Any = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
    before = {path: path.read_bytes() for path in small_bundle.rglob("*") if path.is_file()}
    shown: list[str] = []

    def show(line: str) -> None:
        shown.append(line)
        os.kill(os.getpid(), interrupt)

    monkeypatch.setattr(trt_messages, "_PERIOD_S", 0)
    monkeypatch.setattr(trt_network, "monitor_of", lambda trt: monitor_of(trt, show))
    if phase == "before":  # where the first line is logged
        logger = type(trt_messages.logger_of(trt))
        log, sent = logger.log, list[str]()

        def interrupted(self: Any, severity: Any, text: str) -> None:
            if not sent:
                sent.append(text)
                os.kill(os.getpid(), interrupt)
            log(self, severity, text)

        monkeypatch.setattr(logger, "log", interrupted)
    options = ("--builder", "tensorrt-rtx", "--compute-capability", "8.9", "--precision", "fp32")
    assert main(["plan", str(small_bundle), *options]) == 130
    assert capfd.readouterr().err == "interrupted; nothing was written\n"
    assert bool(shown) == (phase == "during")  # with its first step at the latest
    assert all(re.fullmatch(r"    [A-Z].*: 1 of \d+", line) for line in shown[:1])
    assert {path: path.read_bytes() for path in small_bundle.rglob("*") if path.is_file()} == before


def test_a_signal_that_is_ignored_does_not_end_a_build(monkeypatch: pytest.MonkeyPatch):
    """As a shell without job control has it ignore Ctrl-C."""
    monkeypatch.setattr(interrupts, "_came", False)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with deferred_interrupt():
            os.kill(os.getpid(), signal.SIGINT)
        assert not interrupts.came()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_that_was_swallowed_before_a_build_is_not_forgotten(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(interrupts, "_came", True)
    with pytest.raises(KeyboardInterrupt), deferred_interrupt():
        pytest.fail("the build began")


def test_a_signal_within_the_handler_of_another_holds_no_build_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As `timeout` sends SIGTERM twice."""
    monkeypatch.setattr(interrupts, "_came", False)

    def again(frame: Any, event: str, arg: object) -> Any:
        if event == "line":
            signal.raise_signal(signal.SIGTERM)
        return again

    def build() -> None:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            with deferred_interrupt():
                sys.settrace(again)
                signal.raise_signal(signal.SIGTERM)
                sys.settrace(None)
        except KeyboardInterrupt:
            (tmp_path / "ended").touch()

    deadline = time.monotonic() + 10
    killed(build, lambda: time.monotonic() > deadline)
    assert (tmp_path / "ended").exists(), "it waits for itself"
