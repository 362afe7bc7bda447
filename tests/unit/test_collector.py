"""Large bodies become objects without Python's collector of cycles, which would walk through them again and again."""

import asyncio
import gc
import json
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from handler import collector
from handler.collector import LARGE, MANY, loaded, look_when_idle
from handler.processes.frames import Frames, pack
from handler.protocol.http1 import Reply
from handler.web.replies import object_in

MANY_LISTS: dict[str, Any] = {"input": {"texts": [[] for _ in range(300_000)]}}
RAW = json.dumps(MANY_LISTS).encode()


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(collector._Kept, "count", 0)
    monkeypatch.setattr(collector, "_PAUSE_S", 0.0)
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def runs() -> Iterator[list[int]]:
    """Of the collector, as they begin and end: how many objects it may walk through."""
    found: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        found.append(len(gc.get_objects()))

    gc.callbacks.append(note)
    yield found
    gc.callbacks.remove(note)


class Node:
    """Leads to itself, and to a payload."""

    def __init__(self, payload: Any) -> None:
        self.itself, self.payload = self, payload


def dropped() -> weakref.ref[Node]:
    """A cycle with the payload of one large body in it, which another one has kept from the collector as well."""
    node = Node(object_in(RAW, "a job"))
    object_in(RAW, "a job")
    return weakref.ref(node)


async def some_turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0.01)


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
    [(lambda raw: object_in(raw, "a job"), RAW), (received, pack(MANY_LISTS)), (taken, RAW)],
    ids=["http", "frame", "queue"],
)
def test_the_collector_rests_while_a_large_body_is_read(runs: list[int], read: Callable[[bytes], Any], raw: bytes):
    found = read(raw)
    assert len(runs) < 100  # it would begin and end with every 700 lists
    after: list[Any] = [[] for _ in range(10_000)]
    assert len(runs) > 10
    assert max(runs) < MANY  # none of which are the body's
    assert found == MANY_LISTS
    assert gc.isenabled() and after


async def test_a_cycle_that_holds_a_large_body_is_given_back_once_no_job_is_left():
    node = dropped()
    gc.collect()
    is_idle = False
    look_when_idle(lambda: is_idle)
    await some_turns()
    assert node() is not None  # as jobs would wait for a walk through all that there is
    is_idle = True
    look_when_idle(lambda: is_idle)
    await some_turns()
    assert node() is None


def test_a_load_that_never_ends_has_its_cycles_given_back_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(collector._Kept, "most", 1_000_000)
    node = dropped()
    object_in(RAW, "a job")
    assert node() is not None
    object_in(RAW, "a job")
    object_in(RAW, "a job")
    assert node() is None


async def test_bodies_of_few_objects_are_the_collector_s_as_ever(runs: list[int]):
    before = gc.get_freeze_count()
    found = object_in(json.dumps({"input": {"text": ["a" * LARGE, *([[]] * 10_000)]}}).encode(), "a job")
    assert gc.get_freeze_count() <= before and found
    runs.clear()
    look_when_idle(lambda: True)
    await some_turns()
    assert not runs


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
