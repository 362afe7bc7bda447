"""The engine's process: boots the bundle and answers the jobs that the worker's other process hands over."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from engine.errors import WorkerFault
from handler.processes import signals
from handler.processes.fork import end_with

if TYPE_CHECKING:
    from engine.config import Settings
    from handler.startup.timeline import Timeline

_GRACE_S = 2.0
"""As long as the other process would give this one. A build of a plan ends with this process."""


def serve(end: socket.socket, settings: Settings, timeline: Timeline) -> None:
    """Boot, say "ready" or "failed" with a sentence, then answer jobs until the other end closes."""
    try:
        end_with(end, _GRACE_S)
        from handler.boot import boot

        worker = boot(settings, timeline)
    except WorkerFault as error:
        _fail(end, str(error))
        return
    except Exception as error:  # a defect of ours, or a machine that lacks something: told as well as one can
        _fail(end, f"{type(error).__name__}: {error}")
        raise
    signals.ignore()  # a group's reach this process too, and the other one decides when it is done
    from handler.processes import engine_server  # not at the top: the boot imports asyncio beside what takes longer

    engine_server.serve(end, worker)


def _fail(end: socket.socket, sentence: str) -> None:
    from handler.processes.frames import pack

    with suppress(OSError):  # the other process has ended as well
        end.sendall(pack("failed", sentence))
