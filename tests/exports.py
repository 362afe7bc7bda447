"""Exports in this process or one of their own, what a bundle answers, and what its model does."""

from __future__ import annotations

import json
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
MINILM = ("sentence-transformers/all-MiniLM-L6-v2", "--task", "feature-extraction")
"""What the README exports."""
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


def exported_minilm(folder: Path) -> Path:
    """The bundle of MINILM, below `folder`, by a command that finds the Hub's cache as a download leaves it."""
    from benchmarks.weights import minilm_folder

    commit = "c" * 40
    cached = folder / "hub" / "models--sentence-transformers--all-MiniLM-L6-v2"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(commit)
    (cached / "snapshots").mkdir()
    (cached / "snapshots" / commit).symlink_to(minilm_folder(), target_is_directory=True)
    out = folder / "bundle"
    done = command(*MINILM, "--out", str(out), HF_HOME=str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["model"], manifest["revision"]) == ("sentence-transformers/all-MiniLM-L6-v2", commit)
    return out


def exported_small(task: str, architecture: str, folder: Path) -> Path:
    """The bundle, below `folder`, of a model of benchmarks/zoo; of a task without a model for no `architecture`."""
    from benchmarks import zoo
    from export.__main__ import export
    from export.recipe import Recipe

    model, options = "", {}
    if architecture:
        found = [case for case in zoo.cases() if (case.task, case.architecture) == (task, architecture)]
        assert found, f"benchmarks/zoo has no {architecture} for {task}"
        model, options = str(found[0].make(folder / "model")), dict(found[0].options)
    export(Recipe(model, task, folder / "bundle", **options))
    return folder / "bundle"
