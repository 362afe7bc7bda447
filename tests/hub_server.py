"""An emulated Hugging Face Hub for huggingface_hub's own client: repositories with commits, gated ones among them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

from tests.ports import serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_of_this_test"


@dataclass
class Hub:
    """What is there: id -> folder. All have the branch main, the tag v1 and one commit."""

    address: str = ""
    repositories: dict[str, Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    is_broken: bool = False
    fetched: list[str] = field(default_factory=list)


@contextmanager
def hub() -> Iterator[Hub]:
    """Serve one on localhost."""
    found = Hub()

    class Handler(_Handler):
        hub: ClassVar[Hub] = found

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as found.address:
        yield found


class _Handler(BaseHTTPRequestHandler):
    hub: ClassVar[Hub]
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        is_info = parts[:2] == ["api", "models"]
        repository, rest = "/".join(parts[2:4] if is_info else parts[:2]), parts[4:] if is_info else parts[2:]
        folder = self.hub.repositories.get(repository)
        revision = rest[1] if len(rest) > 1 else "main"
        if self.hub.is_broken:
            self._send(503, b"{}")
        elif folder is None:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif repository in self.hub.gated and not is_info and self._token() != TOKEN:
            self._send(401, b"{}", {"X-Error-Code": "GatedRepo"})
        elif revision not in ("main", "v1", COMMIT):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif is_info:
            names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
            info = {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
            self._send(200, json.dumps(info).encode())
        else:
            name = "/".join(rest[2:])
            content = (folder / name).read_bytes()
            if self.command == "GET":
                self.hub.fetched.append(name)
            digest = hashlib.sha256(content).hexdigest()
            self._send(200, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{digest}"'})

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing."""
