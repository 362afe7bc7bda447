"""Rows of `--parity-data`, of every task: the model in PyTorch is what they are compared with, not a graph."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks import zoo
from benchmarks.zoo.pictures import photograph
from engine.audio.example import recording
from engine.bundle import open_bundle
from engine.tasks import load_task, task_class
from export.__main__ import main
from export.gate.cases import cases_of
from export.load import load
from export.recipe import Recipe
from export.tasks import TAGS, export_task

_LABELS = ["an animal", "a house"]
_IMAGE = photograph(64, 48)
_IMAGES: list[Mapping[str, Any]] = [{"image": _IMAGE}, {"images": [_IMAGE, photograph(40, 60)]}, {"inputs": _IMAGE}]
_TEXTS: list[Mapping[str, Any]] = [{"text": "my own text"}, {"texts": ["two", "rows"]}, {"inputs": "one more"}]
_SOUNDS: list[Mapping[str, Any]] = [{"audio": recording(0.7)}, {"audios": [recording(0.2), recording(0.4)]}]
PAYLOADS: dict[str, list[Mapping[str, Any]]] = {
    "audio-classification": _SOUNDS,
    "automatic-speech-recognition": [*_SOUNDS, {"audio": recording(1.5), "chunk_length_s": 0.5}],
    "depth-estimation": _IMAGES,
    "feature-extraction": _TEXTS[:2],
    "fill-mask": [{"text": "[MASK] and [MASK]"}, {"text": "a [MASK]", "targets": ["cat", "the"]}],
    "image-classification": _IMAGES,
    "image-feature-extraction": _IMAGES,
    "image-segmentation": _IMAGES,
    "image-text-embedding": [*_IMAGES, *_TEXTS[:2]],
    "object-detection": _IMAGES,
    "question-answering": [{"question": "Where?", "context": "In the old house in Berlin. " * 20}],
    "sentence-similarity": [{"source_sentence": "one", "sentences": ["another", "a third"]}],
    "sparse-encoder": _TEXTS[:2],
    "text-classification": _TEXTS,
    "text-ranking": [{"query": "Where?", "documents": ["here", "there"]}],
    "token-classification": _TEXTS,
    "zero-shot-classification": [{"text": "a small cat", "candidate_labels": _LABELS}],
    "zero-shot-image-classification": [{**one, "candidate_labels": _LABELS} for one in _IMAGES],
}
"""A line of such a file each; every way in which a task makes rows. A fork's tasks take the first of their examples."""
for _tag in TAGS:
    if export_task(_tag).has_model:
        PAYLOADS.setdefault(_tag, [task_class(_tag).examples[0]])
_QUICK = ("audio-classification", "fill-mask")
"""The two that make rows of their own kind; the others take a second or more each, in `make test-zoo`."""


@pytest.mark.filterwarnings("ignore")  # the tracers' own, which differ from architecture to architecture
@pytest.mark.parametrize(
    "tag", [pytest.param(tag, marks=() if tag in _QUICK else (pytest.mark.zoo,)) for tag in sorted(PAYLOADS)]
)
def test_own_rows_are_compared_with_pytorch(tag: str, tmp_path: Path):
    case = next(case for case in zoo.cases() if case.task == tag)
    model, out = case.make(tmp_path / "model"), tmp_path / "bundle"
    data = tmp_path / "mine.jsonl"
    data.write_text("".join(json.dumps(one) + "\n" for one in PAYLOADS[tag]))
    size = [f"--image-size={'x'.join(map(str, case.options['image_size']))}"] if case.options else []
    argv = [str(model), "--task", tag, "--parity-data", str(data), *size]
    assert main([*argv, "--out", str(out)]) == 0
    figures = json.loads((out / "parity.json").read_text())
    assert "of_these_compared_with_fp32.onnx" not in figures, f"`inputs_of` of the export of {tag} makes none of these"
    bundle = open_bundle(out)
    task = load_task(bundle)
    payloads = [(f"mine {number}", payload) for number, payload in enumerate(PAYLOADS[tag])]
    cases = cases_of(load(Recipe(str(model), tag, tmp_path / "none", **case.options)), bundle, payloads)
    assert figures[export_task(tag).unit] == len(cases)
    of_label = Counter(one.label for one in cases)
    assert [of_label[label] for label, _ in payloads] == [len(task.preprocess(task.parse(one))) for _, one in payloads]
