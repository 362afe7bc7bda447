"""Exports in processes of their own, started in milliseconds by tests/export_zygote.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PATIENCE_S = 60


@dataclass(frozen=True)
class Ended:
    """What an export came to; `code` is negative for a signal."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """All of stdout, as the one object that it is with --json."""
        return json.loads(self.out)


class Exports:
    """Starts exports, one at a time."""

    def __init__(self, zygote: subprocess.Popen[str], folder: Path) -> None:
        self._zygote, self._folder = zygote, folder

    def run(self, *argv: str | Path, **changes: Any) -> Ended:
        """One export from start to end; `changes` are those of a request to the zygote."""
        self.start(*argv, **changes)
        return self.ended()

    def start(self, *argv: str | Path, environ: Mapping[str, str] | None = None, **changes: Any) -> int:
        """Start one, and return its process id."""
        for name in ("stdout", "stderr"):
            (self._folder / name).write_text("")
        request = {
            "argv": [str(one) for one in argv],
            "stdout": str(self._folder / "stdout"),
            "stderr": str(self._folder / "stderr"),
            "environ": dict(environ or {}),
            **changes,
        }
        assert self._zygote.stdin is not None
        self._zygote.stdin.write(json.dumps(request) + "\n")
        self._zygote.stdin.flush()
        return int(self._line())

    def send_after(self, number: signal.Signals, line: str, pid: int, stream: str = "stdout") -> None:
        """Send a signal as soon as a line that begins so is on that stream."""
        end = time.monotonic() + _PATIENCE_S
        while time.monotonic() < end:
            if any(said.startswith(line) for said in (self._folder / stream).read_text().splitlines()):
                break
            time.sleep(0.002)
        os.kill(pid, number)

    def ended(self) -> Ended:
        """Wait for the one that was started."""
        code = int(self._line())
        return Ended(code, (self._folder / "stdout").read_text(), (self._folder / "stderr").read_text())

    def _line(self) -> str:
        assert self._zygote.stdout is not None
        return self._zygote.stdout.readline()


@contextmanager
def exports(folder: Path, **environ: str) -> Iterator[Exports]:
    """A zygote with these variables; `folder` is for what its children print."""
    zygote = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.export_zygote"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environ},
    )
    with zygote:
        assert zygote.stdout is not None
        assert zygote.stdout.readline() == "ready\n"
        yield Exports(zygote, folder)
        assert zygote.stdin is not None
        zygote.stdin.close()
