"""What a results file has to say of the machine that its figures are from."""

from __future__ import annotations

import platform
import time
from importlib import metadata
from typing import Any

from engine.probe import cpu_quota, gpu, tensorrt_version

_PACKAGES = (
    "numpy onnx onnxruntime onnxruntime-gpu pycuda cuda-python tensorrt-cu11 tensorrt-cu11-bindings tensorrt-bindings "
    "tokenizers runpod"
).split()


def machine() -> dict[str, Any]:
    """GPU, driver, versions and the day, as JSON has them."""
    found = gpu()
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "gpu": found.name if found else None,
        "compute_capability": ".".join(map(str, found.compute_capability)) if found else None,
        "driver": found.driver_version if found else None,
        "cuda": found.cuda_version if found else None,
        "tensorrt": tensorrt_version(),
        "cpus": cpu_quota(),
        "processor": _processor(),
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    with open("/proc/cpuinfo") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.processor()
