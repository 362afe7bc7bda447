"""Configs and processors of small image models: what images.py writes.

Structures are the published ones. Weights are drawn wide (`initializer_range`), so that a wrong pixel or scale shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

SIDE = 32
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
_OWN_BACKBONE: dict[str, Any] = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None}
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


def with_backbone(stages: Sequence[str] = ("stage4",), **more: Any) -> dict[str, Any]:
    """Settings of DETR and its relatives, on a small ResNet whose `stages` they read."""
    import transformers

    backbone = transformers.ResNetConfig(**{**BACKBONE, "out_features": list(stages)})
    return {**DETR, **_OWN_BACKBONE, "backbone_config": backbone, **more}


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
    return {
        **_OWN_BACKBONE,
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


def two_towers(siglip: bool) -> dict[str, Any]:
    """Settings of CLIP and its relatives, or of SigLIP."""
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
ARCHITECTURES: dict[str, Architecture] = {
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
    "detr": ("DetrConfig", with_backbone, "DetrImageProcessor", {"size": DETR_SIZE}),
    "conditional-detr": (
        "ConditionalDetrConfig",
        with_backbone,
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
        partial(two_towers, False),
        "CLIPImageProcessor",
        {"size": {"shortest_edge": SIDE}, "crop_size": EXACT},
    ),
    "siglip": ("SiglipConfig", partial(two_towers, True), "SiglipImageProcessor", {"size": EXACT}),
}
