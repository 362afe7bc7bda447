"""What the floor opens of a bundle. Rule: imports no numpy and no onnxruntime; see page_cache.py for why."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from engine.bundle import Bundle


class Files(NamedTuple):
    """What the floor opens of a bundle."""

    graph: Path
    fused: bool
    """Whether ONNX Runtime optimised the graph at export, so that doing it again only takes time."""
    tokenizer: Path
    prompt: str
    """What stands before a text of a job that names no prompt: the floor is to do the worker's work."""


def files(bundle: Bundle) -> Files:
    """The graph that loads fastest, the tokenizer, and the model's default prompt."""
    graph, precision = bundle.manifest.graphs["model"], bundle.manifest.precision
    fused = graph.fused.get(precision)
    config = bundle.manifest.task_config
    prompt = config.get("prompts", {}).get(config.get("default_prompt") or "", "")
    opened = bundle.file(fused or graph.onnx[precision])
    return Files(opened, fused is not None, bundle.file("tokenizer.json"), prompt)
