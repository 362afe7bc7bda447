"""The other end of export/pods/server.py: sends a bundle to a pod, has plans built, fetches what is new."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

from engine.bundle import CHECKSUM, MANIFEST, Bundle
from export.command.exit_codes import DEFECT, GATE_FAILED, REFUSED
from export.errors import ParityFailed, Refused, Unavailable
from export.pods.server import PIECE

_SILENCE_S = 60.0
_ATTEMPTS = 5


class _Defect(Refused):
    """A mistake of ours, whose traceback is among the pod's lines."""

    exit_code: ClassVar[int] = DEFECT


class PodClient:
    """Talks to the server on one pod, at `url`, until `deadline` (of time.monotonic).

    Every method raises TimeoutError once the deadline is over, and ConnectionError when the pod does not answer any
    more. `is_alive` is asked while it does not answer yet.
    """

    def __init__(self, url: str, token: str, deadline: float, is_alive: Callable[[], bool], pause_s: float) -> None:
        self._url, self._token, self._deadline = url, token, deadline
        self._is_alive, self._pause_s = is_alive, pause_s

    def wait(self) -> dict[str, Any]:
        """Wait until the server answers; its state. Raises Refused when the pod ended instead."""
        while True:
            try:
                return self._state(attempts=1)
            except ConnectionError:
                if not self._is_alive():
                    raise Refused("the pod ended before it answered; see its log in RunPod's console") from None
            self._pause()

    def send(self, bundle: Bundle) -> int:
        """Send every file of `bundle`; bytes."""
        sent = 0
        for name in (*bundle.manifest.files, MANIFEST, CHECKSUM):
            offset = 0
            with open(bundle.path / name, "rb") as file:
                while (piece := file.read(PIECE)) or not offset:
                    self._ask("PUT", f"/files/{quote(name)}?offset={offset}", piece)
                    offset += len(piece)
                    if len(piece) < PIECE:
                        break
            sent += offset
        return sent

    def build(self, arguments: Sequence[str], show: Callable[[str], None]) -> None:
        """Build plans and `show` the lines that this prints.

        Raises ParityFailed or a kind of Refused when the build fails, with its exit code; Unavailable when the pod
        knows nothing of it any more.
        """
        self._ask("POST", "/build", json.dumps(list(arguments)).encode())
        shown = 0
        while True:
            state = self._state()
            if state["state"] == "waiting":  # which it was before the request; RunPod starts again what ended
                raise Unavailable("the pod was started again while it built, as where memory ends; try another GPU")
            new = min(state["count"] - shown, len(state["lines"]))
            for line in state["lines"][len(state["lines"]) - new :]:
                show(line)
            shown = state["count"]
            if state["state"] == "done":
                return
            if state["state"] == "failed":
                raise _failure(state.get("exit_code"))
            self._pause()

    def fetch(self, name: str, target: Path) -> int:
        """Write the pod's file `name` to `target`; bytes."""
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # it may be a link to the bundle's own
        with open(target, "wb") as file:
            while True:
                piece, size = self._ask("GET", f"/files/{quote(name)}?offset={file.tell()}")
                file.write(piece)
                if file.tell() >= size or not piece:
                    return file.tell()

    def _state(self, attempts: int = _ATTEMPTS) -> dict[str, Any]:
        content, _ = self._ask("GET", "/state", attempts=attempts)
        try:
            state: dict[str, Any] = json.loads(content)
        except ValueError:
            raise ConnectionError("a page came instead of an answer") from None  # the proxy's
        return state

    def _ask(self, method: str, path: str, body: bytes | None = None, attempts: int = _ATTEMPTS) -> tuple[bytes, int]:
        """The reply and the size that it tells. What the network fails is sent again: every request may be repeated."""
        request = urllib.request.Request(f"{self._url}{path}", body, method=method)  # noqa: S310 (of our own making)
        request.add_header("Authorization", f"Bearer {self._token}")
        request.add_header("User-Agent", "worker-tensorrt")  # the proxy turns urllib's own away
        for attempt in range(1, attempts + 1):
            self._check_deadline()
            try:
                with urllib.request.urlopen(request, timeout=_SILENCE_S) as reply:  # noqa: S310
                    return reply.read(), int(reply.headers.get("X-Size") or 0)
            except (OSError, HTTPException) as error:
                if isinstance(error, urllib.error.HTTPError):
                    error.close()
                if attempt == attempts:
                    raise ConnectionError(str(error)) from error  # a TimeoutError would be the deadline's
            self._pause()
        raise AssertionError("unreachable")

    def _pause(self) -> None:
        self._check_deadline()
        time.sleep(min(self._pause_s, max(self._deadline - time.monotonic(), 0)))

    def _check_deadline(self) -> None:
        if time.monotonic() >= self._deadline:
            raise TimeoutError


def _failure(exit_code: int | None) -> Exception:
    """What stands for a build that ended with another code than 0; a negative one is the signal that killed it."""
    sentence = "the plans could not be built on the pod; its lines above say why"
    if exit_code == GATE_FAILED:
        return ParityFailed(sentence, ())
    if exit_code is not None and exit_code < 0:
        return Unavailable(
            f"the build on the pod was killed (signal {-exit_code}), as where memory ends; try another GPU"
        )
    return {REFUSED: Refused, DEFECT: _Defect}.get(exit_code or 0, Unavailable)(sentence)
