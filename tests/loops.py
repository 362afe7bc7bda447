"""What tests on an event loop share: handlers of a job loop, and to wait for something."""

import asyncio
import inspect
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from handler.reply import body_of_json, encode, to_json


def bodies(handler: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    """`handler`, a function of a job that returns or yields values or bodies, as a job loop calls it.

    Values are encoded, a stream of them is closed by an empty list.
    """

    async def parts(values: Any) -> AsyncGenerator[bytes, None]:
        value = None
        async with aclosing(values):
            async for value in values:
                yield _body(value)
        if not isinstance(value, bytes):
            yield b'{"output":[]}'

    async def handle(job: dict[str, Any]) -> Any:
        value = handler(job)
        if inspect.isawaitable(value):
            value = await value
        return parts(value) if inspect.isasyncgen(value) else _body(value)

    return handle


async def each(*values: Any) -> AsyncGenerator[Any, None]:
    """A stream of `values`."""
    for value in values:
        yield value


async def until(condition: Callable[[], object]) -> None:
    """Wait for what happens soon."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


def _body(value: Any) -> bytes:
    return value if isinstance(value, bytes) else encode(body_of_json(to_json(value)))
