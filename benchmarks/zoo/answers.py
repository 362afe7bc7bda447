"""What a bundle answers to one job, beside what PyTorch answers on the same model.

PyTorch's answer is that of transformers' own pipeline, or of a few lines where there is none. It shares nothing with
the parity gate: other inputs, another attention, job in and reply out.
"""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from benchmarks.zoo.case import Case
from benchmarks.zoo.pictures import photograph
from engine.audio.example import recording
from engine.tasks import task_class

TEXT = "My brother Wolfgang works for Acme Corporation in Berlin; Paris is the capital of France. "
_LONG = TEXT * 2
"""Longer than what the exporters trace with; what is over a model's limit is cut."""
_LABELS = ["animals", "the old house"]
_QUERY = "Where does Wolfgang work?"
_TEXTS: Mapping[str, Mapping[str, Any]] = {
    "feature-extraction": {"texts": [_LONG, "a small cat"]},
    "sentence-similarity": {"source_sentence": _LONG, "sentences": [TEXT, "a small cat"]},
    "text-classification": {"texts": [_LONG, "a small cat"], "top_k": None},
    "text-ranking": {"query": _QUERY, "documents": [_LONG, "a small cat"], "raw_scores": True},
    "zero-shot-classification": {"text": TEXT, "candidate_labels": _LABELS},
    "token-classification": {"text": _LONG, "aggregation_strategy": "simple"},
    "question-answering": {"question": _QUERY, "context": _LONG},
    "fill-mask": {"text": f"Paris is the [MASK] of France. {TEXT}"},
    "sparse-encoder": {"text": _LONG, "top_k": 20, "format": "indices"},
}
_IMAGES: Mapping[str, Mapping[str, Any]] = {
    "image-classification": {},
    "image-feature-extraction": {},
    "image-text-embedding": {},
    "zero-shot-image-classification": {"candidate_labels": _LABELS},
    "object-detection": {"threshold": 0.0},
    "image-segmentation": {"mask_format": "png"},
    "depth-estimation": {"predicted_depth": "float"},
}
_SOUNDS = ("audio-classification", "automatic-speech-recognition")
_PICTURES: Mapping[str, tuple[int, int]] = {"glpn": (105, 70), "depth-anything": (90, 90)}
"""Width and height, where a processor keeps the aspect ratio and the bundle has one; 4 : 3 fits the others."""

_ON_A_CANVAS = ("detr", "conditional-detr", "dab-detr", "deformable_detr", "table-transformer")

Compare: TypeAlias = Callable[[Path, Mapping[str, Any], Any, Case], float]
"""Folder of the model, payload, reply and case -> the largest difference."""


def payload_of(case: Case) -> dict[str, Any]:
    """One job for the case's model; of a task that is not named above, the first of its examples."""
    if case.task in _TEXTS:
        return dict(_TEXTS[case.task])
    if case.task in _SOUNDS:
        return {"audio": recording(1.3)}
    if case.task in _IMAGES:
        return {"image": photograph(*_PICTURES.get(case.architecture, (640, 480))), **_IMAGES[case.task]}
    return dict(task_class(case.task).examples[0])


def gap(case: Case, folder: Path, payload: Mapping[str, Any], reply: Any) -> float:
    """How far `reply` is from PyTorch's answer: the largest difference of two numbers.

    Raises ValueError where anything but a number differs: a label, a word, an order, a length.
    """
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        return COMPARE[case.task](folder, payload, reply, case)


def difference(ours: Any, theirs: Any, where: str = "reply") -> float:
    """The largest difference of two numbers at the same place; NaN where one of two is none.

    Raises ValueError where anything else differs.
    """
    ours, theirs = (one.tolist() if hasattr(one, "tolist") else one for one in (ours, theirs))
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping) and set(ours) == set(theirs):
        return _largest(difference(ours[key], value, f"{where}.{key}") for key, value in theirs.items())
    if isinstance(theirs, list | tuple) and isinstance(ours, list | tuple) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return _largest(difference(one, other, f"{where}[{at}]") for at, (one, other) in pairs)
    if isinstance(theirs, float) and isinstance(ours, int | float):
        return abs(float(ours) - theirs)
    if type(ours) is not type(theirs) or ours != theirs:
        raise ValueError(f"{where}: {str(ours)[:200]} instead of {str(theirs)[:200]}")
    return 0.0


def _largest(found: Iterable[float]) -> float:
    """NaN where one is: `max` takes it for the largest only when it comes first."""
    values = list(found)
    return math.nan if any(map(math.isnan, values)) else max(values, default=0.0)


def _pipeline(case: Case, folder: Path, payload: Mapping[str, Any]) -> Any:
    import transformers

    options = {"use_fast": False} if "image" in payload else {}
    return transformers.pipeline(case.task, model=str(folder), device="cpu", **options)


def _picture(payload: Mapping[str, Any]) -> Any:
    from transformers.image_utils import load_image

    return load_image(payload["image"])


def _samples(payload: Mapping[str, Any]) -> Any:
    import soundfile

    return soundfile.read(io.BytesIO(base64.b64decode(payload["audio"])), dtype="float32")[0]


def _like_the_pipeline(folder: Path, payload: Mapping[str, Any], reply: Any, case: Case) -> float:
    pipeline = _pipeline(case, folder, payload)
    options = {name: value for name, value in payload.items() if name not in ("text", "texts", "image", "audio")}
    if "texts" in payload:
        return difference(reply, pipeline(payload["texts"], truncation=True, **options))
    if "audio" in payload:
        return difference(reply, pipeline(_samples(payload)))
    if "image" in payload:
        return difference(reply, pipeline(_picture(payload), **options))
    if case.task == "question-answering":
        return difference(reply, pipeline(**payload))
    text = payload["text"]
    if case.task == "fill-mask":
        text = text.replace("[MASK]", pipeline.tokenizer.mask_token)
    return difference(reply, pipeline(text, **options))


def _rows(folder: Path, auto_class: str, texts: list[Any]) -> list[Any]:
    """What the model says of each text, or pair, alone."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = getattr(transformers, auto_class).from_pretrained(folder).eval()
    if getattr(model.config, "attn_logit_softcapping", None):  # which only plain attention caps
        model.set_attn_implementation("eager")
    rows = []
    for text in texts:
        tokens = tokenizer([text], return_tensors="pt", truncation=True)
        rows.append(model(**tokens))
    return rows


def _class_of(case: Case) -> str:
    return "AutoModelForTextEncoding" if case.architecture.endswith("t5-encoder") else "AutoModel"


def _vectors(folder: Path, texts: list[str], case: Case) -> Any:
    found = [row.last_hidden_state[0].numpy() for row in _rows(folder, _class_of(case), texts)]
    last = case.options.get("pooling") == "lasttoken"
    return np.stack([vectors[-1] if last else vectors.mean(0) for vectors in found])


def _embeddings(folder: Path, payload: Mapping[str, Any], reply: Any, case: Case) -> float:
    return difference(reply["embeddings"], _vectors(folder, payload["texts"], case))


def _similarities(folder: Path, payload: Mapping[str, Any], reply: Any, case: Case) -> float:
    vectors = _vectors(folder, [payload["source_sentence"], *payload["sentences"]], case)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return difference(reply["similarities"], unit[1:] @ unit[0])


def _ranks(folder: Path, payload: Mapping[str, Any], reply: Any, case: Case) -> float:
    pairs = [(payload["query"], document) for document in payload["documents"]]
    scores = [float(row.logits[0, 0]) for row in _rows(folder, "AutoModelForSequenceClassification", pairs)]
    order = sorted(range(len(scores)), key=lambda at: -scores[at])
    return difference(
        [{"index": one["index"], "relevance_score": one["relevance_score"]} for one in reply["results"]],
        [{"index": at, "relevance_score": scores[at]} for at in order],
    )


def _weights(folder: Path, payload: Mapping[str, Any], reply: Any, case: Case) -> float:
    (row,) = _rows(folder, "AutoModelForMaskedLM", [payload["text"]])
    best = row.logits[0].relu().log1p().max(0).values.topk(payload["top_k"])
    found = reply["embedding"]
    return difference([found["indices"], found["values"]], [best.indices, best.values])


def _image_vectors(folder: Path, payload: Mapping[str, Any], reply: Any, case: Case) -> float:
    """The pooled vector of an image, relative to its largest component; of both towers' space where there are two."""
    import transformers

    processor = transformers.AutoImageProcessor.from_pretrained(folder, use_fast=False)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    pixels = processor(_picture(payload), return_tensors="pt")
    if case.task == "image-text-embedding":
        vector = model.get_image_features(**pixels)[0].numpy()
        vector = vector / np.linalg.norm(vector)
    else:
        vector = model(**pixels).pooler_output.reshape(-1).numpy()
    return difference(np.divide(reply["embedding"], np.abs(vector).max()).tolist(), vector / np.abs(vector).max())


def _objects(folder: Path, payload: Mapping[str, Any], reply: Any, case: Case) -> float:
    """Corners as parts of a thousand pixels: they are cut to whole ones, and a hair's breadth may make one of it."""
    pipeline = _pipeline(case, folder, payload)
    if case.architecture in _ON_A_CANVAS:  # of the bundle, which holds images of any aspect ratio
        pipeline.image_processor.pad_size = {"height": 64, "width": 64}
    expected = pipeline(_picture(payload), threshold=payload["threshold"])

    def relative(objects: Any) -> Any:
        return [
            {**one, "box": {name: corner / 1000 for name, corner in one["box"].items()}, "score": float(one["score"])}
            for one in objects
        ]

    return difference(relative(reply), relative(expected))


def _masks(folder: Path, payload: Mapping[str, Any], reply: Any, case: Case) -> float:
    """The same labels; the share of pixels that lie in one mask only."""
    from PIL import Image

    expected = _pipeline(case, folder, payload)(_picture(payload))
    difference([one["label"] for one in reply], [one["label"] for one in expected])
    ours = [np.asarray(Image.open(io.BytesIO(base64.b64decode(one["mask"])))) for one in reply]
    theirs = [np.asarray(one["mask"]) for one in expected]
    return max(float(np.mean(one != other)) for one, other in zip(ours, theirs, strict=True))


def _depths(folder: Path, payload: Mapping[str, Any], reply: Any, case: Case) -> float:
    """Relative to the largest depth."""
    expected = _pipeline(case, folder, payload)(_picture(payload))["predicted_depth"].numpy()
    return difference((np.array(reply["predicted_depth"]) / expected.max()).tolist(), expected / expected.max())


COMPARE: dict[str, Compare] = {
    "feature-extraction": _embeddings,
    "sentence-similarity": _similarities,
    "text-ranking": _ranks,
    "sparse-encoder": _weights,
    "image-feature-extraction": _image_vectors,
    "image-text-embedding": _image_vectors,
    "object-detection": _objects,
    "image-segmentation": _masks,
    "depth-estimation": _depths,
    **dict.fromkeys(
        (
            "text-classification",
            "zero-shot-classification",
            "token-classification",
            "question-answering",
            "fill-mask",
            "image-classification",
            "zero-shot-image-classification",
            *_SOUNDS,
        ),
        _like_the_pipeline,
    ),
}
"""By task. Models of a task that is not here are not asked: no row of docs/models.md is of it."""
