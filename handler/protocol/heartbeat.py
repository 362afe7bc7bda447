"""The SDK's heartbeat, in a thread.

The stock SDK gives it a process of its own, because its handlers may hold the interpreter lock for long; here the
engine has the process of its own, and nothing that runs beside this thread computes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from handler.log import log
from handler.protocol import sdk

_NEEDED = ("RUNPOD_AI_API_KEY", "RUNPOD_POD_ID", "RUNPOD_WEBHOOK_PING")
_PAUSE_S = 1.0
_UNDER_WAY_S = 1.0


class _Stopped(Exception):
    """Ends the SDK's ping loop, which has no end of its own."""


class Heartbeat:
    """A mirror of the SDK's job list (`set`), and what the SDK's ping loop asks for it (`get`)."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._job_ids: str | None = None
        self._wanted = all(environ.get(name) for name in _NEEDED)  # the stock SDK's own conditions
        self._told = False
        self._is_stopped = False
        self._under_way = threading.Lock()

    def start(self) -> bool:
        """Ping from now on, where the environment says that this is a worker. False where there is no thread for it."""
        try:
            if self._wanted:
                threading.Thread(target=self._ping, name="heartbeat", daemon=True).start()
        except RuntimeError as error:
            if not self._told:
                log(
                    "WARN",
                    f"no heartbeat yet ({error}); raise the limit of processes and threads (ulimit -u, pids.max)",
                )
            self._told = True
            return False
        return True

    def stop(self) -> None:
        """Begin no further ping, and wait for the one that is under way, though not for long."""
        self._is_stopped = True
        if self._under_way.acquire(timeout=_UNDER_WAY_S):
            self._under_way.release()

    def _ping(self) -> None:
        while True:
            try:
                self._ping_on(sdk.heartbeat()())
            except _Stopped:
                return
            except Exception as error:  # a worker that stops to ping loses its jobs to another one
                log("ERROR", f"the heartbeat failed ({type(error).__name__}: {error}); it goes on")
                time.sleep(_PAUSE_S)

    def _ping_on(self, pings: Any) -> None:
        """As the SDK's `process_loop` does, which makes `pings` itself; what `stop` waits for holds the lock."""
        send = pings._send_ping

        def send_one() -> None:
            with self._under_way:
                send()

        pings._mirror, pings._send_ping = self, send_one
        pings.ping_loop()

    def set(self, job_ids: str | None) -> None:
        """Take the comma-separated ids of the running jobs."""
        # Half of a surrogate pair, which JSON can carry and no address, would cost all of them their pings.
        self._job_ids = job_ids and job_ids.encode("utf-8", "replace").decode()

    def get(self) -> str | None:
        """The ids, None when no job runs. The SDK's loop asks before each ping; what is raised ends it."""
        if self._is_stopped:
            raise _Stopped
        return self._job_ids
