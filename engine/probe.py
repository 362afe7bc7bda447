"""Facts about this machine that decide how an engine runs. Rule: asks, never decides, and cannot crash the process."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

_COMPUTE_CAPABILITY_MAJOR = 75  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR in cuda.h
_COMPUTE_CAPABILITY_MINOR = 76


@dataclass(frozen=True)
class Gpu:
    """The first CUDA device."""

    name: str
    compute_capability: tuple[int, int]


def gpu() -> Gpu | None:
    """The first CUDA device, or None without a driver or a device.

    Asked through libcuda itself: without a driver, TensorRT and ONNX Runtime's CUDA provider crash the process
    instead of raising.
    """
    # Before the driver loads: kernels are then loaded when first used, which saves seconds and hundreds of MiB.
    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count, device, major, minor = (ctypes.c_int() for _ in range(4))
    name = ctypes.create_string_buffer(128)
    capability = ((major, _COMPUTE_CAPABILITY_MAJOR), (minor, _COMPUTE_CAPABILITY_MINOR))
    failed = (
        cuda.cuInit(0)
        or cuda.cuDeviceGetCount(ctypes.byref(count))
        or cuda.cuDeviceGet(ctypes.byref(device), 0)
        or cuda.cuDeviceGetName(name, len(name), device)
        or any(cuda.cuDeviceGetAttribute(ctypes.byref(value), which, device) for value, which in capability)
    )
    if failed or count.value < 1:
        return None
    return Gpu(name.value.decode(), (major.value, minor.value))


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
