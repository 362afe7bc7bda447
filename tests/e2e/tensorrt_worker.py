"""`python tests/e2e/tensorrt_worker.py`: the worker on a machine with an L4, of which CUDA and TensorRT are doubles.

A job that holds the token `POISON` breaks the CUDA context, as a kernel that reads beyond its memory does.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # started as a file, so its own folder stands there instead


def main() -> int:
    """Put the doubles in place, then be the worker."""
    from engine import probe
    from handler.__main__ import main as serve
    from tests.cuda_double import Device, installed
    from tests.tensorrt_double import TensorRtDouble

    probe.gpu = lambda: probe.Gpu("NVIDIA L4", (8, 9), "550.54.15", "12.4")
    probe.tensorrt_version = lambda: "10.13.0.35"
    probe.missing_packages = lambda *names: ()
    device = Device()
    with installed(device, tensorrt=TensorRtDouble(device)):
        return serve()


if __name__ == "__main__":
    sys.exit(main())
