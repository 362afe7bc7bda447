"""What the worker's two processes send each other arrives whole and in order, however it is cut on its way."""

import asyncio
import socket
import tracemalloc
from itertools import cycle
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from handler.processes.frames import Frames, open_frames, pack

ROOM = 1 << 16
"""Bytes of the buffer that every connection has."""


class Reader:
    """Frames, and what has come out of them."""

    def __init__(self) -> None:
        self.found: list[Any] = []
        self.frames = Frames(lambda *frame: self.found.append(frame), lambda: None)

    def read(self, raw: bytes) -> bytes:
        """Take what there is room for; the rest of `raw`. A loop fails at no room at all."""
        room = self.frames.get_buffer(-1)
        assert len(room)
        part = raw[: len(room)]
        room[: len(part)] = part
        self.frames.buffer_updated(len(part))
        return raw[len(part) :]


@given(
    st.lists(st.sampled_from([0, 1, 300, ROOM - 20, ROOM - 1, ROOM, ROOM + 1, 3 * ROOM]), min_size=1, max_size=6),
    st.lists(st.sampled_from([1, 3, 4, 5, 1000, ROOM - 1, ROOM, ROOM + 7, 10 * ROOM]), min_size=1, max_size=6),
)
@example([1, 2, 3], [1])
@example([3 * ROOM, 2 * ROOM, 1], [ROOM])
def test_frames_arrive_whole_and_in_order(sizes: list[int], reads: list[int]):
    if max(reads) < 1000:
        sizes = [min(size, 1000) for size in sizes]  # byte by byte takes its time
    sent = [("job", number, bytes([number]) * size) for number, size in enumerate(sizes)]
    left, reader, reads_left = b"".join(pack(*frame) for frame in sent), Reader(), cycle(reads)
    while left:
        size = next(reads_left)
        part, left = left[:size], left[size:]
        left = reader.read(part) + left
    assert reader.found == sent


def test_a_large_frame_is_collected_in_one_place_which_is_given_back_behind_it():
    reader = Reader()
    raw = pack("reply", 1, b"a" * 20 * ROOM)
    raw = reader.read(raw)  # its length is known now
    place = reader.frames.get_buffer(-1).obj
    while len(raw) > 1000:
        assert reader.frames.get_buffer(-1).obj is place
        raw = reader.read(raw[:1000]) + raw[1000:]
    assert not reader.found
    assert not reader.read(raw)
    assert len(reader.found) == 1
    assert len(reader.frames.get_buffer(-1)) == ROOM


async def test_a_read_allocates_no_more_than_it_brings():
    """asyncio's own would be 256 KiB for each, which pulls the heap to pieces."""
    ours, theirs = socket.socketpair()
    arrived: asyncio.Queue[int] = asyncio.Queue()
    sender = await open_frames(ours, lambda *frame: None, lambda: None)
    receiver = await open_frames(theirs, lambda kind, number: arrived.put_nowait(number), lambda: None)
    await asyncio.sleep(0)
    tracemalloc.start()
    try:
        for number in range(3):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            sender.send("ping", number)
            assert await arrived.get() == number
            assert tracemalloc.get_traced_memory()[1] - before < 20_000
    finally:
        tracemalloc.stop()
        sender.close()
        receiver.close()


def test_no_frame_is_made_of_half_a_length():
    reader = Reader()
    assert not reader.read(pack("job", 1)[:3])
    assert reader.found == []
    assert reader.read(pack("job", 1)[3:]) == b""
    assert reader.found == [("job", 1)]
