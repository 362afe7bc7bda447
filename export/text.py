"""What the tasks on texts have in common offline: a fast tokenizer, int32 tokens, texts that break things."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from inspect import signature
from itertools import cycle, islice
from pathlib import Path
from typing import Any, ClassVar

from onnx import helper

from engine.tensors import Arrays, Row
from export.errors import Refused
from export.gate.rare_tokens import added_texts, rare_texts
from export.lengths import described_length, longest_row, trained_length
from export.nodes import Axes, Nodes
from export.recipe import Recipe
from export.source import Source
from export.tasks.base import ExportTask, Layout, Probe
from export.tokenizer.fast import fast_tokenizer, lowercase, tokenizer_file
from export.tokenizer.vocabulary import pad_of, special_text

LONGEST_CHECKED = 2048
"""Tokens. The longest text of the gate is cut here: plain attention over 8192 tokens needs gigabytes a layer."""

_SHORTEST_WORD = 3  # shorter tokens are mostly pieces of words
_MOST_WORDS = 90
_SAMPLES = 500
_FREQUENT = 200

TOKENS: Axes = ("batch", "length")
_SEGMENTS = "token_type_ids"


class TextExport(ExportTask):
    """A task whose rows are tokens."""

    options: ClassVar[tuple[str, ...]] = ("max_length",)
    reads: ClassVar[str] = "text"
    unit: ClassVar[str] = "texts"
    length_unit: ClassVar[str] = "tokens"

    def check(self, model: str, config: Any) -> None:
        """Refuse attention that no graph repeats."""
        if getattr(config, "attention_type", None) == "block_sparse":
            raise Refused(
                f"{model} attends to blocks drawn at random where a text is long, and to everything once it has met a "
                "short one; set attention_type to original_full in its config.json"
            )
        said = _unknown_attention(config)
        if said:
            raise Refused(
                f"{model}'s config.json has {said}, which transformers' {config.model_type} takes no notice of: its "
                "tokens would look back alone, and answer with other numbers than the model's; choose one whose own "
                "code looks both ways (--trust-remote-code)"
            )

    def input_axes(self) -> Mapping[str, tuple[str, Axes]]:
        """Tokens, their mask, and segments where the model tells them apart."""
        return dict.fromkeys(("input_ids", "attention_mask", _SEGMENTS), ("int32", TOKENS))

    def adapt(self, nodes: Nodes, name: str, traced_dtype: int, source: Source) -> None:
        """A cast; in place of segments that the model's tokenizer does not make, the zeros that transformers takes."""
        if name != _SEGMENTS or name in source.tokenizer.model_input_names:
            super().adapt(nodes, name, traced_dtype, source)
            return
        nodes.graph.input.remove(next(tensor for tensor in nodes.graph.input if tensor.name == name))
        zero = helper.make_tensor("zero", traced_dtype, [1], [0])
        nodes.add("ConstantOfShape", name, nodes.add("Shape", "shape_of_segments", "input_ids"), value=zero)

    def processors(self, folder: Path, model: str, layout: Layout, recipe: Recipe) -> Mapping[str, Any]:
        """The tokenizer; it lowercases where sentence-transformers' files ask for it."""
        tokenizer = fast_tokenizer(folder, model, recipe)
        if layout.settings.get("lowercase"):
            lowercase(tokenizer.backend_tokenizer)
        return {"tokenizer": tokenizer}

    def max_length(
        self, recipe: Recipe, layout: Layout, processors: Mapping[str, Any], config: Any, positions: int | None
    ) -> int:
        """Tokens of the longest row."""
        of_files = layout.settings.get("max_length") or min(
            processors["tokenizer"].model_max_length, trained_length(config)
        )
        return longest_row(recipe.max_length, of_files, positions, processors["tokenizer"])

    def describe(self, source: Source) -> str:
        """Architecture and length."""
        return f"{source.architecture}, {described_length(source)}"

    def files(self, source: Source) -> Mapping[str, str]:
        """The tokenizer."""
        return {"tokenizer.json": tokenizer_file(source)}

    def pads(self, source: Source) -> Mapping[str, int]:
        """The model's own, by which heads of decoders find the last token, whatever the tokenizer pads with.

        Where a model has none, or none that it can look up, any will do, for the mask hides it.
        """
        return {"input_ids": pad_of(source.tokenizer, source.config), _SEGMENTS: source.tokenizer.pad_token_type_id}

    def task_config(self, source: Source, outputs: Mapping[str, Sequence[int | str]]) -> dict[str, Any]:
        """The length that rows are cut at."""
        return {"max_length": source.max_length}

    def probes(self, source: Source) -> Iterator[Probe]:
        """One probe a text: the online side's examples, and texts that break things."""
        for label, text in texts(source, self.online.examples):
            yield self.probe(source, label, text)

    def inputs_of(self, source: Source, payload: Any, rows: Sequence[Row]) -> Sequence[Mapping[str, Any]] | None:
        """Rows of tokens are what the model reads; the probes show that they are transformers' own."""
        if any(not set(row.feeds) <= set(self.input_axes()) for row in rows):
            return None
        return [row_tokens(row) for row in rows]

    def probe(self, source: Source, label: str, text: str) -> Probe:
        """`text` as a payload, and as transformers tokenizes it; one row each."""
        return Probe(label, {"text": text}, [tokens_of(source, text)])


def _unknown_attention(config: Any) -> str:
    """What `config` asks of attention that the class in transformers 4.57 does not know, where it is that class."""
    asked = {
        "is_causal false": getattr(config, "is_causal", None) is False,  # from transformers 5.2 on
        "use_bidirectional_attention true": getattr(config, "use_bidirectional_attention", None) is True,
    }
    if not any(asked.values()) or getattr(config, "auto_map", None):
        return ""
    from transformers.models.auto import modeling_auto as auto

    looks_back = config.model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if not looks_back or config.model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return ""
    if config.model_type.startswith("gemma3"):
        asked["use_bidirectional_attention true"] = False
    return next((words for words, is_asked in asked.items() if is_asked), "")


def prompt_of(source: Source) -> str:
    """What stands before a text for which a job names no prompt, of the tasks that have some."""
    prompts, default = source.settings["prompts"], source.settings["default_prompt"]
    return str(prompts.get(default or "", ""))


def tokens_of(source: Source, text: str, pair: str | None = None, **options: Any) -> Mapping[str, Any]:
    """One text, or a pair, as transformers' tokenizer makes it for the model: tensors with a batch of one."""
    options = {"truncation": True, "max_length": source.max_length, **options}
    # As a list: alone, transformers takes an empty second text for none.
    found: Mapping[str, Any] = source.tokenizer(
        [text if pair is None else (text, pair)], return_tensors="pt", **options
    )
    return found


def row_tokens(row: Row) -> Mapping[str, Any]:
    """What the worker tokenized, for the model in PyTorch: int64 tensors with a batch of one.

    Numbers that a task has beside its text stay what they are.
    """
    import torch

    rows = {name: values[None] for name, values in row.feeds.items()}
    return {
        name: torch.from_numpy(values if values.dtype.kind == "f" else values.astype("int64"))
        for name, values in rows.items()
    }


def run(model: Any, inputs: Mapping[str, Any], *outputs: str) -> Arrays | None:
    """What `model` answers to one row, the named outputs without their batch axis.

    None when the tokenizer makes no token of a text, which the model cannot take.
    """
    if inputs["input_ids"].shape[1] == 0:
        return None
    taken = signature(model.forward).parameters
    answer = model(**{name: values for name, values in inputs.items() if name in taken})
    return {name: answer[name][0].numpy() for name in outputs}


def texts(source: Source, examples: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """Label and text: those of a task's examples, texts that break things, and the longest last."""
    for number, example in enumerate(examples):
        for text in [example["text"]] if "text" in example else example.get("texts", []):
            yield f"example {number}: {text[:20]}", text
    length = min(source.max_length, LONGEST_CHECKED)
    yield "empty", ""
    yield "one word", "word"
    yield "spaces around", "  two spaces before, a tab and a line end after\t\n"
    yield "repeated word", "again " * (length // 2)
    for mark in "!?\u2026":  # int8 as fast as the other texts allow answers these with a cosine of 0.956 on MiniLM
        yield f"repeated {mark}", mark * min(length, 100)
    yield "markup", '<div class="row"><p>Hello <b>world</b></p><br/></div>' * 5
    yield "capitals and accents", "ÅNGSTRÖM Straße İstanbul ΟΔΥΣΣΕΥΣ naïve"
    yield "rare characters", "\u0001 \ufffd \u200b \u00ad \ua66e \U0001d518 \ufdfd \U000e0041 \u2603\ufe0e"
    yield "emoji", "\U0001f469\U0001f3fd\u200d\U0001f4bb ships \U0001f680\U0001f680 to \U0001f1eb\U0001f1f7"
    yield "CJK", "機械学習は楽しい。机器学习很有趣。기계 학습은 재미있다."
    yield "right to left", "שלום עולם, مرحبا بالعالم 123"
    for number, text in enumerate(rare_texts(source.tokenizer, sample_texts(source))):
        yield f"rare tokens {number}", text
    for text in added_texts(source.tokenizer):
        yield "added tokens", text
    yield "special tokens", special_text(source.tokenizer, source.config)
    yield "longest", longest_text(source, length)


def sample_texts(source: Source) -> Iterator[str]:
    """500 texts of 1 to 90 words out of the tokenizer's own vocabulary; the same ones at every call.

    Every other text is made of frequent words, which vocabularies begin with: int8 answers differently on them, on
    all-MiniLM-L6-v2 with a least cosine of 0.976 where that of texts out of all words is 0.990.
    """
    draw = random.Random(0)  # noqa: S311 - the same model has to meet the same texts again
    # Words begin a token with "▁" or "Ġ", or, in WordPiece, go on with "##".
    whole = (token.lstrip("▁Ġ") for token in sorted(source.tokenizer.get_vocab()) if not token.startswith("##"))
    words = [word for word in whole if word.isalpha() and len(word) >= _SHORTEST_WORD]
    by_number = sorted(source.tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    starts = [token.lstrip("▁Ġ") for token, _ in by_number if not token.startswith("##")]
    frequent = [word for word in starts if word.isascii() and word.isalpha() and len(word) > 1][:_FREQUENT]
    if not words and not frequent:  # an alphabet of letters, such as proteins'
        words = list(filter(None, _pieces(source.tokenizer, _FREQUENT))) or ["word"]
    for number in range(_SAMPLES):
        out_of = (frequent if number % 2 else words) or words or frequent
        yield " ".join(draw.choices(out_of, k=draw.randint(1, _MOST_WORDS)))


def longest_text(source: Source, length: int) -> str:
    """A text over the model's limit, or one of about `length` tokens where the limit is higher."""
    words = [f"{word}{number}" for number in range(length) for word in ("alpha", "beta")]

    def made(words: Sequence[str]) -> int:
        return len(source.tokenizer.backend_tokenizer.encode(" ".join(words)))

    if made(words) < length:  # its alphabet is another, such as DNA's, or all that it does not know is one token
        pieces = list(_pieces(source.tokenizer, length))
        count = min(2 * length * len(pieces) // max(made(pieces), 1), 8 * length)
        words = max(words, list(islice(cycle(pieces), count)), key=made)
    if length < source.max_length:
        words = words[: bisect_left(range(len(words)), length - 16, key=lambda count: made(words[:count]))]
    return " ".join(words)


def _pieces(tokenizer: Any, most: int) -> Iterator[str]:
    """What the first tokens of the vocabulary stand for, without special ones."""
    for number in sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))[:most]:
        yield tokenizer.decode([number], clean_up_tokenization_spaces=False).strip()
