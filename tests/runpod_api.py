"""RunPod's REST API v2 on localhost, as far as pods need it: it starts real processes.

A pod here is the command of its creation, run with the environment of its creation. Its address, through what stands in
for RunPod's proxy, is /pod/ID on this server.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote

from tests.ports import held_port, serving

KEY = "emulated-key"
PRICES = {"NVIDIA L4": (0.44, 0.39), "NVIDIA A40": (0.40, None), "NVIDIA H100 80GB HBM3": (2.99, 2.69)}


class EmulatedApi:
    """A context manager. `pods` are the running ones, `created` the fields of every creation.

    A pod that is ended cannot clean up; `scratch` is where it keeps its files.
    """

    def __init__(self, program: Sequence[str] = (sys.executable,), start_s: float = 0.2, scratch: str = "/tmp") -> None:
        self.pods: dict[str, dict[str, Any]] = {}
        self.created: list[dict[str, Any]] = []
        self.fail_terminations = 0
        self.drop_creation_reply = False
        self.hidden_for = 0
        """How often pods are listed before one that was created shows."""
        self.unknown_for = 0
        """How often one is asked for by its id before it is known."""
        self.nothing_free = False
        self.refuse_with: tuple[int, Any] | None = None
        """Status and content of every reply."""
        self._program, self._start_s, self._scratch = program, start_s, scratch
        self._ports = ExitStack()
        api = self

        class Handler(_Handler):
            pass

        Handler.api = api
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._running = ExitStack()

    def __enter__(self) -> Self:
        self.url = self._running.enter_context(serving(self._server))
        self.proxy = f"{self.url}/pod/{{pod}}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()
        for pod_id in list(self.pods):
            self._terminate(pod_id)
        self._ports.close()

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """Status and content of a reply. Raises ConnectionError to send nothing."""
        if self.refuse_with is not None:
            return self.refuse_with
        match [method, *path.strip("/").split("/")]:
            case ["GET", "v2", "catalog", "gpus", name] if unquote(name) in PRICES:
                secure, community = PRICES[unquote(name)]
                return 200, {"id": unquote(name), "price": {"secure": secure, "community": community}}
            case ["POST", "v2", "pods"]:
                if self.nothing_free:
                    return _problem(
                        400, "There are no longer any instances available with the requested specifications."
                    )
                pod_id = self._create(body)
                if self.drop_creation_reply:
                    raise ConnectionError
                return 201, self.pods[pod_id]
            case ["GET", "v2", "pods"] if self.hidden_for and self.pods:
                self.hidden_for -= 1
                return 200, {"pods": []}
            case ["GET", "v2", "pods"]:
                return 200, {"pods": list(self.pods.values())}
            case ["GET", "v2", "pods", _] if self.unknown_for:
                self.unknown_for -= 1
            case ["GET", "v2", "pods", pod_id] if pod_id in self.pods:
                return 200, self.pods[pod_id]
            case ["DELETE", "v2", "pods", pod_id] if pod_id in self.pods:
                if self.fail_terminations:
                    self.fail_terminations -= 1
                    return _problem(500, "please try again")
                self._terminate(pod_id)
                return 204, None
        return _problem(404, "resource not found")

    def _create(self, order: Any) -> str:
        self.created.append(order)
        pod_id = f"pod{len(self.created)}"
        port = self._ports.enter_context(held_port())
        command = [*self._program, *shlex.split(order["args"])[1:]]
        process = subprocess.Popen(
            command,
            env={**order["env"], "PORT_HERE": str(port), "RUNPOD_POD_ID": pod_id, "RUNPOD_API_BASE_URL": self.url}
            | {"RUNPOD_API_KEY": KEY, "PATH": "/usr/bin:/bin", "BUNDLE": "/nonexistent", "TMPDIR": self._scratch},
        )
        self.pods[pod_id] = {"id": pod_id, "name": order["name"], "status": "RUNNING"}
        self._processes = {**getattr(self, "_processes", {}), pod_id: (process, port, time.monotonic())}
        return pod_id

    def _terminate(self, pod_id: str) -> None:
        if self.pods.pop(pod_id, None):
            process, _, _ = self._processes[pod_id]
            process.kill()
            process.wait()

    def port_of(self, pod_id: str) -> int | None:
        """Where the pod's server listens; None while the pod starts, as behind the real proxy, and when it is gone."""
        if pod_id not in self.pods:
            return None
        process, port, started = self._processes[pod_id]
        if process.poll() is not None:
            self.pods[pod_id]["status"] = "EXITED"
        return port if time.monotonic() - started > self._start_s else None


class _Handler(BaseHTTPRequestHandler):
    api: EmulatedApi

    def _do(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self.path.startswith("/v2/"):
            self._pass_on(content if self.command in ("PUT", "POST") else None)
            return
        try:
            if self.headers["Authorization"] != f"Bearer {KEY}":
                status, reply = _problem(401, "missing bearer token")
            else:
                status, reply = self.api.answer(self.command, self.path, json.loads(content or "null"))
        except ConnectionError:
            self.close_connection = True
            return
        self._reply(status, reply if isinstance(reply, bytes) else b"" if reply is None else json.dumps(reply).encode())

    def do_GET(self) -> None:
        self._do()

    def do_PUT(self) -> None:
        self._do()

    def do_POST(self) -> None:
        self._do()

    def do_DELETE(self) -> None:
        self._do()

    def _pass_on(self, body: bytes | None) -> None:
        _, _, pod_id, *rest = self.path.split("/", 3)
        port = self.api.port_of(pod_id)
        if port is None:
            return self._reply(404, b"<html>not yet</html>")
        request = urllib.request.Request(f"http://127.0.0.1:{port}/{rest[0]}", body, method=self.command)
        request.add_header("Authorization", self.headers.get("Authorization", ""))
        try:
            with urllib.request.urlopen(request) as reply:
                self._reply(reply.status, reply.read(), reply.headers.get("X-Size"))
        except urllib.error.HTTPError as error:
            with error:
                self._reply(error.code, b"")
        except OSError:
            self._reply(502, b"<html>bad gateway</html>")
        return None

    def _reply(self, status: int, body: bytes, size: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if size:
            self.send_header("X-Size", size)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None: ...


def _problem(status: int, detail: str) -> tuple[int, Any]:
    return status, {"title": "of a problem", "status": status, "detail": detail}
