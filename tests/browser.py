"""A headless Chromium, driven over its DevTools protocol: what it says, what a page measures, what it looks like."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_LIMIT_S = 60.0


class Page:
    """One tab. `said` holds what came to the console, errors and violations of the page's policy included."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.said: list[str] = []
        self._socket, self._ids = socket, itertools.count(1)
        self._events: list[str] = []

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the protocol, and its result."""
        number = next(self._ids)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        while True:
            found = await self._socket.receive_json(timeout=_LIMIT_S)
            if found.get("id") == number:
                assert "error" not in found, found
                return dict(found["result"])
            self._keep(found)

    async def open(self, path: Path, width: int, height: int = 900, *, scheme: str = "light") -> None:
        """Load a file in a window of this size, as on a screen of that colour scheme."""
        self.said.clear()
        for domain in ("Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable")
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._events.clear()
        await self.call("Page.navigate", url=path.resolve().as_uri())
        while "Page.loadEventFired" not in self._events:
            self._keep(await self._socket.receive_json(timeout=_LIMIT_S))

    async def value(self, expression: str) -> Any:
        """What a JavaScript expression comes to, as JSON."""
        found = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def _keep(self, event: dict[str, Any]) -> None:
        method, params = event.get("method", ""), event.get("params", {})
        self._events.append(method)
        if method == "Runtime.consoleAPICalled":
            self.said.append(f"{params['type']}: {[arg.get('value') for arg in params['args']]}")
        elif method == "Runtime.exceptionThrown":
            self.said.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded":
            self.said.append(f"{params['entry']['level']}: {params['entry']['text']}")


@asynccontextmanager
async def chromium() -> AsyncIterator[Page]:
    """A browser with an empty profile and one page; ended on the way out."""
    assert CHROMIUM
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        process = await asyncio.create_subprocess_exec(
            CHROMIUM, *options, "--no-first-run", "--remote-debugging-port=0", f"--user-data-dir={profile}",
            "about:blank", stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "TMPDIR": profile},  # where it leaves folders
        )  # fmt: skip
        try:
            async with asyncio.timeout(_LIMIT_S):
                base = await _address(process)
            async with aiohttp.ClientSession() as session:
                async with session.get(f"{base}/json/list") as reply:
                    (tab,) = [one for one in await reply.json() if one["type"] == "page"]
                async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=2**28) as socket:
                    yield Page(socket)
        finally:
            process.terminate()
            # Its end closes the pipe; what is left in there is read, so that it is not waited for.
            await process.communicate()


async def _address(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    while line := (await process.stderr.readline()).decode():
        if found := re.search(r"DevTools listening on ws://([^/]+)/", line):
            return f"http://{found[1]}"
    raise RuntimeError("the browser ended before it listened")
