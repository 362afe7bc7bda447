import ctypes
import importlib
import os
import sys
from pathlib import Path

import onnxruntime as ort
import pytest

from engine.probe import (
    cpu_quota,
    cpus_of_threads,
    driver_version,
    gpu,
    has_device_file,
    memory_left,
    memory_limit,
    missing_packages,
    onnxruntime_providers,
    promised_gpu,
    sums_bytes_in_16_bits,
    tensorrt_version,
)

HERE = len(os.sched_getaffinity(0))


def write(root: Path, name: str, text: str) -> None:
    path = root / "sys/fs/cgroup" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("100000 100000", 1),
        ("150000 100000", 2),
        ("102400000 100000", 1024),
        ("1 100000", 1),
        ("max 100000", HERE),
        ("", HERE),
        ("x y", HERE),
    ],
)
def test_cgroup_v2(tmp_path: Path, text: str, expected: int):
    write(tmp_path, "cpu.max", text)
    assert cpu_quota(tmp_path) == min(HERE, expected)


@pytest.mark.parametrize(("quota", "expected"), [("100000", 1), ("100001", 2), ("-1", HERE)])
def test_cgroup_v1(tmp_path: Path, quota: str, expected: int):
    write(tmp_path, "cpu/cpu.cfs_quota_us", quota)
    write(tmp_path, "cpu/cpu.cfs_period_us", "100000")
    assert cpu_quota(tmp_path) == min(HERE, expected)


def test_without_cgroup_the_affinity_counts(tmp_path: Path):
    assert cpu_quota(tmp_path) == HERE


def test_a_cpu_for_each_thread_only_where_there_are_as_many():
    assert cpus_of_threads(HERE + 1) == ()
    assert cpus_of_threads(HERE) == (tuple(sorted(os.sched_getaffinity(0))) if cpu_quota() == HERE else ())


SKYLAKE = "fpu vme sse sse2 ssse3 avx avx2 avx512f avx512dq avx512cd avx512bw avx512vl arat"
ROME = "fpu vme sse sse2 ssse3 avx avx2 sha_ni clzero arat"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (SKYLAKE, True),
        (ROME, True),
        (f"{SKYLAKE} avx512_vnni", False),  # Cascade Lake, Genoa
        (f"{ROME} avx_vnni serialize", False),  # Alder Lake
        (f"{SKYLAKE} amx_bf16 amx_tile amx_int8", False),
        (f"{ROME} avx512_vnnix", True),
        ("", True),
    ],
)
def test_bytes_are_summed_in_16_bits_without_vnni(tmp_path: Path, flags: str, expected: bool):
    (tmp_path / "proc").mkdir()
    processor = (
        f"processor\t: 0\nvendor_id\t: GenuineIntel\nfpu\t\t: yes\nflags\t\t: {flags}\nvmx flags\t: avx_vnni\n\n"
    )
    (tmp_path / "proc/cpuinfo").write_text(processor * 300)
    assert sums_bytes_in_16_bits(tmp_path) == expected


@pytest.mark.parametrize(
    "text", ["processor\t: 0\nFeatures\t: fp asimd evtstrm aes asimddp\nCPU part\t: 0xd0c\n", "", None]
)
def test_no_other_cpu_is_taken_for_one_without_vnni(tmp_path: Path, text: str | None):
    if text is not None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc/cpuinfo").write_text(text)
    assert not sums_bytes_in_16_bits(tmp_path)


# Memory


def test_memory_left_is_what_the_machine_has(tmp_path: Path):
    assert memory_left(tmp_path) == 0  # no such machine
    assert memory_left() > 10_000_000
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:  900 kB\nNone\nNo: number\nMemAvailable:    500 kB\n")
    assert memory_left(tmp_path) == 500 * 1024
    write(tmp_path, "memory.max", "max")
    assert memory_left(tmp_path) == 500 * 1024


@pytest.mark.parametrize(
    ("limit", "used", "stat", "inactive"),
    [
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ],
)
def test_memory_left_to_the_container(tmp_path: Path, limit: str, used: str, stat: str, inactive: str):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemAvailable:    500 kB\n")
    write(tmp_path, limit, "300000\n")
    write(tmp_path, used, "200000\n")
    assert memory_left(tmp_path) == 100_000
    write(tmp_path, stat, f"anon 5\n{inactive} 50000\n")
    assert memory_left(tmp_path) == 150_000
    write(tmp_path, limit, "9223372036854771712\n")
    assert memory_left(tmp_path) == 500 * 1024
    write(tmp_path, limit, "100000\n")  # lowered meanwhile
    assert memory_left(tmp_path) == 0


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
def test_the_memory_that_a_process_may_have(tmp_path: Path, name: str):
    assert memory_limit(tmp_path) > 1 << 50  # nothing is known
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:  900 kB\nMemAvailable:    500 kB\n")
    assert memory_limit(tmp_path) == 900 * 1024
    for text, expected in (("max\n", 900 * 1024), ("9223372036854771712\n", 900 * 1024), ("300000\n", 300_000)):
        write(tmp_path, name, text)
        assert memory_limit(tmp_path) == expected


# The GPU and its packages


def test_the_drivers_release_is_read_off_the_kernel(tmp_path: Path):
    assert driver_version(tmp_path) == ""
    path = tmp_path / "proc/driver/nvidia/version"
    path.parent.mkdir(parents=True)
    for text, expected in (
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n", "535.104.05"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.15  Release Build\n", "550.54.15"),
        ("something else\n", ""),
    ):
        path.write_text(text)
        assert driver_version(tmp_path) == expected


def test_a_device_file_shows_a_gpu(tmp_path: Path):
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidiactl").touch()
    assert not has_device_file(tmp_path)
    (tmp_path / "dev/nvidia0").touch()
    assert has_device_file(tmp_path)


@pytest.mark.parametrize(("count", "promised"), [("1", True), ("8", True), ("0", False), ("", False), ("all", False)])
def test_runpod_says_how_many_gpus_it_gave(count: str, promised: bool):
    assert (promised_gpu({"RUNPOD_GPU_COUNT": count}) is not None) is promised
    assert promised_gpu({}) is None


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in front of all other packages."""
    for name in ("tensorrt", "tensorrt_bindings"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def package(folder: Path, name: str, text: str) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(text)
    importlib.invalidate_caches()


def test_the_version_of_tensorrt_is_read_and_not_imported(packages: Path):
    crash = "raise SystemError('imported')\n"
    package(packages, "tensorrt", f"{crash}from tensorrt_bindings import *\n")
    package(packages, "tensorrt_bindings", f'{crash}from .tensorrt import *\n\n__version__ = "10.13.0.35"\n')
    assert tensorrt_version() == "10.13.0.35"


def test_a_tensorrt_without_separate_bindings(packages: Path):
    package(packages, "tensorrt", '__version__ = "8.6.1"\n')
    assert tensorrt_version() == "8.6.1"


def test_where_no_version_of_tensorrt_is_told_there_is_none(packages: Path):
    assert tensorrt_version() is None
    (packages / "tensorrt").mkdir()  # a folder of that name, in which somebody keeps something
    assert tensorrt_version() is None
    package(packages, "tensorrt_bindings", "")
    assert tensorrt_version() is None
    (packages / "tensorrt/__init__.py").write_text("import sys\n__version__ = '8.6.1'\n")
    importlib.invalidate_caches()
    assert tensorrt_version() == "8.6.1"
    (packages / "tensorrt_bindings/__init__.py").write_text("__version__ = '10.13.0.35'\n")
    assert tensorrt_version() == "10.13.0.35"


def test_missing_packages_are_named():
    assert missing_packages("numpy", "no_such_package") == ("no_such_package",)


def test_the_build_of_onnx_runtime_is_seen_by_its_files(packages: Path, monkeypatch: pytest.MonkeyPatch):
    assert onnxruntime_providers() == tuple(name for name in ort.get_available_providers() if "Azure" not in name)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert onnxruntime_providers() == ()
    monkeypatch.delitem(sys.modules, "onnxruntime")
    package(packages, "onnxruntime", "raise SystemError('imported')\n")
    assert onnxruntime_providers() == ("CPUExecutionProvider",)
    (packages / "onnxruntime/capi").mkdir()
    (packages / "onnxruntime/capi/libonnxruntime_providers_cuda.so").touch()
    assert onnxruntime_providers() == ("CUDAExecutionProvider", "CPUExecutionProvider")


def test_without_a_driver_there_is_no_gpu():
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        assert gpu() is None
        assert os.environ["CUDA_MODULE_LOADING"] == "LAZY"
    else:
        pytest.skip("this machine has a driver")
