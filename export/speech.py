"""Speech models traced so that padding changes nothing: a row's answer is that of the recording alone.

transformers' models see padding in three places. Attention and pooling do where no mask is given, as for the models
whose feature extractor makes none; here the mask is made inside the graph, from the true number of samples. And a
normalisation over time, behind the first convolution of wav2vec2-base and its like, averages over the padding too; it
is replaced by one over the real frames. Last, convolutions over frames between the layers, as data2vec and conformers
have them, are given zeros where there is padding, as behind the end of a recording. Everything else between samples and
frames looks at one frame's samples only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from export.errors import Refused
from export.tracing.torch_onnx import Traced

_TRACED_SAMPLES = (9000, 6000)
"""Lengths of the two rows of the traced batch; any will do, for every axis is dynamic."""


_BETWEEN_LAYERS = ("pos_conv_embed.layers.", ".conv_module.depthwise_conv")
"""In the names of data2vec's and conformers' convolutions over frames, whose input has been through a layer."""


class _Lengths:
    """The true number of samples of every row, while the model runs."""

    samples: Tensor

    def valid(self, frames: Any, field: int, stride: int) -> Tensor:
        """Which of `frames` frames of each row are made of real samples; shape (batch, frames)."""
        count = torch.div(self.samples - field, stride, rounding_mode="trunc") + 1
        return torch.arange(frames, device=count.device)[None, :] < count[:, None]


class _NormOverRealFrames(nn.Module):
    """GroupNorm with a group a channel, over the frames that are not padding. Input: (batch, channels, frames)."""

    def __init__(self, norm: nn.GroupNorm, lengths: _Lengths, field: int, stride: int) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self._lengths, self._field, self._stride = lengths, field, stride

    def forward(self, values: Tensor) -> Tensor:
        real = self._lengths.valid(values.shape[2], self._field, self._stride)[:, None, :].to(values.dtype)
        count = real.sum(2, keepdim=True)
        centred = values - (values * real).sum(2, keepdim=True) / count
        variance = (centred * centred * real).sum(2, keepdim=True) / count
        return centred * torch.rsqrt(variance + self.eps) * self.weight[:, None] + self.bias[:, None]


class _Padded(nn.Module):
    """The model with the true lengths as a second input."""

    def __init__(self, model: Any, frame: tuple[int, int]) -> None:
        super().__init__()
        self.model = model
        self._lengths = _Lengths()
        config, convolutions = model.config, model.base_model.feature_extractor.conv_layers
        for layer in convolutions:
            if isinstance(getattr(layer, "layer_norm", None), nn.GroupNorm):
                if layer is not convolutions[0] or layer.layer_norm.num_groups != layer.layer_norm.num_channels:
                    raise Refused(
                        "the model normalises over time in a place that the worker does not know; choose another model"
                    )
                field, stride = config.conv_kernel[0], config.conv_stride[0]
                layer.layer_norm = _NormOverRealFrames(layer.layer_norm, self._lengths, field, stride)
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv1d) and any(part in name for part in _BETWEEN_LAYERS):
                module.register_forward_pre_hook(lambda _, values: (self._real(values[0], frame),))
            if hasattr(module, "_get_feature_vector_attention_mask"):
                module._get_feature_vector_attention_mask = lambda frames, *_, **__: self._lengths.valid(frames, *frame)

    def _real(self, values: Tensor, frame: tuple[int, int]) -> Tensor:
        """`values`, (batch, channels, frames), with zeros where there is padding."""
        return values * self._lengths.valid(values.shape[2], *frame)[:, None, :].to(values.dtype)

    def forward(self, input_values: Tensor, input_length: Tensor) -> dict[str, Tensor]:
        self._lengths.samples = input_length
        # That there is a mask is all that the model itself looks at.
        return {"logits": self.model(input_values, attention_mask=input_length).logits}


def with_lengths(model: Any, frame: tuple[int, int]) -> Traced:
    """`model`, a CTC or classification model, with the true lengths as an input. Raises Refused.

    Inputs: input_values (batch, samples) and input_length (batch). Output: logits.
    """
    for module in model.modules():
        if nn.utils.parametrize.is_parametrized(module):  # weight normalisation, which need not be done at every run
            for name in list(module.parametrizations):
                nn.utils.parametrize.remove_parametrizations(module, name)
    longest, shorter = (count + frame[0] for count in _TRACED_SAMPLES)
    lengths = torch.tensor([longest, shorter], dtype=torch.int32)
    other = (torch.randn(1, shorter), torch.tensor([shorter - 1000], dtype=torch.int32))
    return Traced(
        _Padded(model, frame).eval(),
        (
            ("input_values", "float32", ("batch", "samples"), torch.randn(2, longest)),
            ("input_length", "int32", ("batch",), lengths),
        ),
        (other,),
    )
