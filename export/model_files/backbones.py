"""A model inside a model, as DETR has one: its weights lie in the checkpoint, and it may be the timm package's."""

from __future__ import annotations

from typing import Any

from export.errors import Unavailable


def settle_backbone(config: Any, model: str) -> bool:
    """Have the backbone built empty, for weights that its own repository has are not the checkpoint's; in place.

    Returns whether `config` said otherwise. Raises Unavailable for a backbone of timm, where that is not installed: it
    needs torchvision, in the one version that fits the installed torch.
    """
    from transformers.utils import is_timm_available

    parts = [config, getattr(config, "backbone_config", None)]
    if any(getattr(part, "use_timm_backbone", False) for part in parts) and not is_timm_available():
        raise Unavailable(
            f"{model} has a backbone of the timm package, which is not installed; take the files in which it is one of "
            "transformers' own, which some models have under --revision no_timm, or install timm with the torchvision "
            "that belongs to the installed torch"
        )
    pretrained = [part for part in parts if getattr(part, "use_pretrained_backbone", False)]
    for part in pretrained:
        part.use_pretrained_backbone = False
    return bool(pretrained)
