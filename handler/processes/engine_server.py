"""What the engine's process answers once it is ready: jobs, cancellations, health, and that it is alive."""

from __future__ import annotations

import asyncio
import gc
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from engine import huge_pages
from engine.errors import WorkerFault, in_words
from handler.collector import look_when_idle
from handler.log import log
from handler.parts import AHEAD
from handler.processes.frames import Frames, open_frames
from handler.reply import body_of_error, encode
from handler.startup.beside import Beside

if TYPE_CHECKING:
    from handler.boot import Worker

_LARGE_PAGES_DELAY_S = 1.0  # a job that waited for this start goes first
_NO_ANSWER = encode(
    body_of_error(WorkerFault("the answer could not be made or passed on, the worker's log says why; ask for less"))
)
"""For whatever kept a job from any other: an answer of 2 GiB, no memory for it."""


def serve(end: socket.socket, worker: Worker) -> None:
    """Answer the other end with `worker` until it closes."""
    asyncio.run(_Server(worker).run(end))


class _Server:
    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._room: dict[int, asyncio.Semaphore] = {}
        """For further parts of the jobs that stream."""
        self._frames: Frames

    async def run(self, end: socket.socket) -> None:
        ended = asyncio.Event()
        self._frames = await open_frames(end, self._on_frame, ended.set)
        loop = asyncio.get_running_loop()

        def tell(sentence: str) -> None:
            loop.call_soon_threadsafe(self._frames.send, "lost", 0, sentence)

        self._worker.batcher.on_lost = tell
        gc.enable()
        gc.freeze()  # what the boot made stays; a collection that walked through it would hold a job up
        if any(choice.engine == "onnxruntime-cpu" for choice in self._worker.choices.values()):
            loop.call_later(_LARGE_PAGES_DELAY_S, _make_large_pages)
        choice = self._worker.choice
        self._frames.send("ready", {"engine": choice.engine, "reason": choice.reason}, self._worker.timeline.stages)
        await ended.wait()

    def _on_frame(self, kind: str, number: int, content: Any) -> None:
        if kind == "job":
            task = asyncio.create_task(self._answer(number, content))
            self._tasks[number] = task
            task.add_done_callback(lambda _: self._ended(number))
        elif kind == "cancel" and number in self._tasks:
            self._tasks[number].cancel()
        elif kind == "room" and number in self._room:
            self._room[number].release()
        elif kind == "health":
            self._frames.send("reply", number, self._worker.health())
        elif kind == "ping":
            batcher = self._worker.batcher
            self._frames.send("pong", number, batcher.busy_s, batcher.running)

    def _ended(self, number: int) -> None:
        del self._tasks[number]
        self._room.pop(number, None)
        if not self._tasks:
            look_when_idle(lambda: not self._tasks)

    async def _send_chunk(self, number: int, chunk: bytes) -> None:
        """Wait while parts enough are on their way: RunPod may take them more slowly than they are made."""
        await self._room.setdefault(number, asyncio.Semaphore(AHEAD)).acquire()
        self._frames.send("chunk", number, chunk)

    async def _answer(self, number: int, job: dict[str, Any]) -> None:
        try:
            body = await self._worker.handler.body(
                job,
                lambda chunk: self._send_chunk(number, chunk),
                lambda progress: self._frames.send("progress", number, progress),
            )
            self._frames.send("reply", number, body)
        except (KeyboardInterrupt, SystemExit):  # which end this process, and the other one answers
            raise
        except BaseException as error:
            if self._tasks[number].cancelling():
                raise
            self._frames.send("reply", number, _NO_ANSWER)
            log("ERROR", f"a job got no answer of its own: {in_words(error)}", job.get("id"))


def _make_large_pages() -> None:
    with suppress(WorkerFault):  # no further thread: then without
        Beside(huge_pages.collapse)
