"""Models that look at padding, traced so that they do not: a row's answer is that of the text alone.

transformers' own answer to a text depends on the other texts of its batch there. In front of the first token and behind
the last one these models see zeros; hooks put zeros where the padding is, and nothing else changes.
"""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export.source import Source


class _Mask:
    """The attention mask, while the model runs."""

    values: Any = None

    def on(self, values: Any) -> Any:
        """`values`, (batch, length, size), with zeros where the padding is."""
        return values if self.values is None else values * self.values[:, :, None].to(values.dtype)


def model_to_trace(source: Source) -> Any:
    """The model of `source` without padding in sight, and without a cache, which a decoder would return as outputs."""
    model = hide_padding(source.load_model())
    if getattr(model.config, "use_cache", False):
        model.config.use_cache = False
    return model


def hide_padding(model: Any) -> Any:
    """`model`, in place, without padding in sight; one that does not look at it comes back as it is."""
    hook = {"convbert": _convolutions, "esm": _shares_of_masks, "mobilebert": _trigrams}.get(model.config.model_type)
    if hook is None:
        return model
    mask, parameters = _Mask(), signature(model.forward)

    def remember(_: Any, args: Any, options: Any) -> None:
        mask.values = parameters.bind(*args, **options).arguments.get("attention_mask")

    model.register_forward_pre_hook(remember, with_kwargs=True)
    hook(model, mask)
    return model


def _trigrams(model: Any, mask: _Mask) -> None:
    """MobileBERT embeds every token with the one in front and the one behind."""
    model.base_model.embeddings.word_embeddings.register_forward_hook(lambda _, __, found: mask.on(found))


def _convolutions(model: Any, mask: _Mask) -> None:
    """ConvBERT's heads look at a window of tokens."""
    for layer in model.base_model.encoder.layer:
        heads = layer.attention.self
        heads.register_forward_pre_hook(lambda _, args: (mask.on(args[0]), *args[1:]))
        heads.conv_out_layer.register_forward_hook(lambda _, __, found: mask.on(found))


def _shares_of_masks(model: Any, mask: _Mask) -> None:
    """ESM scales embeddings by the share of masked tokens, and transformers 4.57 counts padding among all tokens."""

    def add_mask(_: Any, args: Any, options: Any) -> Any:
        return args, {**options, "attention_mask": mask.values}

    model.base_model.embeddings.register_forward_pre_hook(add_mask, with_kwargs=True)
