"""Bundles for demo and benchmarks, exported once and kept below build/."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.weights import minilm_folder
from engine.bundle import open_bundle
from engine.errors import BundleError

BUILD = Path("build")


def exported(model: Path, out: Path, *options: str, task: str = "feature-extraction") -> Path:
    """`out` with the bundle of `model`: as it is when it is whole, else exported now, its progress shown.

    `options` are further arguments of `python -m export`.

    Raises RuntimeError when the export fails.
    """
    try:
        open_bundle(out).verify()
    except BundleError:
        shutil.rmtree(out, ignore_errors=True)
        command = [sys.executable, "-m", "export", str(model), "--task", task, "--out", str(out)]
        if subprocess.run([*command, *options]).returncode:
            raise RuntimeError("the export failed") from None
    else:
        print(f"{out} is there and whole; remove it to export it anew")
    return out


def demo_bundle(*, int8: bool = False) -> Path:
    """all-MiniLM-L6-v2, exported; with `int8`, the bundle that has int8 as well. Raises RuntimeError."""
    name, options = ("bundle-int8", ("--precision", "int8")) if int8 else ("bundle", ())
    return exported(minilm_folder(), BUILD / "demo" / name, *options)
