"""CTC models, offline: the best token of every frame is chosen in the graph, so that 4 bytes a frame leave it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from onnx import TensorProto

from export.audio import AudioExport
from export.command.said import needing
from export.errors import Refused
from export.gate.measures import Measure
from export.model_files.json_files import read_json
from export.nodes import Nodes, require_output, set_outputs

if TYPE_CHECKING:
    from engine.tensors import Array, Arrays
    from export.recipe import Recipe
    from export.source import Source
    from export.tasks.base import Layout

_TIED = 1e-3
"""Logits. Of two tokens that are as near as this, other arithmetic may choose the other one."""


class AutomaticSpeechRecognitionExport(AudioExport):
    """wav2vec2 and its relatives with a CTC head and a character vocabulary."""

    tag: ClassVar[str] = "automatic-speech-recognition"
    heads: ClassVar[tuple[str, ...]] = ("ForCTC",)
    measures: ClassVar[Sequence[Measure]] = (
        # The share of frames with the same token, those aside where two tokens are tied: text and timestamps are then
        # the same. In int8 a few frames at the edges of tokens move.
        Measure("agreement", 1.0, 0.9, at_least=True, column="same token", half_limit=0.98),
    )
    measures_of_all: ClassVar[Sequence[Measure]] = (
        # Of the text: characters that have to be changed, of those that are right.
        Measure("character_errors", 0.01, 0.1, column="characters", half_limit=0.02),
    )

    def processors(self, folder: Path, model: str, layout: Layout, recipe: Recipe) -> Mapping[str, Any]:
        """The feature extractor and the tokenizer, which must be Wav2Vec2CTCTokenizer."""
        from transformers import AutoTokenizer

        read_json(folder / "vocab.json")
        with needing(model, "tokenizer that can be loaded"):
            tokenizer = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=recipe.trust_remote_code, local_files_only=True
            )
        if type(tokenizer).__name__ != "Wav2Vec2CTCTokenizer":
            raise Refused(
                f"{model} has a {type(tokenizer).__name__}; the worker decodes as Wav2Vec2CTCTokenizer does, so choose "
                "a model with that"
            )
        return {**super().processors(folder, model, layout, recipe), "tokenizer": tokenizer}

    def head(self, graph: Any, source: Source) -> None:
        """The best token of each frame."""
        logits = require_output(graph, "logits", self.tag)
        nodes = Nodes(graph, "head")
        best = nodes.add("ArgMax", "best", logits.name, axis=-1, keepdims=0)
        nodes.add("Cast", "tokens", best, output="tokens", to=TensorProto.INT32)
        set_outputs(graph, [("tokens", "int32", ("batch", "length"))])

    def task_config(self, source: Source, outputs: Mapping[str, Sequence[int | str]]) -> dict[str, Any]:
        """Features, tokens, and how they become text."""
        tokenizer = source.tokenizer
        vocabulary = {
            "pad": tokenizer.pad_token,
            "delimiter": tokenizer.word_delimiter_token,
            "space": tokenizer.replace_word_delimiter_char,
            "lowercase": tokenizer.do_lower_case,
            "clean_up": tokenizer.clean_up_tokenization_spaces,
        }
        tokens = tokenizer.convert_ids_to_tokens(list(range(source.config.vocab_size)))
        return {**super().task_config(source, outputs), "tokens": tokens, "vocabulary": vocabulary}

    def reference(self, source: Source, model: Any, inputs: Mapping[str, Any]) -> Arrays | None:
        """The logits."""
        return {"logits": model(**inputs).logits[0].numpy()}

    def compare(self, source: Source, expected: Arrays, found: Arrays) -> Sequence[float]:
        """The share of frames with the same token."""
        logits, tokens = expected["logits"], found["tokens"]
        if len(logits) != len(tokens):
            return [0.0]
        chosen = np.take_along_axis(logits, tokens[:, None], axis=1)[:, 0]
        return [float(np.mean(chosen >= logits.max(axis=1) - _TIED))]

    def compare_all(self, source: Source, expected: Sequence[Arrays], found: Sequence[Arrays]) -> Sequence[float]:
        """Over all recordings together."""
        wrong = right = 0
        for one, other in zip(expected, found, strict=True):
            tokens = other["tokens"]
            if "logits" in one:
                best, logits = one["logits"].argmax(axis=1), one["logits"]
                chosen = np.take_along_axis(logits, tokens[:, None], axis=1)[:, 0]
                exact = np.where(chosen >= logits.max(axis=1) - _TIED, tokens, best)
            else:  # the portable graph answered
                exact = one["tokens"]
            a, b = (_characters(values, source.config.pad_token_id) for values in (exact, tokens))
            wrong, right = wrong + _edits(a, b), right + len(a)
        return [wrong / max(1, right)]


def _characters(tokens: Array, blank: int) -> list[int]:
    """Repeats made one, blanks left out: CTC's reading of the frames."""
    firsts = np.flatnonzero(np.diff(tokens, prepend=-1))
    return [int(token) for token in tokens[firsts] if token != blank]


def _edits(expected: Sequence[int], found: Sequence[int]) -> int:
    """Levenshtein's distance."""
    before = list(range(len(found) + 1))
    for row, one in enumerate(expected, 1):
        now = [row]
        for column, other in enumerate(found, 1):
            now.append(min(before[column] + 1, now[-1] + 1, before[column - 1] + (one != other)))
        before = now
    return before[-1]


TASK = AutomaticSpeechRecognitionExport()
