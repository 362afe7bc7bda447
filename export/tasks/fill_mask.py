"""Masked language models, offline: only the mask's own vector goes through the projection onto the vocabulary.

That projection is a fifth of BERT-base's work and most of a model's with 250,000 tokens; of its result only the best
tokens leave the graph, and the probabilities of the tokens that a request names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from onnx import TensorProto

from export.errors import Refused
from export.gate.measures import SCORES, Measure, score_difference
from export.nodes import Nodes, require_output, set_outputs, sort_nodes
from export.tasks.base import Layout, Probe
from export.text import TextExport, run, texts, tokens_of

if TYPE_CHECKING:
    from pathlib import Path

    from engine.tasks.base import Json
    from engine.tensors import Arrays, Row
    from export.recipe import Recipe
    from export.source import Source

TOP = 100
"""Tokens that leave the graph, the likeliest; the most that `top_k` may ask for. 800 bytes a row."""

TARGETS = 100
"""Tokens whose probability a row may ask for."""


class FillMaskExport(TextExport):
    """Masked language models whose head works token by token."""

    tag: ClassVar[str] = "fill-mask"
    heads: ClassVar[tuple[str, ...]] = ("ForMaskedLM",)
    measures: ClassVar[Sequence[Measure]] = SCORES

    def processors(self, folder: Path, model: str, layout: Layout, recipe: Recipe) -> Mapping[str, Any]:
        """The tokenizer, which must have a mask token."""
        found = super().processors(folder, model, layout, recipe)
        if found["tokenizer"].mask_token_id is None:
            raise Refused(
                f"{model}'s tokenizer has no mask token, so that nothing can be filled in; try another --task"
            )
        return found

    def head(self, graph: Any, source: Source) -> None:
        """Gather the mask, project it, softmax, the best tokens, and the targets."""
        require_output(graph, "logits", self.tag)
        nodes = Nodes(graph, "fill")
        place = nodes.add("Cast", "place", nodes.input("mask_position", "int32", ("batch", 1)), to=TensorProto.INT64)
        place = nodes.add("Unsqueeze", "places", place, nodes.constant("last_axis", [2], np.int64))
        logits = nodes.add(
            "Squeeze", "logits", _at(graph, nodes, "logits", place), nodes.constant("row", [1], np.int64)
        )
        probabilities = nodes.add("Softmax", "probabilities", logits, axis=-1)
        top = min(TOP, source.config.vocab_size)
        count = nodes.constant("count", [top], np.int64)
        nodes.add("TopK", "best", probabilities, count, output="scores", outputs=2, axis=-1, largest=1, sorted=1)
        nodes.add("Cast", "tokens", "fill/best/1", output="tokens", to=TensorProto.INT32)
        targets = nodes.input("target_ids", "int32", ("batch", TARGETS))
        targets = nodes.add("Cast", "targets", targets, to=TensorProto.INT64)
        nodes.add("GatherElements", "target_scores", probabilities, targets, output="target_scores", axis=1)
        sort_nodes(graph)
        best = [(name, dtype, ("batch", top)) for name, dtype in (("scores", "float32"), ("tokens", "int32"))]
        set_outputs(graph, [*best, ("target_scores", "float32", ("batch", TARGETS))])

    def task_config(self, source: Source, outputs: Mapping[str, Sequence[int | str]]) -> dict[str, Any]:
        """The keys that engine/tasks/fill_mask.py documents."""
        tokenizer = source.tokenizer
        return {
            **super().task_config(source, outputs),
            "mask_token": tokenizer.mask_token,
            "mask_token_id": tokenizer.mask_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "clean_up": bool(tokenizer.clean_up_tokenization_spaces),
            "top": outputs["scores"][-1],
            "targets": TARGETS,
        }

    def probes(self, source: Source) -> Iterator[Probe]:
        """Every text with a mask in front; a row for each mask in it."""
        for label, text in texts(source, [{"texts": ["The cat sits on the mat.", "混合的文本 🙂"]}]):
            yield self.probe(source, label, f"{source.tokenizer.mask_token} {text}")

    def probe(self, source: Source, label: str, text: str) -> Probe:
        """`text`, a row for each mask in it."""
        tokens = tokens_of(source, text)
        places = (tokens["input_ids"][0] == source.tokenizer.mask_token_id).nonzero().flatten().tolist()
        return Probe(label, {"text": text}, [{**tokens, "mask_position": place} for place in places])

    def inputs_of(self, source: Source, payload: Json, rows: Sequence[Row]) -> Sequence[Mapping[str, Any]] | None:
        """The tokens of each row, its mask, and the tokens that it asks for."""
        found = []
        for row in rows:
            own = {name: values for name, values in row.feeds.items() if name not in ("mask_position", "target_ids")}
            (tokens,) = super().inputs_of(source, payload, [replace(row, feeds=own)]) or ({},)
            place, targets = int(row.feeds["mask_position"][0]), row.feeds["target_ids"]
            found.append({**tokens, "mask_position": place, "target_ids": targets})
        return found

    def reference(self, source: Source, model: Any, inputs: Mapping[str, Any]) -> Arrays | None:
        """The probabilities of the whole vocabulary at the mask, and which tokens were asked for."""
        found = run(model, inputs, "logits")
        if found is None:
            return None
        logits = found["logits"][inputs["mask_position"]].astype(np.float64)
        powers = np.exp(logits - logits.max())
        targets = inputs.get("target_ids", np.zeros(TARGETS, np.int32))  # a probe names none
        return {"probabilities": powers / powers.sum(), "target_ids": targets}

    def compare(self, source: Source, expected: Arrays, found: Arrays) -> Sequence[float]:
        """The worst score of a best token and of a target, and whether the first token is the same."""
        probabilities = expected["probabilities"]
        best = np.sort(probabilities)[::-1][: len(found["scores"])]
        differences = [
            score_difference(best, found["scores"]),  # no better token was left out
            score_difference(probabilities[found["tokens"]], found["scores"]),
            score_difference(probabilities[expected["target_ids"]], found["target_scores"]),
        ]
        tied = best[0] - probabilities[found["tokens"][0]] <= 2 * SCORES[0].limit
        return max(differences), float(tied)


def _at(graph: Any, nodes: Nodes, logits: str, place: str) -> str:
    """The logits at `place`: gathered in front of the projection onto the vocabulary, or behind where none is found."""
    constants = {tensor.name for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    constants |= {node.output[0] for node in graph.node if node.op_type == "Transpose" and node.input[0] in constants}
    node = makers[logits]
    while node.op_type == "Add" and sum(name in constants for name in node.input) == 1:  # a bias
        node = makers[next(name for name in node.input if name not in constants)]
    if node.op_type != "MatMul" or node.input[1] not in constants:
        return nodes.add("GatherND", "at", logits, place, batch_dims=1)
    node.input[0] = nodes.add("GatherND", "at", node.input[0], place, batch_dims=1)
    return logits


TASK = FillMaskExport()
