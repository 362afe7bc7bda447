"""The engine's process: boots the bundle and answers the jobs that the worker's other process hands over.

Why two: a worker imports an engine (numpy, ONNX Runtime, tokenizers) and an HTTP client (aiohttp, the SDK). Both hold
the interpreter lock while they load, so threads cannot share the wait; two processes on two cores can. Afterwards a
10 MB payload that is being parsed delays no batch, and an engine that hangs or crashes takes no job down unanswered.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from engine.errors import WorkerFault

if TYPE_CHECKING:
    from engine.config import Settings
    from handler.boot import Worker
    from handler.timeline import Timeline


def fork(serve: Callable[[socket.socket], None]) -> tuple[int, socket.socket]:
    """Run `serve` in a child process; its id and our end of the socket pair.

    To be called before threads or CUDA exist: neither survives a fork.
    """
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours
    code = 1
    try:
        ours.close()
        serve(theirs)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # what the parent registered to run at its own exit is not ours to run


def wait_for(pid: int, timeout_s: float) -> None:
    """Wait for a child that was asked to end; kill it after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return
        time.sleep(0.005)


def serve(end: socket.socket, settings: Settings, timeline: Timeline) -> None:
    """Boot, say "ready" or "failed" with a sentence, then answer jobs until the other end closes."""
    for number in (signal.SIGTERM, signal.SIGINT):
        # A group's signal reaches us too; the other process decides when we are done.
        signal.signal(number, signal.SIG_IGN)
    from handler.boot import boot

    try:
        worker = boot(settings, timeline)
    except WorkerFault as error:
        from handler.frames import pack

        end.sendall(pack("failed", str(error)))
        return
    asyncio.run(_Server(worker).run(end))


class _Server:
    def __init__(self, worker: Worker) -> None:
        from handler.frames import Frames

        self._worker = worker
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._frames: Frames

    async def run(self, end: socket.socket) -> None:
        from handler.frames import open_frames

        ended = asyncio.Event()
        self._frames = await open_frames(end, self._on_frame, ended.set)
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
        body = await self._worker.handler.body(job, lambda chunk: self._frames.send("chunk", number, chunk))
        self._frames.send("reply", number, body)
