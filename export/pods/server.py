"""`python -m export.pods.server`: what runs on a GPU pod while plans are built there (export/pods/on_runpod.py).

    GET  /state                      waiting, building, done or failed; the last lines; the exit code; the baked bundle
    PUT  /files/PATH?offset=N        a piece of a file of the bundle, in order
    POST /build                      JSON list: the arguments of `python -m export plan`; starts it
    GET  /files/PATH?offset=N        a piece of a file; X-Size tells the whole size

Pieces, because RunPod's proxy passes on neither large bodies nor long silences. Every request carries the one-time
token of this pod. When the time limit is over the pod ends itself, whatever became of the machine that started it.
"""

from __future__ import annotations

import hmac
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from engine.bundle import open_bundle
from engine.errors import BundleError
from export.command.exit_codes import UNAVAILABLE
from export.pods.api import GONE, Api

PORT = 8000
PIECE = 16 << 20
TOKEN, TIME_LIMIT = "PLAN_TOKEN", "PLAN_TIME_LIMIT_S"
COMMAND: Sequence[str] = (sys.executable, "-u", "-m", "export", "plan")
_LINES = 200
_PAUSES_S = (1, 2, 5, 10, 30, 60)
"""Between tries of a pod to end itself; the last one from then on."""


class Build:
    """One bundle, received into `folder`, and the build of its plans."""

    def __init__(self, folder: Path, baked: Path) -> None:
        self.folder = folder
        self._baked = baked
        self._lines: deque[str] = deque(maxlen=_LINES)
        self._count = 0
        self._state = "waiting"
        self._exit_code: int | None = None

    def state(self) -> dict[str, Any]:
        """What GET /state replies; `count` numbers the last line, so that a reader knows which ones are new."""
        return {
            "state": self._state,
            "lines": list(self._lines),
            "count": self._count,
            "exit_code": self._exit_code,
            "baked": self._baked_sha256(),
        }

    def _baked_sha256(self) -> str:
        try:
            return open_bundle(self._baked).sha256
        except BundleError:
            return ""

    def start(self, arguments: Sequence[str]) -> None:
        """Build in the background. A bundle that was not sent is the image's own."""
        if self._state != "waiting":
            return
        self._state = "building"
        threading.Thread(target=self._run, args=(arguments,), daemon=True).start()

    def _run(self, arguments: Sequence[str]) -> None:
        command = [*COMMAND, str(self.folder), *arguments]
        try:
            if not any(self.folder.iterdir()):
                shutil.copytree(self._baked, self.folder, dirs_exist_ok=True)
            with subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="backslashreplace"
            ) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    self._say(line.rstrip())
            self._exit_code = process.returncode
        except Exception as error:  # else it would be waited for until the time limit, which is paid
            self._say(f"the build did not start: {error}")
            self._exit_code = UNAVAILABLE
        self._state = "failed" if self._exit_code else "done"

    def _say(self, line: str) -> None:
        self._lines.append(line)
        self._count += 1


def server(build: Build, token: str, port: int = PORT) -> ThreadingHTTPServer:
    """A server for `build` that refuses whoever does not know `token`."""

    class Handler(_Handler):
        pass

    Handler.build, Handler.token = build, token
    return ThreadingHTTPServer(("0.0.0.0", port), Handler)  # noqa: S104


class _Handler(BaseHTTPRequestHandler):
    build: Build
    token: str
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if not self._is_allowed():
            return
        if self.path == "/state":
            self._reply(200, json.dumps(self.build.state()).encode())
        elif (file := self._file()) is None or not file.is_file():
            self._reply(404)
        else:
            with open(file, "rb") as content:
                content.seek(self._offset())
                self._reply(200, content.read(PIECE), file.stat().st_size)

    def do_PUT(self) -> None:
        body = self._body()
        if not self._is_allowed():
            return
        if body is None or (file := self._file()) is None:
            self._reply(400)
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "r+b" if file.exists() else "wb") as content:
            content.truncate(self._offset())
            content.seek(self._offset())
            content.write(body)
        self._reply(204)

    def do_POST(self) -> None:
        body = self._body()
        if self._is_allowed():
            self.build.start([str(argument) for argument in json.loads(body or b"[]")])
            self._reply(204)

    def _body(self) -> bytes | None:
        size = int(self.headers.get("Content-Length") or 0)
        if size > PIECE:
            self.close_connection = True
            return None
        return self.rfile.read(size)

    def _is_allowed(self) -> bool:
        given = (self.headers.get("Authorization") or "").encode()
        if hmac.compare_digest(given, f"Bearer {self.token}".encode()):
            return True
        self.close_connection = True
        self._reply(401)
        return False

    def _file(self) -> Path | None:
        """The file that the path names, inside the folder."""
        name = PurePosixPath(unquote(urlsplit(self.path).path).removeprefix("/files/"))
        if not self.path.startswith("/files/") or name.is_absolute() or ".." in name.parts:
            return None
        return self.build.folder / name

    def _offset(self) -> int:
        return int(parse_qs(urlsplit(self.path).query).get("offset", ["0"])[0])

    def _reply(self, status: int, body: bytes = b"", size: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if size is not None:
            self.send_header("X-Size", str(size))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Nothing: the build's own lines are what matters."""


def end_pod(environ: Mapping[str, str]) -> None:
    """Terminate the pod that this runs on, with the key that RunPod gives to every pod, until RunPod has it no more.

    It costs money as long as it is there, and a program that ends is started again: so this never gives up.
    """
    for attempt in count():
        try:
            api = Api(environ["RUNPOD_API_KEY"], environ)
            api.terminate(environ["RUNPOD_POD_ID"])
            if api.status(environ["RUNPOD_POD_ID"]) in (None, GONE):
                return
            failure = "RunPod still has it"
        except Exception as error:  # the network, the API: none may leave a pod running
            failure = f"{type(error).__name__}: {error}"
        pause = _PAUSES_S[min(attempt, len(_PAUSES_S) - 1)]
        print(f"this pod could not end itself ({failure}); trying again in {pause} s", flush=True)
        time.sleep(pause)


def main(environ: Mapping[str, str] = os.environ, port: int = PORT) -> int:
    """Serve until the time limit, then end the pod."""
    folder = Path(tempfile.mkdtemp(prefix="bundle-"))
    running = server(Build(folder, Path(environ.get("BUNDLE", "bundle"))), environ[TOKEN], port)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    threading.Event().wait(float(environ[TIME_LIMIT]))
    end_pod(environ)
    return 0


if __name__ == "__main__":
    sys.exit(main())
