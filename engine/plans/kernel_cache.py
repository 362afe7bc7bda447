"""Kernels that the driver compiles at a boot, kept on the volume for the boots after it, as plans are.

    PLAN_CACHE/cuda-550.54.15/      the driver's own files, of one version of it

ONNX Runtime's CUDA provider brings machine code for GPUs up to sm_80, and PTX, which the driver of a newer one
(sm_90) compiles when a kernel is first used: https://github.com/microsoft/onnxruntime/issues/10746. CUDA keeps the
result in the home folder, which ends with the container.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from engine.probe import driver_version, onnxruntime_providers

_LARGEST = 1 << 30  # bytes: the default of newer drivers, and four times that of older ones


def keep_kernels(plan_cache: Path) -> None:
    """Set CUDA_CACHE_PATH to a folder in `plan_cache`, where that is on a volume; to be called before the driver loads.

    Does nothing where it is set already, where nothing would compile kernels, or where the folder cannot be written.
    """
    version = driver_version()
    if os.environ.get("CUDA_CACHE_PATH") or not version or "CUDAExecutionProvider" not in onnxruntime_providers():
        return
    if not (plan_cache.is_dir() or plan_cache.parent.is_dir()):
        return  # no volume
    folder = plan_cache / f"cuda-{version}"  # a newer driver takes nothing of an older one's
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if os.access(folder, os.W_OK | os.X_OK):
        os.environ["CUDA_CACHE_PATH"] = str(folder)
        os.environ["CUDA_CACHE_MAXSIZE"] = os.environ.get("CUDA_CACHE_MAXSIZE") or str(_LARGEST)
