"""From logits to scores, and what a classifier's job may ask of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from engine.tasks import payload as check
from engine.tensors import Array

OPTIONS = ("top_k", "function_to_apply")
"""Fields of a job for a classifier, of texts, images or sound."""
_ENTRY = len('{"label":"","score":0.0},')
_MANY = 10_000
"""Entries of a reply; fewer are small to Python, however long their labels are."""


def softmax(logits: Array) -> Array:
    """Shares that sum to 1 along the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: Array = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def sigmoid(logits: Array) -> Array:
    """Each between 0 and 1, on its own; float64.

    float32, in which transformers computes, rounds all above a logit of 17 to 1, and they lose their order.
    """
    scores: Array = 1 / (1 + np.exp(-logits.astype(np.float64)))  # float32 overflows, with a warning, below -88
    return scores


FUNCTIONS: Mapping[str, Callable[[Array], Array]] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
    "none": lambda logits: logits,
}
"""What a classifier's scores are made with; the pipelines' names."""


def score_options(
    payload: dict[str, Any], labels: Sequence[str], *, function: str = "softmax", top_k: int | None = None
) -> dict[str, Any]:
    """OPTIONS, checked: `top_k`, at most as many as `labels`, and `function`, a key of FUNCTIONS.

    `function` and `top_k` are the defaults; None, or null in a job, stands for all labels. Raises InvalidInput.
    """
    functions = [function, *(name for name in FUNCTIONS if name != function)]
    asked = check.whole_number({"top_k": top_k, **payload}, "top_k", 1, 1_000_000)
    return {
        "top_k": min(len(labels), asked or len(labels)),
        "function": check.choice(payload, "function_to_apply", functions),
    }


def best_labels(logits: Array, labels: Sequence[str], options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`[{"label": ..., "score": ...}, ...]`, the best first, equal ones in order; `options` are `score_options`."""
    scores = FUNCTIONS[options["function"]](logits)
    best = (-scores).argsort(kind="stable")[: options["top_k"]]
    return [{"label": labels[index], "score": float(scores[index])} for index in best]


def refuse_many(count: int, labels: Sequence[str], most: int, ways: str) -> None:
    """Raise AnswerTooLarge where `count` lists of `most` of `labels` each are more than RunPod takes, in any case.

    To be asked before there are scores. `ways` say what makes them smaller.
    """
    if count * most > _MANY:
        shortest = sorted(map(len, labels))[:most]
        check.refuse_large_answer(count * (most * _ENTRY + sum(shortest)), ways)


def default_function(problem_type: str | None, labels: int) -> str:
    """The function that a classifier's config asks for, as transformers' pipeline reads it."""
    if problem_type == "regression":
        return "none"
    return "sigmoid" if problem_type == "multi_label_classification" or labels == 1 else "softmax"
