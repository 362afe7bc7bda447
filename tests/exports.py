"""Exports in this process or one of their own, what a bundle answers, and what its model does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.backends.onnxruntime import OnnxRuntimeEngine
from engine.batching.feed import run_rows
from engine.bundle import open_bundle
from engine.tasks import load_task
from export.tasks import TAGS, export_task

TEXTS = [
    "A quick test.",
    "",
    "  two spaces before and a line end after\n",
    "İSTANBUL, ΟΔΥΣΣΕΥΣ, Straße",
    "what is the answer " * 30,
    "机器学习 🚀 שלום",
]
Result = tuple[int, str, str]
"""Exit code, and what was printed on stdout and on stderr."""
Export = Callable[..., Result]


def pipeline_task(tag: str) -> str:
    """The name that transformers' pipelines have for the task of `tag`, which a fork may have renamed.

    Skips the test where a fork has removed it.
    """
    from transformers.pipelines import PIPELINE_REGISTRY

    if tag not in TAGS:
        pytest.skip(f"there is no {tag}")
    return tag if tag in PIPELINE_REGISTRY.get_supported_tasks() else export_task(tag).exporter_task


def refused(result: Result, code: int = 2) -> str:
    """The sentence of a refusal."""
    found, _, said = result
    assert found == code
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


def embed(bundle_path: Path, texts: list[str], **options: Any) -> Any:
    """What the worker answers, through its own code."""
    bundle = open_bundle(bundle_path)
    bundle.verify()
    task = load_task(bundle)
    engine = OnnxRuntimeEngine(bundle, threads=2)
    request = task.parse({"texts": texts, **options})
    reply = task.postprocess(request, run_rows(engine, task.preprocess(request)))
    engine.close()
    return np.array(reply["embeddings"])


def reference(model: Path, texts: list[str], **options: Any) -> Any:
    """What sentence-transformers answers."""
    from sentence_transformers import SentenceTransformer

    return np.array(SentenceTransformer(str(model), device="cpu").encode(texts, **options))


def command(*argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "export", *argv],
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environ},
        capture_output=True,
        text=True,
        timeout=120,
    )
