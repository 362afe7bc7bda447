"""RunPod's pod API on localhost, as the SDK's functions for pods use it: a GraphQL endpoint that starts real processes.

A pod here is the command of its creation, run with the environment of its creation. Its address, through what stands in
for RunPod's proxy, is /pod/ID on this server.
"""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

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
        self.nothing_free = False
        self._program, self._start_s, self._scratch = program, start_s, scratch
        api = self

        class Handler(_Handler):
            pass

        Handler.api = api
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.proxy = f"{self.url}/pod/{{pod}}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        for pod_id in list(self.pods):
            self._terminate(pod_id)

    def answer(self, query: str) -> Any:
        """The `data` of the reply. Raises LookupError for what is not there, ConnectionError to send nothing."""
        if match := re.search(r'gpuTypes\(input: {id: "(.*?)"', query):
            return {"gpuTypes": [_gpu(name) for name in PRICES if name == match[1]]}
        if "podFindAndDeployOnDemand" in query:
            created = None if self.nothing_free else {"id": self._create(query)}
            if self.drop_creation_reply:
                raise ConnectionError
            return {"podFindAndDeployOnDemand": created}
        if match := re.search(r'podTerminate\(input: { podId: "(.*?)"', query):
            if self.fail_terminations:
                self.fail_terminations -= 1
                raise LookupError("please try again")
            self._terminate(match[1])
            return {"podTerminate": None}
        if match := re.search(r'pod\(input: {podId: "(.*?)"', query):
            return {"pod": self.pods.get(match[1])}
        if "myPods" in query:
            return {"myself": {"pods": list(self.pods.values())}}
        raise LookupError(f"unknown query: {query}")

    def _create(self, query: str) -> str:
        fields = {name: json.loads(value) for name, value in re.findall(r'(\w+): ("[^"]*"|\d+|true|false)', query)}
        env = dict(re.findall(r'{ key: "(.*?)", value: "(.*?)" }', query))
        self.created.append({**fields, "env": env})
        pod_id = f"pod{len(self.created)}"
        port = _free_port()
        command = [*self._program, *shlex.split(fields["dockerArgs"])[1:]]
        process = subprocess.Popen(
            command,
            env={**env, "PORT_HERE": str(port), "RUNPOD_POD_ID": pod_id, "RUNPOD_API_BASE_URL": self.url}
            | {"RUNPOD_API_KEY": KEY, "PATH": "/usr/bin:/bin", "BUNDLE": "/nonexistent", "TMPDIR": self._scratch},
        )
        pod = {"id": pod_id, "name": fields["name"], "desiredStatus": "RUNNING"}
        self.pods[pod_id] = pod
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
            self.pods[pod_id]["desiredStatus"] = "EXITED"
        return port if time.monotonic() - started > self._start_s else None


class _Handler(BaseHTTPRequestHandler):
    api: EmulatedApi

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != "/graphql":
            self._pass_on(body)
        elif self.headers["Authorization"] != f"Bearer {KEY}":
            self._reply(401, b"")
        else:
            try:
                reply = {"data": self.api.answer(json.loads(body)["query"])}
            except LookupError as error:
                reply = {"errors": [{"message": str(error)}]}
            except ConnectionError:
                self.close_connection = True
                return
            self._reply(200, json.dumps(reply).encode())

    def do_GET(self) -> None:
        self._pass_on(None)

    def do_PUT(self) -> None:
        self._pass_on(self.rfile.read(int(self.headers["Content-Length"])))

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


def _gpu(name: str) -> dict[str, Any]:
    secure, community = PRICES[name]
    return {"id": name, "securePrice": secure, "communityPrice": community}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
