"""The checks that all tasks share, at their limits."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import InvalidInput
from engine.tasks import payload as check


def test_a_string_is_as_long_as_allowed_and_no_longer():
    assert check.string("abc", "query", 3) == "abc"
    with pytest.raises(InvalidInput, match="`query` has 4 characters, allowed are 3"):
        check.string("abcd", "query", 3)
    with pytest.raises(InvalidInput, match="`query` must be a string, got a number"):
        check.string(1, "query", 3)


def test_texts_are_as_many_and_as_long_as_allowed_and_no_more():
    assert check.texts(["abc", ""], "texts", 2, 3) == ["abc", ""]
    for value, said in (
        ([], "`texts` must hold 1 to 2 strings, got 0"),
        (["a"] * 3, "`texts` must hold 1 to 2 strings, got 3"),
        (["a", "abcd"], r"`texts\[1\]` has 4 characters, allowed are 3"),
    ):
        with pytest.raises(InvalidInput, match=said):
            check.texts(value, "texts", 2, 3)


@pytest.mark.parametrize(
    "refuse",
    [
        lambda names: check.refuse_unknown(names, ("text",)),
        lambda names: check.whole_number({"k": names}, "k", 1),
        lambda names: check.choice({"k": [[names]]}, "k", ("a", "b")),
    ],
    ids=["fields", "a value", "within a value"],
)
def test_of_ever_so_many_names_only_the_first_are_looked_at(refuse: Callable[[dict[str, Any]], Any]):
    """A million of them, sorted, would keep all other jobs waiting for seconds."""
    names = {f"n{number:06}": 0 for number in reversed(range(200_000))}
    tracemalloc.start()
    try:
        with pytest.raises(InvalidInput, match="n199996.*n199999|'n199996': 0"):
            refuse(names)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("value", [0, 1, 0.5])
def test_numbers_up_to_both_ends(value: float):
    assert check.number({"threshold": value}, "threshold", 0, 1, 0.5) == value
    assert check.number({}, "threshold", 0, 1, 0.5) == 0.5


def test_null_is_as_if_it_were_not_there():
    """Clients send it for what they leave open."""
    payload: dict[str, Any] = {"a": None}
    assert check.number(payload, "a", 0, 1, 0.5) == 0.5
    assert check.whole_number(payload, "a", 0, 1) is None
    assert check.choice(payload, "a", ("x", "y")) == "x"
    for default in (True, False):
        assert check.boolean(payload, "a", default) is default


def deep(value: Any, levels: int) -> Any:
    for _ in range(levels):
        value = [value]
    return value


def test_a_form_that_is_null_is_as_if_it_were_not_there_unless_it_is_the_only_one():
    forms = ("text", "texts", "inputs")
    for payload, left in (
        ({"text": "a", "texts": None, "inputs": None, "x": None}, {"text": "a", "x": None}),
        ({"text": None, "texts": None}, {}),
        ({"texts": None, "x": 1}, {"texts": None, "x": 1}),
        ({"text": "a", "texts": []}, {"text": "a", "texts": []}),
    ):
        assert check.without_nulls(payload, forms) == left


@pytest.mark.parametrize("value", [True, "1", -0.001, 1.001, float("nan"), float("inf"), [1]])
def test_what_is_no_number_or_beyond_the_ends(value: Any):
    with pytest.raises(InvalidInput, match="`threshold` must be a number from 0 to 1, got "):
        check.number({"threshold": value}, "threshold", 0, 1, 0.5)


def test_to_look_for_half_characters_among_numbers_takes_no_room():
    """A payload of nothing but numbers is as long as RunPod allows before anybody looks at its size."""
    payload = {"x": [0, 1.5, None, True] * 100_000}
    tracemalloc.start()
    check.refuse_lone_surrogates(payload)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000


@pytest.mark.parametrize(
    "held",
    [["\ud83d"], {"\ud83d": 1}, [[["a\ud83db"]]], ["\ud83d", "\ude00"], [deep("\ud83d", 400)], [1 << 70, "\ud83d"]],
    ids=["text", "name", "nested", "both-halves-apart", "deep", "beside-a-long-number"],
)
def test_half_a_character_is_found_wherever_it_stands_in_a_large_payload(held: Any):
    """Most of which is not walked through."""
    for payload in ({"x": [held, [["a", []]] * 10_000]}, {"x": [[["a", []]] * 10_000, held]}):
        with pytest.raises(InvalidInput, match=r"holds half a surrogate pair \(\\ud(83d|e00)\); cut strings between"):
            check.refuse_lone_surrogates(payload)


@pytest.mark.parametrize("held", ["\U0001f600", 1 << 70, deep("a", 400)], ids=["whole", "long-number", "deep"])
def test_whole_characters_are_let_through_in_a_large_payload(held: Any):
    check.refuse_lone_surrogates({"x": [[["a", []]] * 10_000, held]})


def test_a_large_payload_is_not_walked_through():
    steps = 0

    class Counted(str):
        def isascii(self) -> bool:
            nonlocal steps
            steps += 1
            return True

    check.refuse_lone_surrogates({"x": [[Counted("a")] for _ in range(100_000)]})
    assert 0 < steps < 2_000


@given(st.lists(st.text("a{} é", max_size=4), min_size=1, max_size=4), st.text("b{}", max_size=3))
def test_a_template_is_a_format_string(around: list[str], label: str):
    written = "{}".join(one.replace("{", "{{").replace("}", "}}") for one in around)
    assert check.template({}, "template", written, 99) == around
    assert label.join(around) == written.format(*[label] * (len(around) - 1))


@given(st.text("{}ab!:.0[] ", max_size=6))
def test_what_is_taken_for_a_template_is_a_format_string(written: str):
    with suppress(InvalidInput):
        found = check.template({"template": written}, "template", "", 99)
        assert "label".join(found) == written.format(*["label"] * (len(found) - 1))


def test_a_long_template_is_a_string_of_at_most_so_many_characters():
    with pytest.raises(InvalidInput, match="`template` has 4 characters, allowed are 3"):
        check.template({"template": "a {}"}, "template", "", 3)
