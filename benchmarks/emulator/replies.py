"""Bodies and replies that both sides of the endpoint share: strict JSON in, JSON out."""

import json
from typing import Any, NoReturn

import orjson
from aiohttp import web

MB = 1024 * 1024
BODY_LIMIT = 20 * MB  # bytes of any request's body: runsync's limit, and the largest answer
CHUNK_LIMIT = MB  # bytes of a part of a stream, https://docs.runpod.io/serverless/workers/handler-functions


class NotJson(ValueError):
    """The sender's fault: the body is not what it should be."""


def _refuse(constant: str) -> NoReturn:
    raise NotJson(f"{constant} is not JSON")


# NaN and Infinity are Python's idea of JSON; a worker that sends them should learn it here.
_decode = json.JSONDecoder(parse_constant=_refuse).decode


def decode_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body, whatever the content type says. Raises NotJson.

    By orjson, for here the emulator's time goes while a worker waits for its next job; whole numbers that no 64 bits
    hold become floats. What it refuses is read again by Python, which takes half a surrogate pair and says where JSON
    ends to be it.
    """
    try:
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError:
            value = _decode(body.decode())
    except NotJson:
        raise
    except (ValueError, RecursionError) as error:
        raise NotJson(f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise NotJson(f"the body must be a JSON object, not {type(value).__name__}")
    return value


def reply(value: object, status: int = 200) -> web.Response:
    """A JSON reply."""
    return web.Response(body=json.dumps(value).encode(), status=status, content_type="application/json")


def refusal(status: int, message: str) -> web.Response:
    """A JSON reply that says what is wrong."""
    return reply({"error": message}, status)
