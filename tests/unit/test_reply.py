import asyncio
import json
import os
from dataclasses import make_dataclass
from datetime import UTC, date, datetime, time
from enum import Enum
from http import HTTPMethod, HTTPStatus
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from engine.batching.passage import Passage
from engine.batching.stats import Stats
from engine.config import Limits
from engine.errors import EngineError, InvalidInput, Overloaded, WorkerFault
from engine.tasks.items import ItemsTask, Part
from engine.tensors import Row
from handler.handler import Handler
from handler.reply import body_of_error, body_of_json, encode, to_json


class Colour(Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.arange(3, dtype=np.int32), [0, 1, 2]),
        (np.array([[0.5, -1.0]], np.float32), [[0.5, -1.0]]),
        (np.float32(0.25), 0.25),
        (np.bool_(True), True),
        ({"a": (1, np.int64(2)), "b": None}, {"a": [1, 2], "b": None}),
        ("text", "text"),
    ],
)
def test_numpy_becomes_json(value: Any, expected: Any):
    assert to_json(value) == expected
    assert json.loads(json.dumps(to_json(value))) == expected


@pytest.mark.parametrize(
    "value",
    [
        {1, 2},
        object(),
        b"bytes",
        float("nan"),
        [float("inf")],
        np.array([1.0, np.nan]),
        np.array([1j]),
        {1: 2},
        np.array(["x"]),
        date(2026, 1, 1),
        datetime(2026, 1, 1, tzinfo=UTC),
        time(1),
        np.datetime64("2026-01-01"),
        UUID(int=1),
        Colour.RED,
        make_dataclass("Point", ["x"])(0.5),
        make_dataclass("Point", ["x"])(float("nan")),
    ],
)
def test_what_json_cannot_carry_is_our_fault(value: Any):
    """Whatever it stands beside: an answer that orjson does not take another writer writes."""
    with pytest.raises(WorkerFault, match="the answer"):
        to_json(value)
    for beside in (None, np.arange(6.0)[::2], "\ud800"):
        with pytest.raises(WorkerFault, match="the answer"):
            encode({"output": {"beside": beside, "value": value}})


@pytest.mark.parametrize("value", [HTTPStatus.OK, HTTPMethod.GET])
def test_members_that_are_texts_or_numbers_are_written_as_these(value: Any):
    assert json.loads(encode({"output": value})) == {"output": value.value}
    assert json.loads(json.dumps(to_json(value))) == value.value


@pytest.mark.parametrize(
    ("value", "body"),
    [
        (None, {"output": None}),
        (True, {"output": True}),
        ([1], {"output": [1]}),
        ({}, {"output": {}}),
        ({"a": 1}, {"output": {"a": 1}}),
        ({"error": "no"}, {"error": "no"}),
        ({"error": {"code": 1}, "partial": 2}, {"error": {"code": 1}, "output": {"partial": 2}}),
        ({"refresh_worker": True, "a": 1}, {"output": {"a": 1}, "stopPod": True}),
        ({"refresh_worker": True}, {"stopPod": True}),
        ([{"refresh_worker": True}, {"error": "no"}], {"output": [{"refresh_worker": True}, {"error": "no"}]}),
    ],
)
def test_the_stock_sdks_rules_for_return_values(value: Any, body: dict[str, Any]):
    assert body_of_json(value) == body


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (InvalidInput("`text` is missing"), "invalid input: `text` is missing"),
        (Overloaded("9 rows wait"), "overloaded, please retry: 9 rows wait"),
        (EngineError("out of memory"), "worker fault: out of memory"),
        (KeyError("x"), "worker fault: KeyError: 'x'"),
        (
            type("Odd", (Exception,), {"__str__": lambda error: 1})(),
            "worker fault: Odd (to say more failed with TypeError)",
        ),
    ],
)
def test_an_error_says_whose_fault_it_is(error: Exception, sentence: str):
    assert body_of_error(error) == {"error": sentence}


def test_a_traceback_only_when_debugging_and_only_for_our_faults():
    with pytest.raises(KeyError) as caught:
        os.environ["NO_SUCH_VARIABLE"]
    assert "Traceback" in body_of_error(caught.value, debug=True)["error"]
    assert "Traceback" not in body_of_error(InvalidInput("no"), debug=True)["error"]


def test_a_lone_surrogate_does_not_stop_a_result():
    assert json.loads(encode({"output": "a\ud800b"})) == {"output": "a?b"}


REPLIES = [{"error": "not on our list", "code": 3}, {"refresh_worker": True, "done": 1}, {"labels": ["a"]}]


@pytest.mark.parametrize("reply", REPLIES)
def test_a_reply_that_a_task_keeps_is_the_same_for_every_job(reply: dict[str, Any]):
    class Own(ItemsTask):
        def item(self, value: Any, name: str, payload: dict[str, Any]) -> Any:
            return value

        def parts(self, request: Any) -> Any:
            return [Part([Row({}, 1)]) for _ in request.items]

        def answer(self, *_: Any) -> Any:
            return reply

    task: Any = Own(Limits())
    handler, before = Handler(task, Passage(Stats()), dict), dict(reply)
    plain, timed = {"id": "a", "input": {"text": "x"}}, {"id": "b", "input": {"text": "x", "timings": True}}
    first = asyncio.run(handler.body(plain))
    assert b"timings_ms" in asyncio.run(handler.body(timed))
    assert "timings_ms" in asyncio.run(handler.handle(timed))
    assert asyncio.run(handler.body(plain)) == first
    assert reply == before


@pytest.mark.parametrize("place", [np.s_[:, :3], np.s_[:, ::2], np.s_[::-1], np.s_[..., 0]])
def test_a_part_of_an_array_is_written_with_the_digits_of_a_whole_one(place: Any):
    """Else who asks for fewer `dimensions` gets a larger reply."""
    whole = np.random.default_rng(0).standard_normal((4, 8), np.float32)
    assert encode({"output": {"of": whole[place]}}) == encode({"output": {"of": whole[place].copy()}})
    assert json.loads(encode({"output": [whole.T, np.array(0.5, np.float32)]}))["output"][1] == 0.5
