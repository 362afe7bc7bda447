"""What OpenAI's clients get of a body, whatever stands in it."""

from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from handler.reply import encode
from handler.web.replies import openai_reply

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
