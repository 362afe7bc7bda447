"""What OpenAI's clients get of a body, whatever stands in it; and what is read of theirs."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import InvalidInput
from handler.reply import encode
from handler.web.replies import object_in, openai_reply

TEXTS = st.text(st.sampled_from('"\\[]{},:a\n\u20ac'))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
)
OBJECTS = st.dictionaries(TEXTS, VALUES, max_size=3)


@given(st.lists(OBJECTS, max_size=3) | st.lists(VALUES, max_size=3) | VALUES)
def test_openai_clients_get_the_first_of_a_list_or_the_whole(output: Any):
    first = output[0] if isinstance(output, list) and output else output
    assert orjson.loads(openai_reply(encode({"output": output}))) == first


@pytest.mark.parametrize("half", [r"\ud83d", r"\ude00", r"\ud83d\u0041"])
def test_a_cut_emoji_is_told_from_what_is_no_json(half: str):
    with pytest.raises(InvalidInput, match="^a string in the body holds half a surrogate pair "):
        object_in(f'{{"input": "cut {half}"}}'.encode(), "a job")
    with pytest.raises(InvalidInput, match="^the body is not JSON "):
        object_in('{"input": "caf\xe9"}'.encode("latin-1"), "a job")
