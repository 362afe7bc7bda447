"""The likeliest tokens behind each mask of a text. Softmax and choice are in the graph: a row's logits are megabytes.

One row a mask, so that a row is always of the same shape; a text with several masks is run as often, in one batch.

`task_config` of the manifest: mask_token, mask_token_id, pad_token_id (or null), clean_up (whether decoding closes up
punctuation), top (the most tokens that the graph returns), targets (how many it looks up), max_length (tokens).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from engine.errors import InvalidInput
from engine.sizes import LARGEST_REPLY
from engine.tasks import payload as check
from engine.tasks.items import Part, Request
from engine.text.decode import decode
from engine.text.task import TextTask

if TYPE_CHECKING:
    from engine.tasks.base import Json
    from engine.tensors import Array, Arrays

_TOP_K = 5
_ENTRY = 60
"""Bytes of an answer's JSON beside its sequence, about."""
_WIDEST = 6
"""Bytes that a character of a text may become in a sequence: four, and spaces around it."""
_MASKS = ("<mask>", "[MASK]")
"""Stand for the model's own mask token in a text that has none of those: callers need not know the model."""


class FillMask(TextTask):
    """`{"text": ...}` or `{"texts": [...]}` with the model's own mask token in it, or one of `_MASKS`."""

    summary: ClassVar[str] = "The likeliest tokens behind each mask of a text, or the likelihood of given ones."
    auto_class: ClassVar[str] = "AutoModelForMaskedLM"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"text": "Paris is the <mask> of France."},
        {"texts": ["The <mask> sits on the mat.", "Ein <mask> auf Deutsch."], "top_k": 2},
        {"text": "The <mask> sits on the mat.", "targets": ["cat", "dog"]},
    )
    option_names: ClassVar[tuple[str, ...]] = ("top_k", "targets", "truncate")

    def options(self, payload: dict[str, Any]) -> Mapping[str, Any]:
        """`top_k` (5) and `targets` (any token)."""
        return {
            **super().options(payload),
            "top_k": check.whole_number(payload, "top_k", 1, self.config["top"]) or min(_TOP_K, self.config["top"]),
            "targets": self._targets(payload.get("targets")),
        }

    def _targets(self, value: Any) -> list[int]:
        """Ids of the target tokens, each once; a target that is no token stands for its first one."""
        if value is None:
            return []
        targets = check.texts([value] if isinstance(value, str) else value, "targets", self.config["targets"], 1000)
        ids = [self._target(target) for target in targets]
        found = list(dict.fromkeys(token for token in ids if token is not None))
        if not found:
            raise InvalidInput("none of the `targets` is a token of the model; give words of its language")
        return found

    def _target(self, target: str) -> int | None:
        token = self.tokens.tokenizer.token_to_id(target)
        if token is not None:
            return int(token)
        return next(iter(self.tokens.tokenizer.encode(target, add_special_tokens=False).ids), None)

    def texts(self, item: Any, options: Mapping[str, Any]) -> Sequence[str]:
        """The text with the model's own mask token."""
        own = self.config["mask_token"]
        if own not in item:
            for mask in _MASKS:
                item = item.replace(mask, own)
        return [item]

    def parts(self, request: Request) -> list[Part]:
        """A row a mask; `data` are the text's ids and the places of the masks."""
        targets = np.zeros(self.config["targets"], np.int32)
        targets[: len(request.options["targets"])] = request.options["targets"]
        parts, count = [], 0
        for index, whole in enumerate(super().parts(request)):
            (encoding,) = whole.data
            ids = np.array(encoding.ids, np.int32)
            places = np.flatnonzero(ids == self.config["mask_token_id"])
            if not len(places):
                raise InvalidInput(
                    f"text {request.first + index} has no {self.config['mask_token']} among its first "
                    f"{self.tokens.max_length} tokens; put one where a word is to be found"
                )
            count += len(places)
            self.refuse_rows(count)
            rows = [
                self.tokens.row(encoding, mask_position=np.array([place], np.int32), target_ids=targets)
                for place in places
            ]
            parts.append(Part(rows, (ids, places)))
        self._refuse_large(request, parts)
        return parts

    def _refuse_large(self, request: Request, parts: Sequence[Part]) -> None:
        """Raise AnswerTooLarge for more sequences, each a whole text, than RunPod takes."""
        most = len(request.options["targets"]) or request.options["top_k"]
        counts = [len(part.rows) * min(most, request.options["top_k"]) for part in parts]

        def total(sizes: Iterable[int]) -> int:
            return sum(count * (_ENTRY + size) for count, size in zip(counts, sizes, strict=True))

        if total(_WIDEST * len(text) for text in request.items) > LARGEST_REPLY:
            check.refuse_large_answer(total(len(self._sequence(*part.data).encode()) for part in parts), self.fewer)

    def answers_in(self, request: Request, rows: int) -> int:
        """Of each mask, so many are put together, all of the text in each."""
        return rows * int(request.options["top_k"])

    def answer(self, item: Any, part: Part, outputs: Sequence[Arrays], options: Mapping[str, Any]) -> Json:
        """`[{"score", "token", "token_str", "sequence"}, ...]`, the likeliest first; several masks, a list of lists."""
        ids, places = part.data
        answers = []
        for place, output in zip(places, outputs, strict=True):
            filled = []
            for token, score in _best(output, options):
                ids_filled = ids.copy()
                ids_filled[place] = token
                sequence = self._sequence(ids_filled, places)
                filled.append(
                    {"score": score, "token": token, "token_str": self._decode([token], False), "sequence": sequence}
                )
            answers.append(filled)
        return answers[0] if len(answers) == 1 else answers

    def _sequence(self, ids: Array, places: Array) -> str:
        # With several masks the others shall stay readable, so that special tokens are shown.
        return self._decode(ids[ids != self.config["pad_token_id"]].tolist(), len(places) == 1)

    def _decode(self, ids: list[int], skip_special: bool) -> str:
        return decode(self.tokens.tokenizer, ids, skip_special=skip_special, clean_up=self.config["clean_up"])


def _best(output: Arrays, options: Mapping[str, Any]) -> list[tuple[int, float]]:
    """Tokens and their probabilities."""
    targets = options["targets"]
    if not targets:
        best = zip(output["tokens"], output["scores"], strict=True)
        return [(int(token), float(score)) for token, score in list(best)[: options["top_k"]]]
    scores = output["target_scores"][: len(targets)]
    order = (-scores).argsort(kind="stable")[: options["top_k"]]
    return [(targets[at], float(scores[at])) for at in order]


TASK = FillMask
