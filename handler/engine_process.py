"""The engine's process: boots the bundle and answers the jobs that the worker's other process hands over."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from engine.errors import WorkerFault
from handler.frames import Frames, open_frames, pack

if TYPE_CHECKING:
    from handler.boot import Worker
    from handler.timeline import Timeline

_GRACE_S = 2.0


def serve(end: socket.socket, timeline: Timeline) -> None:
    """Boot, say "ready" or "failed" with a sentence, then answer jobs until the other end closes."""
    threading.Thread(target=_end_with, args=(end,), name="end", daemon=True).start()
    try:
        from engine.config import Settings
        from handler.boot import boot

        worker = boot(Settings.from_environ(os.environ), timeline)
    except WorkerFault as error:
        end.sendall(pack("failed", str(error)))
        return
    except Exception as error:  # a defect of ours, or a machine that lacks something: told as well as one can
        end.sendall(pack("failed", f"{type(error).__name__}: {error}"))
        raise
    asyncio.run(_Server(worker).run(end))


def _end_with(end: socket.socket) -> None:
    """End this process soon after the other one, whatever it is busy with: a boot, or a job's download.

    It has as long as the other one would give it; a build of a plan notices by itself, and ends what it has started.
    """
    closed = select.poll()
    closed.register(end, 0)  # a hang-up is told all the same
    closed.poll()
    time.sleep(_GRACE_S)
    os._exit(1)


class _Server:
    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._frames: Frames

    async def run(self, end: socket.socket) -> None:
        ended = asyncio.Event()
        self._frames = await open_frames(end, self._on_frame, ended.set)
        loop = asyncio.get_running_loop()

        def tell(sentence: str) -> None:
            loop.call_soon_threadsafe(self._frames.send, "lost", 0, sentence)

        self._worker.batcher.on_lost = tell
        gc.freeze()  # what the boot made stays; a collection that walked through it would hold a job up
        choice = self._worker.choice
        self._frames.send("ready", {"engine": choice.engine, "reason": choice.reason}, self._worker.timeline.stages)
        await ended.wait()

    def _on_frame(self, kind: str, number: int, content: Any) -> None:
        if kind == "job":
            task = asyncio.create_task(self._answer(number, content))
            self._tasks[number] = task
            task.add_done_callback(lambda _: self._tasks.pop(number))
        elif kind == "cancel" and number in self._tasks:
            self._tasks[number].cancel()
        elif kind == "health":
            self._frames.send("reply", number, self._worker.health())
        elif kind == "ping":
            self._frames.send("pong", number, self._worker.batcher.busy_s)

    async def _answer(self, number: int, job: dict[str, Any]) -> None:
        body = await self._worker.handler.body(
            job,
            lambda chunk: self._frames.send("chunk", number, chunk),
            lambda progress: self._frames.send("progress", number, progress),
        )
        self._frames.send("reply", number, body)
