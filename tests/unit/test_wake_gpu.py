"""The driver starts beside the imports of a boot, on a stand-in for libcuda that says what it is asked."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from engine import probe
from engine.config import Settings
from engine.plans import kernel_cache
from handler.boot import boot
from handler.startup.timeline import Timeline

LIBCUDA = """
#include <stdio.h>
#include <stdlib.h>
int cuGetErrorName(int code, const char **name) { *name = code == 803 ? "CUDA_ERROR_OF_A_TEST" : 0; return !*name; }
int cuInit(unsigned flags) {
    printf("cuInit, %s\\n", getenv("CUDA_MODULE_LOADING"));
    return flags ? 1 : INIT < 0 ? 0 : INIT;
}
int cuDeviceGet(int *device, int index) { *device = 7 + index; return INIT < 0 ? 101 : 0; }
int cuDeviceGetName(char *name, int size, int device) { snprintf(name, size, "Device %d", device); return 0; }
int cuDriverGetVersion(int *version) { *version = 12040; return 0; }
int cuDeviceGetAttribute(int *value, int which, int device) { *value = which - 67; return device != 7; }
int cuDevicePrimaryCtxRetain(void **context, int device) { printf("retained of %d\\n", device); return 0; }
"""
WAKE = """
from engine import probe
probe.tensorrt_version = lambda: {tensorrt!r}
probe.onnxruntime_providers = lambda: {providers!r}
probe.load_kernels_lazily()
probe.wake_gpu()
"""


@pytest.mark.parametrize(
    ("init", "tensorrt", "providers", "asked"),
    [
        (0, "10.13.0.35", (), ["cuInit, LAZY", "retained of 7"]),
        (0, None, ("CUDAExecutionProvider",), ["cuInit, LAZY", "retained of 7"]),
        (0, None, ("CPUExecutionProvider",), ["cuInit, LAZY"]),
        (803, "10.13.0.35", (), ["cuInit, LAZY"]),
    ],
)
def test_the_primary_context_is_made_where_something_will_use_it(
    tmp_path: Path, init: int, tensorrt: str | None, providers: tuple[str, ...], asked: list[str]
):
    assert on_stand_in(tmp_path, init, WAKE.format(tensorrt=tensorrt, providers=providers)) == asked


@pytest.mark.parametrize(
    ("init", "said"),
    [
        (803, "cuInit ends with error 803, CUDA_ERROR_OF_A_TEST"),
        (9999, "cuInit ends with error 9999"),
        (-1, "cuDeviceGet ends with error 101"),
        (0, ""),
    ],
)
def test_a_driver_that_shows_no_device_says_why(tmp_path: Path, init: int, said: str):
    script = "from engine import probe; print(probe.gpu() is None, probe.why_no_gpu(), sep='; ')"
    assert f"{bool(init)}; {said}" in on_stand_in(tmp_path, init, script)


def test_what_the_driver_tells_of_the_first_device(tmp_path: Path):
    script = "from engine import probe; gpu = probe.gpu(); print(gpu, gpu.cuda_version, sep='; ')"
    assert "Device 7 (sm_89); 12.4" in on_stand_in(tmp_path, 0, script)  # 8 and 9 are attributes 75 and 76


def on_stand_in(folder: Path, init: int, script: str) -> list[str]:
    """The lines that `script` and libcuda print, where cuInit returns `init`; below 0 it starts and has no device."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is needed to build a stand-in for libcuda")
    command = ["gcc", "-shared", "-fPIC", f"-DINIT={init}", "-x", "c", "-", "-o", str(folder / "libcuda.so.1")]
    subprocess.run(command, input=LIBCUDA, text=True, check=True)
    environ = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    environ.pop("CUDA_MODULE_LOADING", None)
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("changes", "woken"),
    [({}, True), ({"engine": "fake"}, False), ({"engine": "onnxruntime-cpu"}, False), ({"build_on_boot": True}, False)],
)
def test_a_boot_wakes_the_gpu_in_a_thread_of_its_own(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], woken: bool
):
    threads: list[threading.Thread] = []
    monkeypatch.setattr(probe, "wake_gpu", lambda: threads.append(threading.current_thread()))
    boot(Settings(bundle=small_bundle, **changes), Timeline()).batcher.close()
    assert bool(threads) is woken
    assert threading.main_thread() not in threads


@pytest.fixture
def volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One without plans, on a machine with a driver and ONNX Runtime for CUDA."""
    monkeypatch.setattr(kernel_cache, "driver_version", lambda: "550.54.15")
    monkeypatch.setattr(kernel_cache, "onnxruntime_providers", lambda: ("CUDAExecutionProvider",))
    for name in ("CUDA_CACHE_PATH", "CUDA_CACHE_MAXSIZE"):
        monkeypatch.setenv(name, "")
    (tmp_path / "volume").mkdir()
    return tmp_path / "volume"


@pytest.mark.parametrize(
    ("changes", "kept"),
    [({}, True), ({"build_on_boot": True}, True), ({"engine": "fake"}, False), ({"engine": "onnxruntime-cpu"}, False)],
)
def test_a_boot_keeps_on_the_volume_what_the_driver_compiles(
    small_bundle: Path, volume: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], kept: bool
):
    seen = threading.Event()
    seen_by_driver: list[str] = []

    def wake() -> None:
        seen_by_driver.append(os.environ["CUDA_CACHE_PATH"])
        seen.set()

    monkeypatch.setattr(probe, "wake_gpu", wake)
    boot(Settings(bundle=small_bundle, plan_cache=volume / "plans", **changes), Timeline()).batcher.close()
    folder = volume / "plans/cuda-550.54.15"
    assert folder.is_dir() is kept
    assert os.environ["CUDA_CACHE_PATH"] == (str(folder) if kept else "")
    if not changes:
        assert seen.wait(10)
        assert seen_by_driver == [str(folder)]


def test_what_is_set_for_the_driver_s_cache_wins(volume: Path, monkeypatch: pytest.MonkeyPatch):
    kernel_cache.keep_kernels(volume)
    assert int(os.environ["CUDA_CACHE_MAXSIZE"]) >= 1 << 30  # older drivers keep a quarter of that
    monkeypatch.setenv("CUDA_CACHE_PATH", "")
    monkeypatch.setenv("CUDA_CACHE_MAXSIZE", "5")
    kernel_cache.keep_kernels(volume)
    assert os.environ["CUDA_CACHE_MAXSIZE"] == "5"
    monkeypatch.setenv("CUDA_CACHE_PATH", "/mine")
    kernel_cache.keep_kernels(volume)
    assert os.environ["CUDA_CACHE_PATH"] == "/mine"


@pytest.mark.parametrize("lacking", ["driver", "ONNX Runtime for CUDA", "volume", "folder"])
def test_without_a_volume_or_use_the_driver_keeps_its_own(volume: Path, monkeypatch: pytest.MonkeyPatch, lacking: str):
    plans = volume / "plans"
    if lacking == "driver":
        monkeypatch.setattr(kernel_cache, "driver_version", lambda: "")
    elif lacking == "ONNX Runtime for CUDA":
        monkeypatch.setattr(kernel_cache, "onnxruntime_providers", lambda: ("CPUExecutionProvider",))
    elif lacking == "volume":
        plans = volume / "not mounted/plans"
    else:
        plans.touch()
    kernel_cache.keep_kernels(plans)
    assert os.environ["CUDA_CACHE_PATH"] == ""
    assert not plans.is_dir()
