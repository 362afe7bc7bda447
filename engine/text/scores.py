"""From logits to scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from engine.tensors import Array


def softmax(logits: Array) -> Array:
    """Shares that sum to 1 along the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: Array = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def sigmoid(logits: Array) -> Array:
    """Each between 0 and 1, on its own."""
    scores: Array = 1 / (1 + np.exp(-logits.astype(np.float64)))  # float32 overflows, with a warning, below -88
    return scores


FUNCTIONS: Mapping[str, Callable[[Array], Array]] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
    "none": lambda logits: logits,
}
"""What a classifier's scores are made with; the pipelines' names."""


def best_labels(logits: Array, labels: Sequence[str], function: str, top_k: int) -> list[dict[str, Any]]:
    """`[{"label": ..., "score": ...}, ...]`: the `top_k` best, scored by one of FUNCTIONS; equal ones in order."""
    scores = FUNCTIONS[function](logits)
    best = (-scores).argsort(kind="stable")[:top_k]
    return [{"label": labels[index], "score": float(scores[index])} for index in best]


def default_function(problem_type: str | None, labels: int) -> str:
    """The function that a classifier's config asks for, as transformers' pipeline reads it."""
    if problem_type == "regression":
        return "none"
    return "sigmoid" if problem_type == "multi_label_classification" or labels == 1 else "softmax"
