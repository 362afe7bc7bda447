"""From a bundle to an engine, on facts that are made up where this machine has no GPU."""

import gc
import os
import re
import subprocess
import sys
import time
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path
from shutil import copytree
from types import ModuleType
from typing import Any

import pytest

import handler.boot
from engine import boot, probe
from engine.backends import load_engine, onnxruntime_cuda
from engine.backends.onnxruntime import OnnxRuntimeEngine
from engine.backends.onnxruntime_cuda import OnnxRuntimeCudaEngine
from engine.backends.tensorrt import TensorRtEngine
from engine.batching.router import Router
from engine.boot import foreseen, gather, open_engine, warmed
from engine.bucket import Bucket
from engine.bundle import open_bundle, write_manifest
from engine.config import Settings
from engine.errors import BundleError, ConfigError, EngineError, EngineLost, OutOfMemory
from engine.plans import build_plan, late
from engine.probe import Gpu
from engine.select import Choice
from handler.startup.timeline import Timeline
from tests.bundles import move_weights_out, write_small_bundle
from tests.contract.test_engine import row
from tests.cuda_double import CUresult, Device, installed
from tests.plans import add_plan
from tests.tensorrt_double import Severity, TensorRtDouble, plan_bytes

L4 = Gpu("NVIDIA L4", (8, 9), "550.54.15", "12.4")


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture(autouse=True)
def _doubles(device: Device, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine with an L4 and TensorRT, and ONNX Runtime as it is here."""
    monkeypatch.setattr(probe, "gpu", lambda: L4)
    monkeypatch.setattr(probe, "tensorrt_version", lambda: "10.13.0.35")
    monkeypatch.setattr(probe, "missing_packages", lambda *names: ())
    monkeypatch.setattr(boot, "uptime_s", lambda: 0.0)  # this process has run other tests before
    monkeypatch.delenv("RUNPOD_GPU_COUNT", raising=False)
    with installed(device, tensorrt=TensorRtDouble(device)):
        yield


def settings(tmp_path: Path, **changes: Any) -> Settings:
    return Settings(**{"plan_cache": tmp_path / "cache", "allow_cpu": False, **changes})


def test_the_plan_of_the_bundle_is_loaded(small_bundle: Path, tmp_path: Path):
    add_plan(small_bundle, plan_bytes())
    engine, choice = open_engine(open_bundle(small_bundle), settings(tmp_path, max_batch_rows=4))
    assert isinstance(engine, TensorRtEngine)
    assert engine.buckets.batches == (1, 4)
    assert choice.reason == "sm_89-trt10.13.0-fp16.plan fits NVIDIA L4 (sm_89) and TensorRT 10.13.0.35"
    engine.warm_up()
    assert engine.run(Bucket(1, 8))["embedding"].shape == (1, 8)
    engine.close()


def test_of_a_plan_only_the_buckets_are_loaded_that_batches_come_to(small_bundle: Path, tmp_path: Path):
    add_plan(small_bundle, plan_bytes())
    for tokens, left_out in ((0, set()), (64, {Bucket(8, 32)})):
        engine, _ = open_engine(open_bundle(small_bundle), settings(tmp_path, max_batch_tokens=tokens))
        assert {Bucket(8, 32), Bucket(4, 32)} - set(engine.buckets) == left_out
        engine.close()


def test_a_plan_that_does_not_load_is_passed_over_and_said(small_bundle: Path, tmp_path: Path):
    add_plan(small_bundle, b"broken")
    add_plan(small_bundle, plan_bytes(), precision="fp32")
    said: list[str] = []
    engine, choice = open_engine(open_bundle(small_bundle), settings(tmp_path), say=said.append)
    assert choice.plan is not None
    assert choice.plan.plan.precision == "fp32"
    assert "does not load sm_89-trt10.13.0-fp16.plan" in said[0]
    engine.close()


def test_on_auto_the_next_best_is_taken_and_by_name_nothing_is(small_bundle: Path, tmp_path: Path):
    add_plan(small_bundle, b"broken")
    engine, choice = open_engine(open_bundle(small_bundle), settings(tmp_path, allow_cpu=True))
    assert isinstance(engine, OnnxRuntimeEngine)
    assert "magicTag" in choice.ladder[0].reason
    engine.close()
    with pytest.raises(ConfigError, match="ENGINE=tensorrt cannot run here: .*magicTag"):
        open_engine(open_bundle(small_bundle), settings(tmp_path, engine="tensorrt", allow_cpu=True))


def test_it_asks_for_what_it_opens_before_it_does(small_bundle: Path, tmp_path: Path):
    move_weights_out(small_bundle)
    add_plan(small_bundle, b"broken")
    add_plan(small_bundle, b"of another GPU", compute_capability="8.6")
    bundle, wanted = open_bundle(small_bundle), settings(tmp_path, allow_cpu=True)
    plan = "graphs/model/plans/sm_89-trt10.13.0-fp16.plan"
    assert foreseen(bundle, wanted, "model") == ("tensorrt", [plan])
    asked: list[list[str]] = []
    engine, _ = open_engine(bundle, wanted, need=lambda names: asked.append(list(names)))
    assert asked == [[plan], ["graphs/model/weights.bin"]]
    engine.close()

    def refuse(names: Any) -> None:
        raise BundleError("damaged")

    with pytest.raises(BundleError, match="damaged"):  # and no other engine is looked for
        open_engine(bundle, wanted, need=refuse)
    assert foreseen(bundle, settings(tmp_path, engine="fake"), "model") == ("fake", [])
    on_the_cpu = settings(tmp_path, engine="onnxruntime-cpu")
    assert foreseen(bundle, on_the_cpu, "model") == ("onnxruntime-cpu", ["graphs/model/weights.bin"])
    assert foreseen(bundle, settings(tmp_path, engine="onnxruntime-cuda"), "model") == ("", [])  # which cannot run


def test_a_plan_of_other_weights_is_not_loaded(small_bundle: Path, tmp_path: Path):
    add_plan(small_bundle, plan_bytes(), onnx_sha256="7" * 64)
    with pytest.raises(ConfigError, match="it was built from another graphs/model/fp32.onnx"):
        open_engine(open_bundle(small_bundle), settings(tmp_path, engine="tensorrt"))


def with_onnxruntime_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the build of ONNX Runtime for CUDA were installed: its engine, on the CPU."""
    monkeypatch.setattr(probe, "onnxruntime_providers", lambda: ("CUDAExecutionProvider", "CPUExecutionProvider"))
    monkeypatch.setattr(onnxruntime_cuda, "OnnxRuntimeCudaEngine", partial(OnnxRuntimeCudaEngine, device="cpu"))


def without_room(trt: ModuleType, *plans: bytes) -> None:
    """Let `trt` find no memory for the weights of `plans`, or of any."""
    load = trt.Runtime.deserialize_cuda_engine

    def deserialize(self: Any, content: Any) -> Any:
        if plans and bytes(content) not in plans:
            return load(self, content)
        self.logger.log(Severity.ERROR, "[defaultAllocator.cpp::allocate] Error Code 1: Cuda Runtime (out of memory)")
        return None

    trt.Runtime.deserialize_cuda_engine = deserialize


def test_memory_that_does_not_suffice_is_no_reason_to_serve_on_the_cpu(
    small_bundle: Path, tmp_path: Path, device: Device
):
    """Where ONNX Runtime knows no CUDA; and a build takes minutes, for a plan that is as large."""
    add_plan(small_bundle, plan_bytes())
    device.capacity = 1000
    wanted = settings(tmp_path, allow_cpu=True, build_on_boot=True)
    name = "sm_89-trt10.13.0-fp16.plan"
    with pytest.raises(ConfigError) as error:
        open_engine(open_bundle(small_bundle), wanted)
    said = str(error.value)
    assert f"exact plan: {name}: CUDA failed while allocating the buffers of {name}: cuMemAlloc failed" in said
    assert f"build: this GPU has no room for {name}" in said
    assert "ONNX Runtime on the CPU: a GPU without room is no reason to serve on the CPU" in said
    assert said.endswith("take a GPU with more memory")
    with pytest.raises(ConfigError, match="set ENGINE=auto to take the next best$"):
        open_engine(open_bundle(small_bundle), replace(wanted, engine="tensorrt"))


def test_a_plan_without_room_is_passed_over_for_what_may_fit_the_gpu(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It may hold its weights once a profile: a smaller one has room, or ONNX Runtime, which holds them once."""
    with_onnxruntime_on_cuda(monkeypatch)
    small = plan_bytes(scratch=999)
    add_plan(small_bundle, plan_bytes())
    add_plan(small_bundle, small, precision="fp32")
    without_room(sys.modules["tensorrt"], plan_bytes())
    said: list[str] = []
    bundle = open_bundle(small_bundle)
    engine, choice = open_engine(bundle, settings(tmp_path), say=said.append)
    assert choice.plan is not None
    assert choice.plan.plan.precision == "fp32"
    assert len(said) == 1
    assert "fp16.plan: TensorRT 10.13.0.35 does not load" in said[0]
    assert "out of memory" in said[0]
    engine.close()
    without_room(sys.modules["tensorrt"])
    engine, choice = open_engine(bundle, settings(tmp_path, build_on_boot=True, allow_cpu=True))
    assert (choice.engine, choice.ladder[-1].name) == ("onnxruntime-cuda", "ONNX Runtime on CUDA")
    assert "out of memory" in choice.ladder[0].reason
    engine.close()
    with pytest.raises(ConfigError, match="ENGINE=tensorrt cannot run here: .*out of memory"):
        open_engine(bundle, settings(tmp_path, engine="tensorrt"))


def test_nor_does_what_follows_a_plan_without_room_lead_to_the_cpu(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """ONNX Runtime's engine fails in another way, or has no room either."""
    with_onnxruntime_on_cuda(monkeypatch)
    add_plan(small_bundle, plan_bytes())
    without_room(sys.modules["tensorrt"])
    bundle, wanted = open_bundle(small_bundle), settings(tmp_path, allow_cpu=True)
    opened = open_engine(bundle, wanted, struck=(struck := dict[str, str]()))
    assert opened[1].engine == "onnxruntime-cuda"

    for error, raised in ((OutOfMemory("CUDA failure 2"), OutOfMemory), (EngineError("no kernel"), ConfigError)):

        def fail(error: EngineError = error) -> None:
            raise error

        monkeypatch.setattr(opened[0], "warm_up", fail)
        with pytest.raises(raised):
            warmed(*opened, bundle, wanted, struck=dict(struck))


@pytest.mark.parametrize("ends_at", ["buffers", "execution contexts", "warm-up"])
def test_what_a_plan_without_room_held_is_free_before_the_next_is_opened(
    small_bundle: Path, tmp_path: Path, device: Device, monkeypatch: pytest.MonkeyPatch, ends_at: str
):
    """Without the cyclic collector, which does not run during a boot."""
    with_onnxruntime_on_cuda(monkeypatch)
    add_plan(small_bundle, plan_bytes())
    trt = sys.modules["tensorrt"]
    held: list[Any] = []
    load = trt.Runtime.deserialize_cuda_engine

    def deserialize(self: Any, content: Any) -> Any:
        found = load(self, content)
        held.extend((weakref.ref(self), weakref.ref(found)))
        return found

    monkeypatch.setattr(trt.Runtime, "deserialize_cuda_engine", deserialize)
    opened: list[str] = []

    def open_next(choice: Choice, *rest: Any) -> Any:
        if choice.engine == "onnxruntime-cuda":
            assert not [one for one in held if one() is not None]
            assert not device.memory and not device.pinned
        opened.append(choice.engine)
        return load_engine(choice, *rest)

    monkeypatch.setattr(boot, "load_engine", open_next)
    if ends_at == "buffers":
        device.capacity = 10_000
    elif ends_at == "execution contexts":
        monkeypatch.setattr(trt, "most_contexts", 1)
    else:
        refusing("Error Code 2: OutOfMemory (no further information)")
    bundle, wanted, said = open_bundle(small_bundle), settings(tmp_path), list[str]()
    gc.disable()
    try:
        struck = dict[str, str]()
        engine, choice = warmed(*open_engine(bundle, wanted, "model", said.append, struck), bundle, wanted)
    finally:
        gc.enable()
    assert opened == ["tensorrt", "onnxruntime-cuda"]
    assert held
    assert choice.engine == "onnxruntime-cuda"
    engine.close()


def test_nor_is_a_broken_context(small_bundle: Path, tmp_path: Path, device: Device):
    add_plan(small_bundle, plan_bytes())
    device.faults["cuMemAlloc"] = CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(EngineLost):
        open_engine(open_bundle(small_bundle), settings(tmp_path, allow_cpu=True))


def test_nor_is_one_that_breaks_at_the_warm_up(small_bundle: Path, tmp_path: Path, device: Device):
    add_plan(small_bundle, plan_bytes())
    bundle, wanted = open_bundle(small_bundle), settings(tmp_path, allow_cpu=True)
    opened = open_engine(bundle, wanted)
    device.faults["cuMemcpyHtoDAsync"] = CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(EngineLost):
        warmed(*opened, bundle, wanted)


def test_below_the_last_step_nothing_is_looked_for(small_bundle: Path, tmp_path: Path):
    (small_bundle / "graphs/model/fp32.onnx").write_bytes(b"no graph")
    write_manifest(small_bundle, open_bundle(small_bundle).manifest)
    with pytest.raises(EngineError, match=r"ONNX Runtime .* cannot load fp32\.onnx"):
        open_engine(open_bundle(small_bundle), settings(tmp_path, allow_cpu=True), say=pytest.fail)


def test_onnx_runtime_that_does_not_load_cuda(small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The CPU build, taken for the other: it falls back to the CPU unasked, which is an error."""
    monkeypatch.setattr(probe, "onnxruntime_providers", lambda: ("CUDAExecutionProvider", "CPUExecutionProvider"))
    with pytest.raises(ConfigError, match=r"ONNX Runtime on CUDA: .*set ALLOW_CPU=1"):
        open_engine(open_bundle(small_bundle), settings(tmp_path))
    with pytest.raises(EngineError, match="CUDA"):
        open_engine(open_bundle(small_bundle), settings(tmp_path, engine="onnxruntime-cuda"))
    engine, choice = open_engine(open_bundle(small_bundle), settings(tmp_path, allow_cpu=True))
    assert choice.engine == "onnxruntime-cpu"
    engine.close()


BUILDS = """
import sys
from pathlib import Path
sys.path.insert(0, {repository!r})
from tests.plans import add_plan
from tests.tensorrt_double import plan_bytes
add_plan(Path(sys.argv[1]), {content}{changes})
"""


def builder(monkeypatch: pytest.MonkeyPatch, folder: Path, content: str = "plan_bytes()", changes: str = "") -> None:
    script = folder / "build.py"
    repository = str(Path(__file__).parents[2])
    script.write_text(BUILDS.format(repository=repository, content=content, changes=changes))
    monkeypatch.setattr(build_plan, "BUILD_COMMAND", (sys.executable, str(script)))


def test_a_plan_is_built_once_and_found_from_then_on(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    builder(monkeypatch, tmp_path)
    wanted = settings(tmp_path, build_on_boot=True)
    for step in ("plan on the volume", "plan on the volume"):
        engine, choice = open_engine(open_bundle(small_bundle), wanted)
        assert isinstance(engine, TensorRtEngine)
        assert choice.ladder[-1].name == step
        engine.warm_up()
        engine.close()
        builder(monkeypatch, tmp_path, content="1 / 0")  # the second boot must not come here


def test_a_plan_is_built_in_the_precision_that_is_asked_for(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of two that share a volume each gets its own, and builds it once."""
    for precision in ("fp32", "bf16", "fp32", "bf16"):
        seen = list((tmp_path / "cache").rglob("*.plan"))
        builder(monkeypatch, tmp_path, changes=", precision=sys.argv[-1]")
        if len(seen) == 2:
            builder(monkeypatch, tmp_path, content="1 / 0")
        wanted = settings(tmp_path, engine="tensorrt", build_on_boot=True, precision=precision)
        engine, choice = open_engine(open_bundle(small_bundle), wanted)
        assert choice.plan is not None
        assert choice.plan.plan.precision == precision
        engine.close()


def test_a_damaged_plan_on_the_volume_is_built_again(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    builder(monkeypatch, tmp_path)
    wanted = settings(tmp_path, build_on_boot=True)
    open_engine(open_bundle(small_bundle), wanted)[0].close()
    (plan,) = (tmp_path / "cache").rglob("*.plan")
    plan.write_bytes(b"damaged")
    with pytest.raises(ConfigError, match="not the plan that its sidecar describes"):
        open_engine(open_bundle(small_bundle), replace(wanted, build_on_boot=False))
    engine, choice = open_engine(open_bundle(small_bundle), wanted)
    assert choice.ladder[-1].name == "plan on the volume"
    engine.close()


def test_code_is_taken_from_the_bundle_alone(small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No signature covers the volume, and a boot builds no plan that brings some along."""
    changes = {"content": "plan_bytes(host_code=True)", "changes": ", version_compatible=True"}
    builder(monkeypatch, tmp_path, **changes)
    bundle, wanted = open_bundle(small_bundle), settings(tmp_path, engine="tensorrt", build_on_boot=True)
    with pytest.raises(ConfigError, match="the plan that was built does not fit here"):
        open_engine(bundle, wanted)
    reason = (
        "sm_89-trt10.13.0-fp16-vc.plan: it is version-compatible, so that it brings code along, which is taken from"
    )
    with pytest.raises(ConfigError, match=f"plan on the volume: {reason} the bundle alone; remove it"):
        open_engine(bundle, replace(wanted, build_on_boot=False))
    add_plan(small_bundle, plan_bytes(host_code=True), version_compatible=True)
    engine, choice = open_engine(open_bundle(small_bundle), wanted)
    assert choice.ladder[-1].name == "version-compatible plan"
    engine.close()


@pytest.mark.parametrize("build_on_boot", [False, True])
def test_a_plan_cache_that_cannot_be_read_is_passed_over_and_said(
    small_bundle: Path, tmp_path: Path, build_on_boot: bool
):
    """As on a volume of another user, which root, who may run this, would read all the same."""
    wanted = Settings(plan_cache=tmp_path / ("x" * 300), build_on_boot=build_on_boot, allow_cpu=True)
    engine, choice = open_engine(open_bundle(small_bundle), wanted)
    assert choice.engine == "onnxruntime-cpu"
    engine.close()
    said = {step.name: step.reason for step in choice.ladder}
    assert re.fullmatch(r".*x/model-\w{64} cannot be read \(File name too long\)", said["plan on the volume"])
    assert ("cannot be kept in PLAN_CACHE=" in said["build"]) is build_on_boot


def test_a_plan_that_was_built_and_does_not_load_is_not_built_again(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    builder(monkeypatch, tmp_path, content="b'broken'")
    said: list[str] = []
    wanted = settings(tmp_path, build_on_boot=True, allow_cpu=True)
    engine, choice = open_engine(open_bundle(small_bundle), wanted, say=said.append)
    assert choice.engine == "onnxruntime-cpu"
    assert [line for line in said if "done after" in line] == [said[-2]]
    assert "does not load" in said[-1]
    engine.close()


# Plans that load and do not run

REFUSED = "IExecutionContext::enqueueV3: Error Code 1: Cask (Cask convolution execution)"


def refusing(reason: str) -> None:
    # The real module, whose types mypy knows, has no such name; the double does.
    sys.modules["tensorrt"].refuse_to_run = reason  # type: ignore[attr-defined]


def test_a_plan_that_does_not_run_is_passed_over_and_said(small_bundle: Path, tmp_path: Path, device: Device):
    add_plan(small_bundle, plan_bytes(), hardware_compatibility="ampere-plus", compute_capability="8.0")
    refusing(REFUSED)
    said: list[str] = []
    bundle, wanted, struck = open_bundle(small_bundle), settings(tmp_path, allow_cpu=True), dict[str, str]()
    opened = open_engine(bundle, wanted, say=said.append, struck=struck)
    assert isinstance(opened[0], TensorRtEngine)
    assert not said
    engine, choice = warmed(*opened, bundle, wanted, say=said.append, struck=struck)
    assert isinstance(engine, OnnxRuntimeEngine)
    assert (choice.engine, choice.ladder[1].name) == ("onnxruntime-cpu", "plan for several GPUs")
    assert REFUSED in choice.ladder[1].reason
    assert REFUSED in said[0]
    assert not device.memory
    assert not device.pinned
    engine.close()


def test_by_name_nothing_else_is_taken(small_bundle: Path, tmp_path: Path):
    add_plan(small_bundle, plan_bytes())
    refusing(REFUSED)
    bundle, wanted = open_bundle(small_bundle), settings(tmp_path, engine="tensorrt", allow_cpu=True)
    with pytest.raises(ConfigError, match="ENGINE=tensorrt cannot run here: .*Cask convolution"):
        warmed(*open_engine(bundle, wanted), bundle, wanted)


def test_one_that_runs_out_of_memory_is_no_reason_to_serve_on_the_cpu(small_bundle: Path, tmp_path: Path):
    add_plan(small_bundle, plan_bytes())
    refusing("Error Code 2: OutOfMemory (no further information)")
    bundle, wanted = open_bundle(small_bundle), settings(tmp_path, allow_cpu=True)
    with pytest.raises(ConfigError, match="OutOfMemory .*no reason to serve on the CPU; take a GPU with more memory"):
        warmed(*open_engine(bundle, wanted), bundle, wanted)


def test_a_plan_on_the_volume_without_room_is_not_built_at_every_boot(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with_onnxruntime_on_cuda(monkeypatch)
    builder(monkeypatch, tmp_path)
    bundle, wanted = open_bundle(small_bundle), settings(tmp_path, build_on_boot=True)
    open_engine(bundle, wanted)[0].close()
    builder(monkeypatch, tmp_path, content="1 / 0")  # the next build would say so
    without_room(sys.modules["tensorrt"])
    said: list[str] = []
    engine, choice = open_engine(bundle, wanted, say=said.append)
    assert choice.engine == "onnxruntime-cuda"
    assert len(said) == 1
    engine.close()


def test_a_plan_that_was_built_and_does_not_run_is_not_built_again(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    builder(monkeypatch, tmp_path)
    bundle, wanted = open_bundle(small_bundle), settings(tmp_path, build_on_boot=True, allow_cpu=True)
    struck: dict[str, str] = {}
    opened = open_engine(bundle, wanted, struck=struck)
    builder(monkeypatch, tmp_path, content="1 / 0")  # the next build would say so
    refusing(REFUSED)
    said: list[str] = []
    engine, choice = warmed(*opened, bundle, wanted, say=said.append, struck=struck)
    assert choice.engine == "onnxruntime-cpu"
    assert len(said) == 1
    engine.close()


@pytest.mark.parametrize(
    ("content", "changes", "reason"),
    [
        ("1 / 0", "", "build: the build ended with code 1: ZeroDivisionError"),
        ("plan_bytes()", ", compute_capability='9.0'", "build: the plan that was built does not fit here"),
    ],
)
def test_a_build_that_fails_leads_to_the_next_best(
    small_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: str,
    changes: str,
    reason: str,
):
    builder(monkeypatch, tmp_path, content, changes)
    said: list[str] = []
    wanted = settings(tmp_path, build_on_boot=True, allow_cpu=True)
    engine, choice = open_engine(open_bundle(small_bundle), wanted, say=said.append)
    assert choice.engine == "onnxruntime-cpu"
    assert any(line.startswith(reason) for line in said)
    engine.close()
    with pytest.raises(ConfigError, match="ENGINE=tensorrt cannot run here"):
        open_engine(open_bundle(small_bundle), replace(wanted, engine="tensorrt"))


def test_after_a_build_that_took_too_long_the_next_best_is_taken_at_once(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    builder(monkeypatch, tmp_path)
    bundle, wanted = open_bundle(small_bundle), settings(tmp_path, build_on_boot=True, allow_cpu=True)
    notes = late.notes_of(bundle, wanted.plan_cache, "auto")
    notes[0].parent.mkdir(parents=True)
    for way in range(len(late.WAYS)):
        late.note(notes, way, wanted.build_timeout_s)
    engine, choice = open_engine(bundle, wanted)
    assert choice.engine == "onnxruntime-cpu"
    (said,) = (step.reason for step in choice.ladder if step.name == "build")
    assert "raise BUILD_TIMEOUT_S, or build ahead with `python -m export plan`" in said
    engine.close()
    engine, choice = open_engine(bundle, replace(wanted, build_timeout_s=wanted.build_timeout_s + 1))
    assert choice.engine == "tensorrt"
    engine.close()


def test_what_the_boot_took_before_is_part_of_a_builds_time(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A bundle may have been fetched, and RunPod counts from the start."""
    builder(monkeypatch, tmp_path)
    bundle, wanted = open_bundle(small_bundle), settings(tmp_path, build_on_boot=True, allow_cpu=True)
    for spent_s, engine_name in ((wanted.build_timeout_s - 5, "onnxruntime-cpu"), (30, "tensorrt")):
        monkeypatch.setattr(boot, "uptime_s", lambda spent_s=spent_s: spent_s)
        engine, choice = open_engine(bundle, wanted)
        assert choice.engine == engine_name
        engine.close()


def test_the_kernel_tells_how_long_a_process_has_run():
    script = "import time; time.sleep(0.2); from engine.uptime import uptime_s; print(uptime_s())"
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 0.1 < float(done.stdout) < time.monotonic() - begin + 0.1


@pytest.mark.parametrize("has_plans", [False, True])
def test_a_build_that_fails_is_not_begun_again_for_the_next_graph(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_plans: bool
):
    """Each has a time limit of minutes, and RunPod gives a worker seven to be ready."""
    graph = open_bundle(small_bundle).manifest.graphs["model"]
    bundle = write_small_bundle(tmp_path / "two graphs", graphs={"model": graph, "other": graph})
    if has_plans:  # which load and do not run
        refusing(REFUSED)
        copytree(bundle / "graphs/model", bundle / "graphs/other")
        own = replace(graph, onnx={"fp32": "graphs/other/fp32.onnx"})
        write_manifest(bundle, replace(open_bundle(bundle).manifest, graphs={"model": graph, "other": own}))
        for name in ("model", "other"):
            add_plan(bundle, plan_bytes(), graph=name)
    builds = tmp_path / "builds"
    builder(monkeypatch, tmp_path, content=f"open({str(builds)!r}, 'a').write('one ') and 1 / 0")
    worker = handler.boot.boot(settings(tmp_path, bundle=bundle, build_on_boot=True, allow_cpu=True), Timeline())
    worker.batcher.close()
    assert {choice.engine for choice in worker.choices.values()} == {"onnxruntime-cpu"}
    assert builds.read_text() == "one "


@pytest.mark.parametrize("timeout_s", [3600.0, 0.001])
async def test_lanes_are_left_out_where_opening_them_might_count_as_hanging(
    small_bundle: Path, tmp_path: Path, timeout_s: float, capsys: pytest.CaptureFixture[str]
):
    """No other thread runs meanwhile, so that the engine's process says nothing."""
    asked = settings(tmp_path, bundle=small_bundle, engine="onnxruntime-cpu", threads=2, engine_timeout_s=timeout_s)
    worker = handler.boot.boot(asked, Timeline())
    assert isinstance(worker.batcher, Router)
    batcher = worker.batcher._batchers["model"]
    await batcher.run([row(4)] * 9)
    threads = list(batcher._lane_threads)  # the one that opens them, should there be one
    worker.batcher.close()
    assert bool(threads) == (timeout_s == 3600)
    assert len(worker.notes) == (timeout_s != 3600)
    told = "batches run one after the other: to open lanes may take "
    assert (told in capsys.readouterr().out) == (timeout_s != 3600)
    assert all(told in note and "ENGINE_TIMEOUT_S=0.001; raise that" in note for note in worker.notes)


def test_an_onnxruntime_that_does_not_load_is_no_traceback(small_bundle: Path, tmp_path: Path):
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libonnxruntime.so: cannot open shared object file')")
    environ = {**os.environ, "PYTHONPATH": str(tmp_path), "BUNDLE": str(small_bundle), "ENGINE": "onnxruntime-cpu"}
    command = [sys.executable, "-m", "handler", "--test_input", '{"input": {"text": "hello"}}']
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    said = "onnxruntime does not load: libonnxruntime.so: cannot open shared object file; install requirements/cpu.txt"
    assert done.returncode == 1
    assert f"cannot start: {said}" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_without_onnxruntime_for_cuda_the_boot_says_what_to_install(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with_onnxruntime_on_cuda(monkeypatch)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match=r"^onnxruntime does not load: .*; install requirements/all\.txt$"):
        open_engine(open_bundle(small_bundle), settings(tmp_path, engine="onnxruntime-cuda"))


def test_an_image_without_the_export_cannot_build(small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(probe, "missing_packages", lambda *names: names if "export" in names else ())
    with pytest.raises(ConfigError, match="build: this image has no `export` to build with"):
        open_engine(open_bundle(small_bundle), settings(tmp_path, engine="tensorrt", build_on_boot=True))


def test_without_a_gpu_no_plan_is_looked_at(small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    add_plan(small_bundle, plan_bytes())
    monkeypatch.setattr(probe, "gpu", lambda: None)
    facts = gather(open_bundle(small_bundle), settings(tmp_path), "model")
    assert not facts.plans
    assert not facts.struck


@pytest.mark.parametrize("engine", ["", "tensorrt", "onnxruntime-cuda", "onnxruntime-cpu", "fake", "a fork's"])
def test_importing_ahead_never_fails(engine: str):
    sys.modules["tensorrt"] = None  # type: ignore[assignment]  # restored with the doubles
    boot.import_ahead(engine)


@pytest.mark.parametrize("has_plan", [False, True])
def test_what_is_imported_ahead_is_what_will_be_taken(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_plan: bool
):
    """In an image of both engines TensorRT and its two packages are left out where no plan is to be taken."""
    if has_plan:
        add_plan(small_bundle, plan_bytes())
    imported = list[str]()
    monkeypatch.setattr(boot, "import_module", imported.append)
    wanted = settings(tmp_path, bundle=small_bundle, allow_cpu=True)
    handler.boot.boot(wanted, Timeline()).batcher.close()
    tensorrt = ["engine.backends.tensorrt", "pycuda.driver", "cuda.bindings.driver", "tensorrt"]
    assert imported == (tensorrt if has_plan else ["engine.backends.onnxruntime"])


def test_a_boot_loads_nothing_that_a_lone_worker_on_a_cpu_does_not_use(small_bundle: Path):
    code = (
        "import sys\n"
        "from handler.startup.frugal import import_less\n"
        "import_less()\n"
        "from pathlib import Path\n"
        "from engine.config import Settings\n"
        "from handler.boot import boot\n"
        "from handler.startup.timeline import Timeline\n"
        "import handler.boot\n"
        "batching, there = handler.boot._batching, set()\n"
        "handler.boot._batching = lambda *a, **k: there.update(sys.modules) or batching(*a, **k)\n"
        f"worker = boot(Settings(bundle=Path({str(small_bundle)!r}), engine='onnxruntime-cpu'), Timeline())\n"
        "import handler.processes.engine_server\n"
        "print(*sorted(set(sys.modules) - there))\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))\n"
        "worker.batcher.close()"
    )
    repository = Path(__file__).parents[2]
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=repository)
    *_, late, names = ran.stdout.splitlines()
    assert not late.split(), "imported beside the warm-up, or before it"
    loaded = set(names.split())
    assert {"onnxruntime", "numpy", "asyncio"} <= loaded
    assert not loaded & {
        "aiohttp", "argparse", "cryptography", "difflib", "dis", "email", "export", "http", "httptools", "onnx",
        "pycuda", "PIL", "random", "runpod", "shutil", "soundfile", "tempfile", "tensorrt", "transformers", "uvloop",
        "_ast", "_pickle", "_ssl",
    }  # fmt: skip
