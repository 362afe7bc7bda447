"""More models on images, an architecture each, beside those of image_specs.py.

Sizes are small, structures are the published ones: shifted windows, pyramids of stages, depthwise and inverted
bottlenecks, squeeze and excitation, hybrids of convolutions and attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.zoo.case import Case
from benchmarks.zoo.image_specs import DETR_SIZE, EXACT, SIDE, VIT, Architecture, rt_detr, two_towers, with_backbone
from benchmarks.zoo.images import text_tokenizer, write_model

_PROCESSOR = ("ViTImageProcessor", {"size": EXACT})
_RANGE = {"initializer_range": 0.2}
_STAGES: dict[str, Any] = {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 2, 1], **_RANGE}
_PYRAMID: dict[str, Any] = {
    **_STAGES,
    "num_attention_heads": [1, 2, 2, 4],
    "image_size": 64,
    "mlp_ratios": [2, 2, 2, 2],
}
_LARGER = ("ViTImageProcessor", {"size": {"height": 64, "width": 64}})
_CLIP = ("CLIPImageProcessor", {"size": {"shortest_edge": SIDE}, "crop_size": EXACT})
_HGNET: dict[str, Any] = {
    "stem_channels": [3, 8, 8],
    "stage_in_channels": [8, 16, 16, 32],
    "stage_mid_channels": [8, 8, 16, 16],
    "stage_out_channels": [16, 16, 32, 32],
    "stage_num_blocks": [1, 1, 1, 1],
    "stage_numb_of_layers": [1, 1, 1, 1],
    "stage_downsample": [False, True, True, True],
    "stage_light_block": [False, False, True, True],
    "stage_kernel_size": [3, 3, 5, 5],
    "hidden_sizes": [16, 16, 32, 32],
}


def _rt_detr_v2() -> dict[str, Any]:
    return {**rt_detr(), "decoder_n_points": 2}


def _d_fine() -> dict[str, Any]:
    import transformers

    backbone = transformers.HGNetV2Config(**_HGNET, out_features=["stage2", "stage3", "stage4"])
    own = {"encoder_in_channels": [16, 32, 32], "decoder_n_points": [2, 2, 2]}
    return {**rt_detr(), **own, "backbone_config": backbone}


def _deformable() -> dict[str, Any]:
    return with_backbone(("stage3", "stage4"), num_feature_levels=2, encoder_n_points=2, decoder_n_points=2)


def _dab_detr() -> dict[str, Any]:
    settings = with_backbone()
    return {"hidden_size": settings.pop("d_model"), **settings}


ARCHITECTURES: Mapping[str, Architecture] = {
    "convnextv2": ("ConvNextV2Config", {**_STAGES, "patch_size": 2}, *_PROCESSOR),
    "swinv2": (
        "Swinv2Config",
        {"image_size": SIDE, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
        *_PROCESSOR,
    ),
    "mobilenet_v1": ("MobileNetV1Config", {"depth_multiplier": 0.25, "min_depth": 8, **_RANGE}, *_LARGER),
    "mobilenet_v2": (
        "MobileNetV2Config",
        {"depth_multiplier": 0.25, "min_depth": 8, **_RANGE},
        "MobileNetV2ImageProcessor",
        {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}},
    ),
    "mobilevit": (
        "MobileViTConfig",
        {
            "image_size": 64,
            "hidden_sizes": [16, 16, 16],
            "neck_hidden_sizes": [8, 8, 16, 16, 16, 16, 32],
            "num_attention_heads": 2,
            "output_stride": 32,
            **_RANGE,
        },
        "MobileViTImageProcessor",
        {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}},
    ),
    "mobilevitv2": (
        "MobileViTV2Config",
        {"image_size": 64, "width_multiplier": 0.25, "base_attn_unit_dims": [32, 32, 32], "n_attn_blocks": [1, 1, 1]},
        "MobileViTImageProcessor",
        {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}},
    ),
    "levit": (
        "LevitConfig",
        {
            "image_size": 64,
            "hidden_sizes": [16, 24, 32],
            "num_attention_heads": [2, 3, 4],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
            "attention_ratio": [2, 2, 2],
            "mlp_ratio": [2, 2, 2],
            **_RANGE,
        },
        "LevitImageProcessor",
        {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}},
    ),
    "poolformer": (
        "PoolFormerConfig",
        {**_STAGES, "mlp_ratio": 2.0},
        "PoolFormerImageProcessor",
        {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}, "crop_pct": 0.9},
    ),
    "regnet": (
        "RegNetConfig",
        {
            "embedding_size": 16,
            "hidden_sizes": [16, 16, 32, 32],
            "depths": [1, 1, 2, 1],
            "groups_width": 8,
            "layer_type": "y",
        },
        *_LARGER,
    ),
    "efficientnet": (
        "EfficientNetConfig",
        {
            "image_size": 64,
            "width_coefficient": 0.25,
            "depth_coefficient": 0.3,
            "depth_divisor": 8,
            "hidden_dim": 320,
            **_RANGE,
        },
        *_LARGER,
    ),
    "cvt": (
        "CvtConfig",
        {"embed_dim": [16, 32, 32], "num_heads": [1, 2, 2], "depth": [1, 2, 3], **_RANGE},
        *_LARGER,
    ),
    "pvt": ("PvtConfig", {**_PYRAMID, "depths": [1, 1, 1, 1]}, *_LARGER),
    "pvt_v2": ("PvtV2Config", {**_PYRAMID, "depths": [1, 1, 1, 1]}, *_LARGER),
    "data2vec-vision": ("Data2VecVisionConfig", {**VIT, "out_indices": [0, 1, 1, 1]}, *_PROCESSOR),
    "vit_msn": ("ViTMSNConfig", VIT, *_PROCESSOR),
    "hiera": (
        "HieraConfig",
        {
            "image_size": [64, 64],
            "embed_dim": 16,
            "depths": [1, 1, 1],
            "num_heads": [1, 2, 4],
            "embed_dim_multiplier": 2.0,
            "num_query_pool": 2,
            "masked_unit_size": [4, 4],
            **_RANGE,
        },
        *_LARGER,
    ),
    "focalnet": (
        "FocalNetConfig",
        {"image_size": 64, "embed_dim": 16, "depths": [1, 1, 1, 1], "focal_levels": [2, 2, 2, 2], **_RANGE},
        *_LARGER,
    ),
    "van": ("VanConfig", {**_STAGES, "image_size": 64, "mlp_ratios": [2, 2, 2, 2]}, *_LARGER),
    "dinov2_with_registers": (
        "Dinov2WithRegistersConfig",
        {**VIT, "image_size": 56, "num_register_tokens": 4, "layerscale_value": 1.0},
        *_PROCESSOR,
    ),
    "bit": (
        "BitConfig",
        {"embedding_size": 16, "hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1], "num_groups": 4},
        *_LARGER,
    ),
    "swiftformer": (
        "SwiftFormerConfig",
        {"depths": [1, 1, 1, 1], "embed_dims": [8, 16, 16, 32], "image_size": 64, "drop_path_rate": 0.0},
        *_LARGER,
    ),
    "ijepa": ("IJepaConfig", VIT, *_PROCESSOR),
    "rt_detr_v2": ("RTDetrV2Config", _rt_detr_v2, "RTDetrImageProcessor", {"size": {"height": 64, "width": 64}}),
    "d_fine": ("DFineConfig", _d_fine, "RTDetrImageProcessor", {"size": {"height": 64, "width": 64}}),
    "deformable_detr": ("DeformableDetrConfig", _deformable, "DeformableDetrImageProcessor", {"size": DETR_SIZE}),
    "dab-detr": ("DabDetrConfig", _dab_detr, "ConditionalDetrImageProcessor", {"size": DETR_SIZE}),
    "table-transformer": ("TableTransformerConfig", with_backbone, "DetrImageProcessor", {"size": DETR_SIZE}),
    "dinov3_vit": ("DINOv3ViTConfig", {**VIT, "num_register_tokens": 4}, *_PROCESSOR),
    "dinov3_convnext": (
        "DINOv3ConvNextConfig",
        {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1], **_RANGE},
        *_PROCESSOR,
    ),
    "siglip-classifier": ("SiglipConfig", partial(two_towers, True), "SiglipImageProcessor", {"size": EXACT}),
    "clip-classifier": ("CLIPConfig", partial(two_towers, False), *_CLIP),
    "siglip_vision_model": ("SiglipVisionConfig", VIT, "SiglipImageProcessor", {"size": EXACT}),
    "clip_vision_model": ("CLIPVisionConfig", VIT, *_CLIP),
    "aimv2_vision_model": ("Aimv2VisionConfig", VIT, *_PROCESSOR),
    "donut-swin": (
        "DonutSwinConfig",
        {"image_size": SIDE, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
        *_PROCESSOR,
    ),
    "hgnet_v2": ("HGNetV2Config", {**_HGNET, "embedding_size": 8}, *_LARGER),
    "metaclip_2": ("MetaClip2Config", partial(two_towers, False), *_CLIP),
}
# Architecture -> task, and what the row says.
_TASKS: Mapping[str, tuple[str, str]] = {
    "convnextv2": ("image-classification", "global response normalisation"),
    "swinv2": ("image-classification", "shifted windows, positions in log space"),
    "mobilenet_v1": ("image-classification", "depthwise convolutions"),
    "mobilenet_v2": ("image-segmentation", "inverted bottlenecks; the head of DeepLab"),
    "mobilevit": ("image-segmentation", "convolutions and attention; the head of DeepLab"),
    "levit": ("image-classification", "attention biased by distance, shrinking stages"),
    "poolformer": ("image-classification", "pools instead of attention"),
    "regnet": ("image-classification", "grouped convolutions, squeeze and excitation"),
    "efficientnet": ("image-classification", "squeeze and excitation"),
    "cvt": ("image-classification", "convolutions make queries and keys"),
    "pvt": ("image-classification", "keys of fewer places"),
    "pvt_v2": ("image-classification", "overlapping patches"),
    "data2vec-vision": ("image-classification", "relative positions"),
    "vit_msn": ("image-classification", ""),
    "hiera": ("image-classification", "attention inside units"),
    "focalnet": ("image-classification", "focal modulation"),
    "van": ("image-classification", "large kernels"),
    "dinov2_with_registers": ("image-feature-extraction", "four registers; positions interpolated"),
    "swiftformer": ("image-classification", "additive attention"),
    "ijepa": ("image-classification", ""),
    "rt_detr_v2": ("object-detection", "deformable attention"),
    "d_fine": ("object-detection", "boxes as distributions"),
    "deformable_detr": ("object-detection", "deformable attention on two levels"),
    "dab-detr": ("object-detection", "queries are boxes that every layer moves"),
    "table-transformer": ("object-detection", ""),
    "donut-swin": ("image-classification", "the encoder of Donut"),
    "bit": ("image-classification", "standardised weights"),
    "dinov3_vit": ("image-feature-extraction", "four registers; rotary positions"),
    "dinov3_convnext": ("image-feature-extraction", ""),
    "siglip-classifier": ("image-classification", "siglip with the head of a classifier"),
    "clip-classifier": ("image-classification", "clip with the head of a classifier"),
    "siglip_vision_model": ("image-feature-extraction", ""),
    "clip_vision_model": ("image-feature-extraction", ""),
    "aimv2_vision_model": ("image-feature-extraction", ""),
    "hgnet_v2": ("image-classification", ""),
    "metaclip_2": ("zero-shot-image-classification", ""),
    "mobilevitv2": ("image-classification", "separable attention on patches"),
}


def model(folder: Path, task: str, architecture: str) -> Path:
    """Write a small model of `architecture` for `task` to `folder`."""
    write_model(folder, task, ARCHITECTURES[architecture])
    if task == "zero-shot-image-classification":
        text_tokenizer(folder, siglip=False).save_pretrained(folder)
    return folder


MORE = [
    Case(task, name, partial(model, task=task, architecture=name), note=note) for name, (task, note) in _TASKS.items()
]
