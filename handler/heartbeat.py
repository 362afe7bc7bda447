"""The SDK's heartbeat in a small process of its own, so that no load here can delay a ping.

The stock SDK forks the worker for it, threads, sockets and CUDA state included, and the fork outlives a worker that is
killed. This one is started fresh, reads the running job ids from its standard input and ends with it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping

from handler import sdk

_NEEDED = ("RUNPOD_AI_API_KEY", "RUNPOD_POD_ID", "RUNPOD_WEBHOOK_PING")


class Heartbeat:
    """The worker's side: a mirror of the SDK's job list (`set`) that writes to the ping process. Best effort."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._unsent = b""
        if all(environ.get(name) for name in _NEEDED):  # the stock SDK's own conditions
            self._process = subprocess.Popen([sys.executable, "-m", "handler.heartbeat"], stdin=subprocess.PIPE)
            assert self._process.stdin is not None
            os.set_blocking(self._process.stdin.fileno(), False)

    def set(self, job_ids: str | None) -> None:
        """Pass on the comma-separated ids of the running jobs. Never blocks and never raises."""
        if self._process is None or self._process.stdin is None:
            return
        if self._unsent.count(b"\n") < 2:  # while the pipe is full, the first rest must go whole; skip what is newer
            self._unsent += (job_ids or "").encode() + b"\n"
        try:
            sent = os.write(self._process.stdin.fileno(), self._unsent)
            self._unsent = self._unsent[sent:]
        except OSError:
            pass  # full: sent with the next change; broken: the ping process is gone, and RunPod will notice

    def stop(self) -> None:
        """End the ping process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._process = None


class _Latest:
    """The ping process's side: what the SDK's ping loop asks for the job ids."""

    def __init__(self) -> None:
        self._ids = ""

    def get(self) -> str | None:
        return self._ids or None

    def follow(self, fd: int) -> None:
        """Keep the latest line of `fd` until it ends."""
        with os.fdopen(fd, "r", encoding="utf-8") as lines:
            for line in lines:
                self._ids = line.rstrip("\n")


def main() -> None:
    """Ping until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the worker ends us when it is done
    sdk.load()
    from runpod.serverless.modules.rp_ping import Heartbeat as SdkHeartbeat

    latest = _Latest()
    threading.Thread(target=SdkHeartbeat.process_loop, args=(latest,), daemon=True).start()
    latest.follow(sys.stdin.fileno())
    os._exit(0)  # at once: the ping thread may be in the middle of a request


if __name__ == "__main__":
    main()
