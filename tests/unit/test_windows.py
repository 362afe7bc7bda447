"""Long texts in windows that overlap."""

from __future__ import annotations

from math import ceil
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Encoding

from engine.bundle import open_bundle, write_manifest
from engine.text import tokens
from engine.text.tokens import Tokens
from tests.bundles import write_small_bundle
from tests.tokenizer_kinds import bert


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    """With a tokenizer of BERT's, to which each character of Chinese is a word."""
    folder = write_small_bundle(tmp_path_factory.mktemp("windows") / "bundle", task_config={"max_length": 512})
    bert().save(str(folder / "tokenizer.json"))
    write_manifest(folder, open_bundle(folder).manifest)
    return Tokens(open_bundle(folder), cut="none")


@given(st.integers(0, 60), st.integers(1, 12), st.integers(0, 11), st.integers(2, 40), st.none() | st.integers(0, 3))
def test_a_window_begins_a_step_behind_the_one_before_it(
    reader: Tokens, count: int, room: int, stride: int, at_once: int, before: int | None
):
    """However many are cut at a time."""
    stride %= room
    whole = reader.read("日" * count)
    question = None if before is None else reader.read("fox " * before)
    taken = 2 if question is None else 3 + len(question)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "_AT_ONCE", at_once)
        found = reader.windows(whole, stride, before=question, length=room + taken)
    starts = range(0, max(1, count - stride), room - stride)
    places = [window.offsets[window.texts == int(question is not None)].tolist() for window in found]
    assert places == [[[at, at + 1] for at in range(start, min(count, start + room))] for start in starts]
    assert {window.rest for window in found} == {max(0, count - room)}
    assert len(whole) == count
    assert whole.overflowing == []


def test_windows_are_cut_some_at_a_time(reader: Tokens, monkeypatch: pytest.MonkeyPatch):
    """Nobody else runs while that copies them."""
    cuts: list[int] = []

    class Watched:
        def __init__(self, encoding: Any) -> None:
            self.encoding = encoding

        @property
        def overflowing(self) -> list[Any]:
            return [Watched(one) for one in self.encoding.overflowing]

        def truncate(self, *arguments: Any, **options: Any) -> None:
            self.encoding.truncate(*arguments, **options)
            cuts.append(1 + len(self.encoding.overflowing))

    made: Any = SimpleNamespace(merge=lambda *all_of_it, **options: Watched(Encoding.merge(*all_of_it, **options)))
    monkeypatch.setattr(tokens, "Encoding", made)
    monkeypatch.setattr(reader, "_window", lambda before, piece, rest: piece)
    assert len(reader.windows(reader.read("日" * 1000), 38, length=42)) == ceil(1000 - 38) / 2
    assert len(cuts) > 10
    assert max(cuts) <= 32
