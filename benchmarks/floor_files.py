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


def files(bundle: Bundle) -> Files:
    """The graph that loads fastest, and the tokenizer."""
    graph, precision = bundle.manifest.graphs["model"], bundle.manifest.precision
    fused = graph.fused.get(precision)
    return Files(bundle.file(fused or graph.onnx[precision]), fused is not None, bundle.file("tokenizer.json"))
