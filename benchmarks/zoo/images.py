"""Image models of many architectures with any head: seeded random weights, small processors, no network.

Weights are drawn wide, so that scores of labels differ clearly and a wrong pixel, position or scale shows.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import tokenizers

from benchmarks.zoo.case import Case, Stages

SIDE = 32
LABELS = ("cat", "dog", "house", "tree", "car", "boat")
TEXTS = [
    "This is a photo of a cat. a picture of two dogs in front of an old house, shapes and a test of colours",
    "London at night with its lights and cars; boats on the river, trees and a mat. Ein Foto bei Tag. 机器学习 café",
    "0 1 2 3 4 5 6 7 8 9 a b c d e f g h i j k l m n o p q r s t u v w x y z",
]
VIT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.2,
    "image_size": SIDE,
    "patch_size": 8,
}
EXACT = {"height": SIDE, "width": SIDE}
BACKBONE: dict[str, Any] = {
    "embedding_size": 16,
    "hidden_sizes": [16, 32, 32, 32],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage4"],
}
DETR: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_queries": 12,
    "init_std": 0.2,
}
DETR_SIZE = {"shortest_edge": 48, "longest_edge": 64}
_DPT: dict[str, Any] = {
    **VIT,
    "num_hidden_layers": 4,
    "backbone_out_indices": [0, 1, 2, 3],
    "neck_hidden_sizes": [8, 16, 16, 16],
    "fusion_hidden_size": 16,
    "is_hybrid": False,
    "use_batch_norm_in_fusion_residual": True,
    "use_auxiliary_head": False,
    "reassemble_factors": [4, 2, 1, 0.5],
}


def _convolutions(out_features: list[str] | None = None) -> Any:
    import transformers

    return transformers.ResNetConfig(**{**BACKBONE, "out_features": out_features or ["stage4"]})


def _with_backbone(**more: Any) -> dict[str, Any]:
    own = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None}
    return {**DETR, **own, "backbone_config": _convolutions(), **more}


def rt_detr() -> dict[str, Any]:
    """Settings of RT-DETR and its relatives."""
    import transformers

    backbone = transformers.RTDetrResNetConfig(**{**BACKBONE, "out_features": ["stage2", "stage3", "stage4"]})
    return {
        "backbone_config": backbone,
        "encoder_hidden_dim": 32,
        "encoder_in_channels": [32, 32, 32],
        "feat_strides": [8, 16, 32],
        "encoder_layers": 1,
        "encoder_ffn_dim": 32,
        "encoder_attention_heads": 4,
        "d_model": 32,
        "num_queries": 12,
        "decoder_in_channels": [32, 32, 32],
        "decoder_ffn_dim": 32,
        "decoder_layers": 2,
        "decoder_attention_heads": 4,
        "num_denoising": 0,
        "anchor_image_size": None,
        "initializer_range": 0.2,
    }


def _upernet() -> dict[str, Any]:
    import transformers

    stages = [f"stage{number}" for number in range(1, 5)]
    sizes = {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1], "initializer_range": 0.2}
    backbone = transformers.ConvNextConfig(**sizes, out_features=stages)
    own = {"backbone": None, "use_timm_backbone": False, "use_pretrained_backbone": False}
    return {
        **own,
        "backbone_config": backbone,
        "hidden_size": 16,
        "use_auxiliary_head": False,
        "initializer_range": 0.2,
    }


def _depth_anything() -> dict[str, Any]:
    import transformers

    backbone = transformers.Dinov2Config(
        **{**VIT, "num_hidden_layers": 4, "image_size": 56, "patch_size": 14},
        out_features=["stage1", "stage2", "stage3", "stage4"],
        apply_layernorm=True,
        reshape_hidden_states=False,
    )
    return {
        "backbone_config": backbone,
        "patch_size": 14,
        "reassemble_hidden_size": 32,
        "neck_hidden_sizes": [8, 16, 16, 16],
        "fusion_hidden_size": 16,
        "head_hidden_size": 8,
    }


def _two_towers(siglip: bool) -> dict[str, Any]:
    text = {name: value for name, value in VIT.items() if name not in ("image_size", "patch_size")}
    positions = 64 if siglip else 40
    vision = dict(VIT)
    if siglip:
        text["projection_size"] = 32
    tokens = {"max_position_embeddings": positions, "vocab_size": 400}
    ends = {} if siglip else {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    shared = {} if siglip else {"projection_dim": 24}
    return {"text_config": {**text, **tokens, **ends}, "vision_config": vision, **shared}


# Architecture -> config class, settings, processor class, settings.
Settings = Mapping[str, Any] | Callable[[], Mapping[str, Any]]
Architecture: TypeAlias = tuple[str, Settings, str, Mapping[str, Any]]
_ARCHITECTURES: dict[str, Architecture] = {
    "vit": ("ViTConfig", VIT, "ViTImageProcessor", {"size": EXACT}),
    "deit": ("DeiTConfig", VIT, "DeiTImageProcessor", {"size": {"height": 36, "width": 36}, "crop_size": EXACT}),
    "beit": (
        "BeitConfig",
        {**VIT, "num_hidden_layers": 4, "out_indices": [0, 1, 2, 3], "use_auxiliary_head": False},
        "BeitImageProcessor",
        {"size": {"height": 36, "width": 36}, "crop_size": EXACT},
    ),
    "swin": (
        "SwinConfig",
        {
            "image_size": SIDE,
            "patch_size": 2,
            "embed_dim": 16,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": 4,
            "initializer_range": 0.2,
        },
        "ViTImageProcessor",
        {"size": EXACT},
    ),
    "convnext": (
        "ConvNextConfig",
        {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 2, 1], "patch_size": 2, "initializer_range": 0.2},
        "ConvNextImageProcessor",
        {"size": {"shortest_edge": SIDE}, "crop_pct": 0.875},
    ),
    "resnet": (
        "ResNetConfig",
        {"embedding_size": 16, "hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 2, 1], "layer_type": "bottleneck"},
        "ConvNextImageProcessor",
        {"size": {"shortest_edge": SIDE}, "crop_pct": 0.875},
    ),
    "dinov2": (
        "Dinov2Config",
        # Trained at one size and used at another, as on the Hub: positions are interpolated.
        {**VIT, "image_size": 56, "patch_size": 8, "layerscale_value": 1.0},
        "BitImageProcessor",
        {"size": {"shortest_edge": 40}, "crop_size": EXACT},
    ),
    "segformer": (
        "SegformerConfig",
        {
            "hidden_sizes": [8, 16, 16, 32],
            "num_attention_heads": [1, 2, 2, 4],
            "depths": [1, 1, 1, 1],
            "decoder_hidden_size": 32,
            "initializer_range": 0.2,
        },
        "SegformerImageProcessor",
        {"size": {"height": 64, "width": 64}},
    ),
    "upernet": ("UperNetConfig", _upernet, "SegformerImageProcessor", {"size": {"height": 64, "width": 64}}),
    "dpt": ("DPTConfig", _DPT, "DPTImageProcessor", {"size": EXACT}),
    "depth-anything": (
        "DepthAnythingConfig",
        _depth_anything,
        "DPTImageProcessor",
        {"size": {"height": 56, "width": 56}, "keep_aspect_ratio": True, "ensure_multiple_of": 14},
    ),
    "glpn": (
        "GLPNConfig",
        {
            "hidden_sizes": [8, 16, 16, 32],
            "num_attention_heads": [1, 2, 2, 4],
            "depths": [1, 1, 1, 1],
            "decoder_hidden_size": 16,
            "initializer_range": 0.2,
        },
        "GLPNImageProcessor",
        {},
    ),
    "detr": ("DetrConfig", _with_backbone, "DetrImageProcessor", {"size": DETR_SIZE}),
    "conditional-detr": (
        "ConditionalDetrConfig",
        _with_backbone,
        "ConditionalDetrImageProcessor",
        {"size": DETR_SIZE},
    ),
    "rt-detr": ("RTDetrConfig", rt_detr, "RTDetrImageProcessor", {"size": {"height": 64, "width": 64}}),
    "yolos": (
        "YolosConfig",
        {**VIT, "image_size": [48, 64], "num_detection_tokens": 12},
        "YolosImageProcessor",
        {"size": DETR_SIZE},
    ),
    "clip": (
        "CLIPConfig",
        partial(_two_towers, False),
        "CLIPImageProcessor",
        {"size": {"shortest_edge": SIDE}, "crop_size": EXACT},
    ),
    "siglip": ("SiglipConfig", partial(_two_towers, True), "SiglipImageProcessor", {"size": EXACT}),
}

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
    write_model(folder, task, _ARCHITECTURES[architecture], processor or {}, config)
    if architecture in ("clip", "siglip"):
        _tokenizer(folder, architecture == "siglip").save_pretrained(folder)
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
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {name: at for at, name in enumerate(LABELS)}}
    made = getattr(transformers, kind)(
        **{**(settings() if callable(settings) else settings), **names, **config}, architectures=[]
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, HEADS[task][0]).from_config(made)
    _spread(model)
    model.save_pretrained(folder)
    getattr(transformers, processor_class)(**{**processor_settings, **processor}).save_pretrained(folder)
    return folder


def _spread(model: Any) -> None:
    """Biases start at zero and normalisation at one; a graph that drops them would go unseen."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer += 0.1 * torch.randn(buffer.shape, generator=generator)
            elif name.endswith("running_var"):
                buffer *= torch.exp(0.2 * torch.randn(buffer.shape, generator=generator))


def _tokenizer(folder: Path, siglip: bool) -> Any:
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
    towers = _two_towers(siglip=False)
    text = {name: value for name, value in _VIT_TINY.items() if name not in ("image_size", "patch_size")}
    return {
        "text_config": {**towers["text_config"], **text},
        "vision_config": _VIT_TINY,
        "projection_dim": 192,
    }


def photograph(width: int = 640, height: int = 480) -> str:
    """A JPEG in base64: soft shapes with some noise."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    coarse = Image.fromarray(draw.integers(0, 256, (6, 8, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    fine = draw.normal(0, 8, (height, width, 3))
    content = io.BytesIO()
    Image.fromarray(np.clip(np.asarray(coarse) + fine, 0, 255).astype(np.uint8)).save(content, "JPEG", quality=85)
    return base64.b64encode(content.getvalue()).decode()


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
