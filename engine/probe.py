"""Facts about this machine that decide how an engine runs. Rule: asks, never decides, and cannot crash the process."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

_COMPUTE_CAPABILITY_MAJOR = 75  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR in cuda.h
_COMPUTE_CAPABILITY_MINOR = 76

_SUM_BYTES_IN_32_BITS = frozenset((b"avx512_vnni", b"avx_vnni", b"amx_int8"))
_FIRST_PROCESSOR = 4096  # bytes: the kernel writes a processor at a time, which takes it a while where there are many


class Gpu(NamedTuple):
    """The first CUDA device."""

    name: str
    compute_capability: tuple[int, int]
    driver_version: str = ""
    """As in "550.54.15"; empty where the kernel does not tell."""
    cuda_version: str = ""
    """The newest CUDA that the driver runs, as in "12.4"."""

    @property
    def architecture(self) -> str:
        """As in "sm_89"."""
        return "sm_{}{}".format(*self.compute_capability)

    def __str__(self) -> str:
        return f"{self.name} ({self.architecture})"


def gpu() -> Gpu | None:
    """The first CUDA device, or None without a driver or a device.

    Asked through libcuda itself: without a driver, TensorRT and ONNX Runtime's CUDA provider crash the process
    instead of raising.
    """
    found = _first_device()
    return found if isinstance(found, Gpu) else None


def why_no_gpu() -> str:
    """What the driver says where it shows no device; empty without a driver."""
    found = _first_device()
    return found if isinstance(found, str) else ""


def _first_device() -> Gpu | str:
    """The first CUDA device, or what the driver says instead; empty without a driver."""
    load_kernels_lazily()
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ""
    device, major, minor, version = (ctypes.c_int() for _ in range(4))
    name = ctypes.create_string_buffer(128)
    calls: Sequence[tuple[str, Sequence[object]]] = (
        ("cuInit", (0,)),
        ("cuDeviceGet", (ctypes.byref(device), 0)),
        ("cuDeviceGetName", (name, len(name), device)),
        ("cuDriverGetVersion", (ctypes.byref(version),)),
        ("cuDeviceGetAttribute", (ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device)),
        ("cuDeviceGetAttribute", (ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, device)),
    )
    for function, arguments in calls:
        if code := cuda[function](*arguments):
            return f"{function} ends with error {code}{_name_of(cuda, code)}"
    cuda_version = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return Gpu(name.value.decode(), (major.value, minor.value), driver_version(), cuda_version)


def _name_of(cuda: ctypes.CDLL, code: int) -> str:
    """As in ", CUDA_ERROR_NO_DEVICE"; empty for a code that the driver does not know."""
    name = ctypes.c_char_p()
    cuda.cuGetErrorName(code, ctypes.byref(name))
    return f", {name.value.decode()}" if name.value else ""


def load_kernels_lazily() -> None:
    """Have kernels loaded when first used, which saves seconds and hundreds of MiB; before the driver loads."""
    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")


def wake_gpu() -> None:
    """Make the first device's primary context, in which all of this process computes, and keep it to its end.

    For a thread of its own: the driver takes its time, and other threads run meanwhile. Says nothing of what fails, for
    whoever uses the GPU then meets it again. Does nothing where the installed packages use no GPU. Call
    `load_kernels_lazily` before, since a thread must not change the environment under the others.
    """
    if gpu() is None or (tensorrt_version() is None and "CUDAExecutionProvider" not in onnxruntime_providers()):
        return
    with suppress(OSError):
        cuda, device = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
        if not cuda.cuDeviceGet(ctypes.byref(device), 0):
            cuda.cuDevicePrimaryCtxRetain(ctypes.byref(ctypes.c_void_p()), device)


def driver_version(root: Path = Path("/")) -> str:
    """Release of the NVIDIA kernel driver, as in "550.54.15"; empty without one."""
    try:
        text = (root / "proc/driver/nvidia/version").read_text()
    except OSError:
        return ""
    found = re.search(r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)?)\s", text)
    return found.group(1) if found else ""


def promised_gpu(environ: Mapping[str, str]) -> str | None:
    """What says that this machine was to have a GPU, whether CUDA finds it or not; None when nothing does."""
    count = environ.get("RUNPOD_GPU_COUNT", "").strip()
    return f"RUNPOD_GPU_COUNT={count}" if count.isdecimal() and int(count) else None


def has_device_file(root: Path = Path("/")) -> bool:
    """Whether the kernel shows an NVIDIA GPU."""
    return any((root / "dev").glob("nvidia[0-9]*"))


def tensorrt_version() -> str | None:
    """Version of the installed TensorRT, read off its files; None without one.

    Not by importing it: that loads its libraries, which takes long and may end the process.
    """
    if find_spec("tensorrt") is None:
        return None
    for package in ("tensorrt_bindings", "tensorrt"):
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            found = re.search(r"^__version__ = [\"']([\d.]+)", Path(spec.origin).read_text(encoding="utf-8"), re.M)
            if found:
                return found.group(1)
    return None


def missing_packages(*names: str) -> tuple[str, ...]:
    """Those of `names` that cannot be imported, found out without importing them."""
    return tuple(name for name in names if find_spec(name) is None)


def onnxruntime_providers() -> tuple[str, ...]:
    """Execution providers that the installed ONNX Runtime was built with, without importing it; empty without one."""
    spec = find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        return ()
    has_cuda = (Path(spec.origin).parent / "capi" / "libonnxruntime_providers_cuda.so").exists()
    return ("CUDAExecutionProvider", "CPUExecutionProvider") if has_cuda else ("CPUExecutionProvider",)


def cpu_quota(root: Path = Path("/")) -> int:
    """Whole CPUs that this process may use: the smaller of its affinity and the container's quota, at least 1.

    `os.cpu_count` shows the host's cores; a container on a 64-core host with a quota of 2 would start 64 threads that
    then take turns. Reads cgroup v2 (cpu.max) and v1 (cpu.cfs_quota_us, cpu.cfs_period_us) below `root`.
    """
    available = len(os.sched_getaffinity(0))
    cgroup = root / "sys/fs/cgroup"
    try:
        if (cgroup / "cpu.max").exists():
            quota, period = (cgroup / "cpu.max").read_text().split()[:2]
        else:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text().strip()
        if quota != "max" and int(quota) > 0:
            available = min(available, -(-int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no cgroup, or one that sets no limit
    return max(1, available)


def sums_bytes_in_16_bits(root: Path = Path("/")) -> bool:
    """Whether this is an x86-64 CPU without VNNI: two products of bytes, once added, may not fit its instructions."""
    try:
        with open(root / "proc/cpuinfo", "rb", buffering=0) as file:
            found = re.search(rb"^flags\s*:(.*)$", file.read(_FIRST_PROCESSOR), re.M)
    except OSError:
        return False
    return found is not None and _SUM_BYTES_IN_32_BITS.isdisjoint(found[1].split())


def cpus_of_threads(threads: int) -> tuple[int, ...]:
    """A CPU for each of `threads`, where this process has just as many; empty where there are more of either."""
    cpus = sorted(os.sched_getaffinity(0))
    return tuple(cpus) if threads == len(cpus) == cpu_quota() else ()


def memory_left(root: Path = Path("/")) -> int:
    """Bytes that this process may still take: what the machine has, or less where the container's limit is nearer.

    Pages of files that the kernel would drop count as free. Reads cgroup v2 and v1 below `root`.
    """
    available = _numbers(root / "proc/meminfo").get("MemAvailable:", 0) * 1024
    for limit, used, stat, droppable in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        cgroup = root / "sys/fs/cgroup"
        try:
            left = int((cgroup / limit).read_text()) - int((cgroup / used).read_text())
            return max(0, min(available, left + _numbers(cgroup / stat).get(droppable, 0)))
        except (OSError, ValueError):
            continue  # no such cgroup, or one that sets no limit
    return available


def memory_limit(root: Path = Path("/")) -> int:
    """Bytes that this process may have at most: the machine's memory, or the container's limit where that is less.

    Where neither is known, more than there can be. Reads cgroup v2 and v1 below `root`.
    """
    limit = _numbers(root / "proc/meminfo").get("MemTotal:", 1 << 50) * 1024
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # no such cgroup, or one that sets no limit
            limit = min(limit, int((root / "sys/fs/cgroup" / name).read_text()))
    return limit


def _numbers(path: Path) -> dict[str, int]:
    """The lines "name number ..." of a file of the kernel's; none where there is no such file."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}
