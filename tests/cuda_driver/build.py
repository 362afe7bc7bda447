"""Compiles the software driver, and the environment in which a process finds it and pycuda. Needs a C compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PYCUDA = ROOT / "build/pycuda"
"""Where `make test-driver` puts pycuda."""


def compiler() -> str | None:
    """The C compiler; None where there is none."""
    return shutil.which(os.environ.get("CC", "cc"))


def compile_driver(folder: Path) -> Path:
    """Make libcuda.so.1 in `folder`, and give the folder back. Needs no CUDA."""
    command = [str(compiler()), "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-pthread"]
    sources = sorted(map(str, HERE.glob("*.c")))
    made = ["-Wl,-soname,libcuda.so.1", "-o", str(folder / "libcuda.so.1"), *sources, "-ldl"]
    subprocess.run([*command, *made], check=True)
    return folder


def environ(folder: Path, **settings: str) -> Mapping[str, str]:
    """The environment of a process that finds this driver before any other, and pycuda where it was built."""
    paths = {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": os.pathsep.join(map(str, (ROOT, PYCUDA)))}
    found = {name: os.pathsep.join(filter(None, (path, os.environ.get(name)))) for name, path in paths.items()}
    return {**os.environ, **found, "SOFTWARE_DRIVER": "1", **settings}
