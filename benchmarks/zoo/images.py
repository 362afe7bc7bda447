"""Image models of many architectures with any head: seeded random weights, small processors, no network."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tokenizers

from benchmarks.zoo.case import Case, Stages, labelled, spread
from benchmarks.zoo.image_specs import ARCHITECTURES, Architecture, two_towers
from benchmarks.zoo.pictures import photograph
from engine.tasks import task_class

LABELS = ("cat", "dog", "house", "tree", "car", "boat")
TEXTS = [
    "This is a photo of a cat. a picture of two dogs in front of an old house, shapes and a test of colours",
    "London at night with its lights and cars; boats on the river, trees and a mat. Ein Foto bei Tag. 机器学习 café",
    "0 1 2 3 4 5 6 7 8 9 a b c d e f g h i j k l m n o p q r s t u v w x y z",
]

HEADS: dict[str, tuple[str, tuple[str, ...]]] = {
    "image-classification": (
        "AutoModelForImageClassification",
        ("vit", "deit", "beit", "swin", "convnext", "resnet", "dinov2"),
    ),
    "image-feature-extraction": ("AutoModel", ("vit", "deit", "beit", "swin", "convnext", "resnet", "dinov2")),
    "image-segmentation": ("AutoModelForSemanticSegmentation", ("segformer", "beit", "dpt", "upernet")),
    "depth-estimation": ("AutoModelForDepthEstimation", ("dpt", "depth-anything", "glpn")),
    "object-detection": (
        "AutoModelForObjectDetection",
        ("detr", "conditional-detr", "rt-detr", "yolos"),
    ),
    "zero-shot-image-classification": ("AutoModelForZeroShotImageClassification", ("clip", "siglip")),
    "image-text-embedding": ("AutoModelForZeroShotImageClassification", ("clip", "siglip")),
}
"""Task -> the class of its models, and architectures."""

EXPORT_SIZES: Mapping[str, tuple[int, int]] = {"yolos": (48, 64), "glpn": (64, 96)}
"""What --image-size says of architectures whose image processors leave the size open."""


def task_model(
    folder: Path, task: str, architecture: str, *, processor: Mapping[str, Any] | None = None, **config: Any
) -> Path:
    """Write a small model of `architecture` for `task` to `folder`.

    `processor` replaces settings of its image processor, `config` of its config.
    """
    write_model(folder, task, ARCHITECTURES[architecture], processor or {}, config)
    if architecture in ("clip", "siglip"):
        text_tokenizer(folder, architecture == "siglip").save_pretrained(folder)
    return folder


def write_model(
    folder: Path,
    task: str,
    architecture: Architecture,
    processor: Mapping[str, Any] = MappingProxyType({}),
    config: Mapping[str, Any] = MappingProxyType({}),
) -> Path:
    """Write a model for `task` and its image processor to `folder`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the libraries, at the import of some architectures
        return _write_model(folder, task, architecture, processor, config)


def _write_model(
    folder: Path, task: str, architecture: Architecture, processor: Mapping[str, Any], config: Mapping[str, Any]
) -> Path:
    import torch
    import transformers

    kind, settings, processor_class, processor_settings = architecture
    made = getattr(transformers, kind)(
        **{**(settings() if callable(settings) else settings), **labelled(*LABELS), **config}, architectures=[]
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = HEADS[task][0] if task in HEADS else task_class(task).auto_class  # a fork's
        model = getattr(transformers, head).from_config(made)
    _spread(model)
    model.save_pretrained(folder)
    getattr(transformers, processor_class)(**{**processor_settings, **processor}).save_pretrained(folder)
    return folder


def _spread(model: Any) -> None:
    """Statistics of batches, too, which start at zero and one."""
    import torch

    generator = spread(model)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer += 0.1 * torch.randn(buffer.shape, generator=generator)
            elif name.endswith("running_var"):
                buffer *= torch.exp(0.2 * torch.randn(buffer.shape, generator=generator))


def text_tokenizer(folder: Path, siglip: bool) -> Any:
    """CLIP's byte-level pieces between start and end; SigLIP's without a mask, padded to one length."""
    import transformers

    special = ["<|startoftext|>", "<|endoftext|>"]
    trained = tokenizers.ByteLevelBPETokenizer(lowercase=True)
    trained.train_from_iterator(TEXTS, 400, special_tokens=special, show_progress=False)
    ends = [(name, at) for at, name in enumerate(special)]
    pattern = "$A <|endoftext|>" if siglip else "<|startoftext|> $A <|endoftext|>"
    trained.post_processor = tokenizers.processors.TemplateProcessing(single=pattern, special_tokens=ends)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer,
        **dict.fromkeys(("pad_token", "eos_token"), special[1]),
        model_max_length=64 if siglip else 40,
        model_input_names=["input_ids"] if siglip else ["input_ids", "attention_mask"],
    )


CASES = [
    Case(
        task,
        architecture,
        partial(task_model, task=task, architecture=architecture),
        {"image_size": EXPORT_SIZES[architecture]} if architecture in EXPORT_SIZES else {},
    )
    for task, (_, architectures) in HEADS.items()
    for architecture in architectures
]

_VIT_TINY: dict[str, Any] = {
    "hidden_size": 192,
    "num_hidden_layers": 12,
    "num_attention_heads": 3,
    "intermediate_size": 768,
    "initializer_range": 0.02,
    "image_size": 224,
    "patch_size": 16,
}
_SEGFORMER_B0: dict[str, Any] = {
    "hidden_sizes": [32, 64, 160, 256],
    "num_attention_heads": [1, 2, 5, 8],
    "depths": [2, 2, 2, 2],
    "decoder_hidden_size": 256,
    "initializer_range": 0.02,
}
_DPT_TINY: dict[str, Any] = {
    **_VIT_TINY,
    "backbone_out_indices": [2, 5, 8, 11],
    "neck_hidden_sizes": [24, 48, 96, 96],
    "fusion_hidden_size": 32,
}


def _clip_tiny() -> dict[str, Any]:
    towers = two_towers(siglip=False)
    text = {name: value for name, value in _VIT_TINY.items() if name not in ("image_size", "patch_size")}
    return {
        "text_config": {**towers["text_config"], **text},
        "vision_config": _VIT_TINY,
        "projection_dim": 192,
    }


_DECODING = "A photograph of 640 x 480 is decoded and resized, however small the model."
_ENLARGING = "The map is enlarged to the size of the image, class by class where neighbours differ."


def _stages() -> Iterator[Stages]:
    square, image = {"size": {"height": 224, "width": 224}}, {"image": photograph()}
    crop = {"size": {"shortest_edge": 224}, "crop_size": square["size"]}
    labels = {**image, "candidate_labels": ["a cat on a mat"]}
    vit, clip = {"processor": square, **_VIT_TINY}, {"processor": crop, **_clip_tiny()}
    yolos = {"processor": {"size": {"height": 192, "width": 256}}, **_VIT_TINY, "image_size": [192, 256]}
    for task, model, architecture, settings, payload, why in (
        ("image-classification", "ViT-Tiny", "vit", vit, image, _DECODING),
        ("image-feature-extraction", "ViT-Tiny", "vit", vit, image, _DECODING),
        ("zero-shot-image-classification", "CLIP, both towers as ViT-Tiny, one label", "clip", clip, labels, _DECODING),
        ("image-text-embedding", "CLIP, both towers as ViT-Tiny", "clip", clip, image, _DECODING),
        ("object-detection", "YOLOS-Tiny at 192 x 256", "yolos", {**yolos, "num_detection_tokens": 100}, image, ""),
        (
            "image-segmentation",
            "SegFormer-B0 at 224 x 224",
            "segformer",
            {"processor": square, **_SEGFORMER_B0},
            image,
            f"{_DECODING} {_ENLARGING}",
        ),
        ("depth-estimation", "DPT on ViT-Tiny", "dpt", {"processor": square, **_DPT_TINY}, image, _DECODING),
    ):
        make = partial(task_model, task=task, architecture=architecture, **settings)
        yield Stages(task, model, make, payload, why)


STAGES = list(_stages())
