"""Stage 5, the gate: the bundle must answer what the Hugging Face model answers.

The reference is the transformers model in PyTorch, float32, one text at a time and without padding, with pooling
written here a second time. The candidates are the graphs of the bundle, opened and run by the worker's own code, alone
and in mixed batches. Compared are the embeddings before normalisation, which would hide a wrong scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from engine.backends.onnxruntime import OnnxRuntimeEngine
from engine.bundle import Bundle, open_bundle
from engine.feed import run_rows
from engine.tasks import load_task
from engine.tensors import Array, Row
from export.errors import ParityFailed
from export.source import Source, quiet

MIN_COSINE = 0.99999
"""Measured on all-MiniLM-L6-v2: runs that differ only in padding agree to 1 - 4e-13; a lost token, a wrong segment or
position, or padding that is seen costs at least 2e-3 even in the text where it shows least. Deeper models are noisier,
which is why the limit is not nearer to 1."""

MAX_DIFFERENCE = 1e-3
"""Largest difference of a component, relative to the norm of the reference. Sees a wrong scale, which a cosine does
not, and a single wrong component. Of the runs above, equal ones differ by 2e-7 and wrong ones by at least 1e-2."""

INT8_MIN_COSINE = 0.98
"""An int8 model answers a little differently by design; on all-MiniLM-L6-v2 mean cosines are 0.99 and above. Below this
limit the order of near neighbours begins to change."""

INT8_MAX_DIFFERENCE = 0.1
"""As above: a lost scale would cost several times as much."""

LONGEST_CHECKED = 2048
"""Tokens. The longest text of the gate is cut here: plain attention over 8192 tokens needs gigabytes a layer."""

_BATCH_SIZES = (3, 5, 2)
_WORST_SHOWN = 10


@dataclass(frozen=True)
class _Case:
    label: str
    row: Row
    expected: Array


@dataclass(frozen=True)
class _Measure:
    label: str
    where: str
    cosine: float
    difference: float

    @property
    def badness(self) -> float:
        """Sorts the worst first; NaN is the worst."""
        worst = max(1 - self.cosine, self.difference)
        return worst if np.isfinite([self.cosine, self.difference]).all() else float("inf")


def parity(source: Source, folder: Path, min_cosine: float | None = None) -> dict[str, Any]:
    """Compare the bundle in `folder`, in its precision, with its source; the figures for parity.json.

    Raises ParityFailed with the worst rows when a row's cosine or difference is over the limit.
    """
    bundle = open_bundle(folder)
    cases = _cases(source, bundle)
    is_int8 = bundle.manifest.precision == "int8"
    limit = (INT8_MIN_COSINE if is_int8 else MIN_COSINE) if min_cosine is None else min_cosine
    max_difference = INT8_MAX_DIFFERENCE if is_int8 else MAX_DIFFERENCE
    measures = {file: list(_measure(view, cases, file)) for file, view in _views(bundle)}
    every = sorted((one for found in measures.values() for one in found), key=lambda one: -one.badness)
    failed = [one for one in every if not (one.cosine >= limit and one.difference <= max_difference)]
    if failed:
        raise ParityFailed(
            f"{len(failed)} of {len(every)} answers differ from the reference: a cosine of at least {limit:g} and a "
            f"relative difference of at most {max_difference:g} are required",
            [(one.label, one.where, f"{one.cosine:.7f}", f"{one.difference:.1e}") for one in failed[:_WORST_SHOWN]],
        )
    return {
        "reference": "transformers in PyTorch, float32, plain attention, one text at a time, without padding",
        "limits": {"min_cosine": limit, "max_relative_difference": max_difference},
        "texts": len(cases),
        "longest_text_tokens": max(case.row.length for case in cases),
        "graphs": {file: _summary(found) for file, found in measures.items()},
    }


def _summary(measures: Sequence[_Measure]) -> dict[str, Any]:
    """Rounded, so that the last bits of a sum do not make two equal bundles differ."""
    return {
        "answers": len(measures),
        "min_cosine": round(min(one.cosine for one in measures), 7),
        "mean_cosine": round(sum(one.cosine for one in measures) / len(measures), 7),
        "max_relative_difference": float(f"{max(one.difference for one in measures):.0e}"),
    }


def _views(bundle: Bundle) -> Iterator[tuple[str, Bundle]]:
    """The bundle as it is, which runs the fused graph, and as if it had the portable graph alone."""
    graph, precision = bundle.manifest.graphs["model"], bundle.manifest.precision
    if precision in graph.fused:
        yield graph.fused[precision], bundle
    if precision not in graph.onnx:
        return
    portable = replace(bundle.manifest, graphs={"model": replace(graph, fused={})})
    yield graph.onnx[precision], replace(bundle, manifest=portable)


def _measure(bundle: Bundle, cases: Sequence[_Case], file: str) -> Iterator[_Measure]:
    engine = OnnxRuntimeEngine(bundle, "model", provider="cpu")
    try:
        engine.warm_up()
        for batch in _batches(cases):
            outputs = run_rows(engine, [case.row for case in batch])
            for case, output in zip(batch, outputs, strict=True):
                where = f"{Path(file).name}, batch of {len(batch)}"
                yield _Measure(case.label, where, *_compare(case.expected, output["embedding"]))
    finally:
        engine.close()


def _batches(cases: Sequence[_Case]) -> Iterator[Sequence[_Case]]:
    """Every case alone, then in mixed batches; the longest goes with a single other one, for the memory's sake."""
    yield from ([case] for case in cases)
    *others, longest = sorted(cases, key=lambda case: case.row.length)
    yield [others[0], longest]
    others = [case for case in cases if case is not longest]
    rest = iter(others)
    for size in cycle(_BATCH_SIZES):
        batch = list(islice(rest, size))
        if not batch:
            return
        yield batch


def _compare(expected: Array, found: Array) -> tuple[float, float]:
    """Cosine, and the largest difference relative to the norm of what was expected."""
    a, b = expected.astype(np.float64), found.astype(np.float64)
    norm = np.linalg.norm(a)
    with np.errstate(all="ignore"):  # zeros and NaN fail the limits, which is what they should do
        return float(a @ b / (norm * np.linalg.norm(b))), float(np.abs(a - b).max() / norm)


def _cases(source: Source, bundle: Bundle) -> list[_Case]:
    """Rows as the worker makes them, each with the reference's answer."""
    import torch

    task = load_task(bundle)
    model = source.load_model()
    cases = []
    with quiet(), torch.inference_mode():
        for label, prompt_name, text in _texts(source, type(task).examples):
            prompt = source.prompts.get(prompt_name or source.default_prompt or "", "")
            expected = _reference(source, model, prompt + text)
            if expected is not None:
                options = {} if prompt_name is None else {"prompt_name": prompt_name}
                (row,) = task.preprocess(task.parse({"texts": [text], **options}))
                cases.append(_Case(label, row, expected))
    return cases


def _reference(source: Source, model: Any, text: str) -> Array | None:
    """The embedding of one text; None when the tokenizer makes no token of it, which the model cannot take."""
    tokens = source.tokenizer(text, truncation=True, max_length=source.max_length, return_tensors="pt")
    if tokens["input_ids"].shape[1] == 0:
        return None
    taken = signature(model.forward).parameters
    vectors = model(**{name: values for name, values in tokens.items() if name in taken}).last_hidden_state[0]
    pooled = {
        "mean": lambda: vectors.mean(0),
        "cls": lambda: vectors[0],
        "lasttoken": lambda: vectors[-1],
        "max": lambda: vectors.max(0).values,
    }[source.pooling]()
    found: Array = pooled.numpy()
    return found


def _texts(source: Source, examples: Sequence[Any]) -> Iterator[tuple[str, str | None, str]]:
    """Label, prompt's name and text: the task's examples, texts that break things, and one text a prompt."""
    for number, example in enumerate(examples):
        for text in example.get("texts", [example.get("text")]):
            yield f"example {number}: {text[:20]}", None, text
    length = min(source.max_length, LONGEST_CHECKED)
    yield "empty", None, ""
    yield "one word", None, "word"
    yield "spaces around", None, "  two spaces before, a tab and a line end after\t\n"
    yield "repeated word", None, "again " * (length // 2)
    yield "capitals and accents", None, "ÅNGSTRÖM Straße İstanbul ΟΔΥΣΣΕΥΣ naïve"
    yield "rare characters", None, "\u0001 \ufffd \u200b \u00ad \ua66e \U0001d518 \ufdfd \U000e0041 \u2603\ufe0e"
    yield "emoji", None, "\U0001f469\U0001f3fd\u200d\U0001f4bb ships \U0001f680\U0001f680 to \U0001f1eb\U0001f1f7"
    yield "CJK", None, "機械学習は楽しい。机器学习很有趣。기계 학습은 재미있다."
    yield "right to left", None, "שלום עולם, مرحبا بالعالم 123"
    yield "special tokens", None, " ".join(source.tokenizer.all_special_tokens)
    for name in source.prompts:
        yield f"prompt {name}", name, "What is the answer?"
    yield "longest", None, _longest(source, length)


def _longest(source: Source, length: int) -> str:
    """A text over the model's limit, or one of about `length` tokens where the limit is higher."""
    words = [f"{word}{number}" for number in range(length) for word in ("alpha", "beta")]
    if length == source.max_length:
        return " ".join(words)
    encoding = source.tokenizer.backend_tokenizer.encode(" ".join(words))
    return " ".join(words)[: encoding.offsets[length - 16][1]]
