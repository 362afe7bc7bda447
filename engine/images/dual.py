"""Models with two encoders that meet in one space of vectors (CLIP, SigLIP): a graph for images, a graph for texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from engine.config import Limits
from engine.images.task import ImageTask
from engine.text.tokens import Tokens
from engine.text.words import Plain

if TYPE_CHECKING:
    from engine.bundle import Bundle
    from engine.tensors import Row, TensorSpec

IMAGE, TEXT = "image", "text"
"""The graphs."""


class DualTask(ImageTask):
    """`task_config` of the manifest: image (engine/images/geometry.py), max_length (tokens of a text)."""

    graph: ClassVar[str] = IMAGE

    def __init__(self, config: Mapping[str, Any], limits: Limits, tokens: Tokens, text_inputs: Sequence[TensorSpec]):
        super().__init__(config, limits)
        self.tokens = tokens
        self._text_inputs = text_inputs

    @classmethod
    def from_bundle(cls, bundle: Bundle, limits: Limits) -> Self:
        """Read the tokenizer and the task_config."""
        inputs = bundle.manifest.graphs[TEXT].inputs
        task = cls(bundle.manifest.task_config, limits, Tokens(bundle, graph=TEXT), inputs)
        return task.answered_by(bundle)

    def text_rows(self, texts: Sequence[str], check: Callable[[], None]) -> list[Row]:
        """A row a text; what is longer than the model takes is cut. `check` is that of `Tokens.encode`."""
        return [self._text_row(encoding) for encoding in self.tokens.encode(texts, check)]

    def _text_row(self, encoding: Plain) -> Row:
        row = self.tokens.row(encoding)
        if self._text_inputs[0].length_axis is not None:
            return row
        # SigLIP sees padding: it was trained on texts of one length, and reads the last place, whatever is there.
        feeds = {spec.name: np.full(self.tokens.max_length, spec.pad, np.int32) for spec in self._text_inputs}
        for name, values in feeds.items():
            values[: len(row.feeds[name])] = row.feeds[name]
        return replace(row, feeds=feeds, length=1)
