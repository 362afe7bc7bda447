"""Handlers of a job loop in tests: functions of a job that return or yield values, or bodies that are encoded."""

import inspect
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from handler.reply import body_of_json, encode, to_json


def bodies(handler: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    """`handler` as a job loop calls it: its values encoded, a stream of them closed by an empty list."""

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


def _body(value: Any) -> bytes:
    return value if isinstance(value, bytes) else encode(body_of_json(to_json(value)))
