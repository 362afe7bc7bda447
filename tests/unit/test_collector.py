"""Large bodies become objects without Python's collector of cycles, which would walk through them again and again."""

import asyncio
import gc
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from handler.collector import LARGE, loaded
from handler.processes.frames import Frames, pack
from handler.protocol.http1 import Reply
from handler.web.replies import object_in

MANY: dict[str, Any] = {"input": {"texts": [[] for _ in range(300_000)]}}
RAW = json.dumps(MANY).encode()


@pytest.fixture
def runs() -> Iterator[list[str]]:
    """Of the collector, as they come."""
    found: list[str] = []

    def note(phase: str, info: dict[str, int]) -> None:
        found.append(phase)

    gc.callbacks.append(note)
    yield found
    gc.callbacks.remove(note)


def received(raw: bytes) -> Any:
    found: list[Any] = []
    frames = Frames(lambda *frame: found.extend(frame), lambda: None)
    while not found:
        room = frames.get_buffer(-1)
        part, raw = raw[: len(room)], raw[len(room) :]
        room[: len(part)] = part
        frames.buffer_updated(len(part))
    return found[0]


def taken(raw: bytes) -> Any:
    return asyncio.run(Reply(200, "OK", {}, raw).json())


@pytest.mark.parametrize(
    ("read", "raw"),
    [(lambda raw: object_in(raw, "a job"), RAW), (received, pack(MANY)), (taken, RAW)],
    ids=["http", "frame", "queue"],
)
def test_the_collector_rests_while_a_large_body_is_read(runs: list[str], read: Callable[[bytes], Any], raw: bytes):
    found = read(raw)
    assert len(runs) < 100  # it would begin and end with every 700 lists
    assert found == MANY
    assert gc.isenabled()


def test_it_goes_on_whatever_happens_and_not_before_it_was_started():
    states = []

    def load(raw: bytes) -> None:
        states.append(gc.isenabled())
        raise ZeroDivisionError

    for size in (LARGE - 1, LARGE):
        with pytest.raises(ZeroDivisionError):
            loaded(load, b" " * size)
        assert gc.isenabled()
    gc.disable()  # as while the worker starts
    try:
        with pytest.raises(ZeroDivisionError):
            loaded(load, b" " * LARGE)
        assert not gc.isenabled()
    finally:
        gc.enable()
    assert states == [True, False, False]
