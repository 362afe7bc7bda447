"""The graph that optimum exports of a model, as peers with ONNX Runtime take it: made on demand, kept below build/."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.exported import BUILD


def optimum_graph(model: Path, root: Path = BUILD / "optimum") -> Path:
    """A folder with model.onnx, whose first output is the last hidden state, and the tokenizer's files.

    Absolute, for a worker may run elsewhere. Raises RuntimeError, with optimum's last words, when it cannot be made.
    """
    files = sorted(path for path in model.rglob("*") if path.is_file())
    told = "".join(f"{path.relative_to(model)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in files)
    folder = (root / hashlib.sha256(told.encode()).hexdigest()[:16]).absolute()
    if folder.is_dir():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".partial-") as work:
        command = [sys.executable, "-m", "optimum.exporters.onnx", "--model", str(model)]
        command += ["--task", "feature-extraction", "--library", "transformers", f"{work}/graph"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"optimum does not export {model}: {done.stderr.strip()[-300:]}")
        os.rename(f"{work}/graph", folder)
    return folder
