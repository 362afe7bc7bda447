"""Long texts in windows that overlap."""

from __future__ import annotations

from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Encoding

from engine.bundle import open_bundle, write_manifest
from engine.config import Limits
from engine.errors import InvalidInput
from engine.tasks.question_answering import QuestionAnswering
from engine.text import tokens
from engine.text.bulk import FEW
from engine.text.tokens import Free, Tokens
from tests.bundles import write_small_bundle
from tests.tokenizer_kinds import bert


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> QuestionAnswering:
    """With a tokenizer of BERT's, to which each character of Chinese is a word."""
    folder = tmp_path_factory.mktemp("windows") / "bundle"
    write_small_bundle(folder, task="question-answering", task_config={"max_length": 512, "cls_token_id": None})
    bert().save(str(folder / "tokenizer.json"))
    write_manifest(folder, open_bundle(folder).manifest)
    return QuestionAnswering.from_bundle(open_bundle(folder), Limits())


@pytest.fixture(scope="module")
def reader(task: QuestionAnswering) -> Tokens:
    return task.tokens


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
        found = reader.windows(whole, stride, free=Free(), before=question, length=room + taken)
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
    assert len(reader.windows(reader.read("日" * 1000), 38, free=Free(), length=42)) == 1 + (1000 - 40) / 2
    assert len(cuts) > 10
    assert max(cuts) <= 32


@given(
    st.lists(st.tuples(st.sampled_from(["?", "where ", "日本語"]), st.integers(1, 80)), min_size=1, max_size=3),
    st.sampled_from(["fox ", "a ", "!", "日本語の文章です", "it is 日本語 "]),
    st.integers(1, 1_500),
    st.integers(8, 512),
    st.floats(0, 1),
)
@example([("where ", 130)], "日本語の文章です", 120, 384, 0.638)  # the question takes most of what is not shared
@example([("?", 1)], "日本語の文章です", 300, 384, 0.87)  # each character is a token
@settings(max_examples=100)
def test_few_windows_are_made_on_the_loop(
    task: QuestionAnswering, questions: list[tuple[str, int]], piece: str, times: int, length: int, stride: float
):
    asked = [{"question": words * count, "context": piece * times} for words, count in questions]
    request = task.parse({"inputs": asked, "max_seq_len": length, "doc_stride": int(stride * (length - 1))})
    if not task.is_quick(request):
        return
    with suppress(InvalidInput):  # before a window is made
        assert len(task.preprocess(request)) <= 5 * FEW


@pytest.mark.parametrize("context", ["My name is Sarah and I live in London. " * 40, "日本語の文章です" * 100, "fox"])
def test_a_usual_context_is_read_on_the_loop(task: QuestionAnswering, context: str):
    assert task.is_quick(task.parse({"question": "Where in the world do I live?", "context": context}))
