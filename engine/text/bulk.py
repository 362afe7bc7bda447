"""Texts by the thousand, encoded in slices: what several share once, and of what was cut off nothing is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from engine.errors import InvalidInput
from engine.text.words import Frame, Plain, frame_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from engine.tensors import Array

Text: TypeAlias = "str | tuple[str, str]"
"""A text, or a pair of them."""

FEW, _SHORT = 8, 8_000
"""Texts, and their characters in all, that are encoded one by one, wherever that is."""
_SLICE, _SLICE_CHARS = 128, 400_000
"""Of one call of tokenizers', for which all others wait: some of the longest texts, for each keeps one CPU busy."""


def are_few(texts: Sequence[Text]) -> bool:
    """Whether an event loop may encode them, each text that several pairs share counted once."""
    return len(texts) <= FEW and _are_short(texts)


def _are_short(texts: Iterable[Text]) -> bool:
    strings = set(chain.from_iterable((text,) if isinstance(text, str) else text for text in texts))
    return sum(map(len, strings)) <= _SHORT


class Bulk:
    """Encodes as `tokenizer` does once it cuts to `max_length`; only then it may be asked.

    A text of pairs is encoded once, however many share it, where it is known how the tokenizer cuts pairs and what it
    puts around them.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int, cut: str) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._cut = cut
        self._sets_segments = tokenizer.post_processor is not None
        special = tokenizer.num_special_tokens_to_add(True)
        self._room = max_length - special
        frame = frame_of(tokenizer, "a", "a")
        # With only_second it refuses to cut a text alone.
        is_known = frame is not None and sum(map(len, frame.ids)) == special and self._room > 0
        self._frame = _Arrays(frame) if frame and is_known and cut in ("longest_first", "only_first") else None

    def encode(self, texts: Sequence[Text], check: Callable[[], None]) -> list[Plain]:
        """`check` is called again and again, and may raise. Raises InvalidInput where a pair cannot be cut to fit."""
        frame = self._frame
        whole = self._each((text for text in texts if frame is None or isinstance(text, str)), check)
        if frame is None or len(whole) == len(texts):
            return [whole[text] for text in texts]
        halves = self._each(chain.from_iterable(text for text in texts if not isinstance(text, str)), check, half=True)
        found = []
        for text in texts:
            if isinstance(text, str):
                found.append(whole[text])
            else:
                check()
                found.append(self._pair(frame, halves[text[0]], halves[text[1]]))
        return found

    def _each(self, texts: Iterable[Text], check: Callable[[], None], *, half: bool = False) -> dict[Text, Plain]:
        """Every text once: as a row, or as `half` of one, which has no special tokens."""
        found: dict[Text, Plain] = {}
        for some in _slices(dict.fromkeys(texts)):
            check()
            found.update(zip(some, map(self._plain, self._call(some, special=not half)), strict=True))
        return found

    def _call(self, texts: list[Text], *, special: bool) -> Sequence[Any]:
        """Without the interpreter lock, on all CPUs, in the turn of whoever asks; or here and now where they are few.

        Whoever calls on an event loop must not wait for turns.
        """
        try:
            if len(texts) <= 2 * FEW and _are_short(texts):
                pairs = [(text,) if isinstance(text, str) else text for text in texts]
                return [self._tokenizer.encode(*pair, add_special_tokens=special) for pair in pairs]
            return list(self._tokenizer.encode_batch_fast(texts, add_special_tokens=special))
        except Exception as error:  # tokenizers raises bare exceptions
            raise self._no_room(f" ({error})") from None

    def _no_room(self, why: str = "") -> InvalidInput:
        return InvalidInput(
            f"the text that is not shortened leaves no room for the other in {self._max_length} tokens{why}"
        )

    def _plain(self, encoding: Any) -> Plain:
        ids = np.array(encoding.ids, np.int32)
        # Without a post-processor the number of the text, which tokenizers' faster method does not know.
        segments = encoding.type_ids if self._sets_segments else [one or 0 for one in encoding.sequence_ids]
        # Asking for it copies what was cut off.
        rest = sum(map(len, encoding.overflowing)) if len(ids) >= self._max_length else 0
        return Plain(ids, np.array(segments, np.int32), rest)

    def _pair(self, frame: _Arrays, first: Plain, second: Plain) -> Plain:
        """As `truncate_encodings` of tokenizers cuts, and its post-processor frames."""
        lengths = [len(first) + first.rest, len(second) + second.rest]
        counts = self._cut_to_room(*lengths) if sum(lengths) > self._room else lengths
        return frame.around(first.ids[: counts[0]], second.ids[: counts[1]], sum(lengths) - sum(counts))

    def _cut_to_room(self, first: int, second: int) -> Sequence[int]:
        room = self._room
        if self._cut == "only_first":
            if second >= room:
                raise self._no_room()
            return room - second, second
        short = min(first, second)
        if short > room or short + max(short, room - short) > room:  # both are cut, the longer one a token less
            short = room // 2
        return (short, room - short) if first <= second else (room - short, short)


class _Arrays:
    """The frame of a pair, put together as arrays."""

    def __init__(self, frame: Frame) -> None:
        self._ids = [np.array(run, np.int32) for run in frame.ids]
        self._types = [np.array(run, np.int32) for run in frame.type_ids]
        self._of_texts = frame.of_texts

    def around(self, first: Array, second: Array, rest: int) -> Plain:
        types = [np.full(len(text), of, np.int32) for text, of in zip((first, second), self._of_texts, strict=True)]
        return Plain(_between(self._ids, first, second), _between(self._types, *types), rest)


def _between(runs: Sequence[Array], first: Array, second: Array) -> Array:
    return np.concatenate((runs[0], first, runs[1], second, runs[2]))


def _slices(texts: Iterable[Text]) -> Iterator[list[Text]]:
    """In order: so few, and of so few characters, that others get their turn; at least one."""
    some: list[Text] = []
    chars = 0
    for text in texts:
        more = len(text) if isinstance(text, str) else sum(map(len, text))
        if some and (len(some) == _SLICE or chars + more > _SLICE_CHARS):
            yield some
            some, chars = [], 0
        some.append(text)
        chars += more
    if some:
        yield some
