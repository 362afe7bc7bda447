"""What a load-balancing worker replies: statuses, and bodies in a queue endpoint's form or in OpenAI's. Rule: pure."""

from __future__ import annotations

import re
from itertools import accumulate
from typing import Any

import orjson
from aiohttp import web

from engine.errors import InvalidInput, Overloaded, Unreachable, WorkerError, WorkerFault
from handler.aggregate import STOP
from handler.collector import loaded
from handler.reply import encode


class TooLate(WorkerFault):
    """The job took longer than it may."""


class TooLong(InvalidInput):
    """The body has more bytes than a request may have."""


class TooSlow(InvalidInput):
    """The body was not here in time."""


class Encoded(InvalidInput):
    """The body is compressed: a few kilobytes of it may be the longest there is, which nobody has to send."""


_KINDS = {TooLate: 504, TooLong: 413, TooSlow: 408, Encoded: 415}
_STATUS = {InvalidInput.prefix: 400, Overloaded.prefix: 503, Unreachable.prefix: 503}
"""By whose fault it is; the worker's own are 500."""
_OPENAI_TYPES = {**dict.fromkeys((400, 408, 413, 415), "invalid_request_error"), 503: "overloaded_error"}
_RETRY = {"Retry-After": "1"}
_OPENING = b"[{"
_NO_MARKS = bytes(set(range(256)) - set(b'"[]{}'))
_STRING = re.compile(rb'"[^"]*"')


def status_of(error: WorkerError) -> int:
    """That of a request which ended with `error`."""
    return next((status for kind, status in _KINDS.items() if isinstance(error, kind)), status_by(error.sentence()))


def status_by(sentence: str) -> int:
    """That of a job which the engine's process answered with `sentence`."""
    return next((status for prefix, status in _STATUS.items() if sentence.startswith(prefix)), 500)


def error_in(body: bytes) -> str:
    """The sentence in the body of a job that failed, which a task of one's own may write in its own way."""
    error = orjson.loads(body)["error"]
    return error if isinstance(error, str) else orjson.dumps(error).decode()


def without_stop(body: bytes) -> bytes:
    """`body` without what asks RunPod's queue for a fresh worker; the same object where it does not."""
    if body == b"{" + STOP[1:]:
        return b'{"output":null}'
    return body[: -len(STOP)] + b"}" if body.endswith(STOP) else body


def openai_reply(body: bytes) -> bytes:
    """What OpenAI's client gets of `body`, of a job that has not failed: the first of a list, or the whole output."""
    if (alone := _alone_in_list(body)) is not None:
        return alone
    output = orjson.loads(body).get("output")
    return orjson.dumps(output[0] if isinstance(output, list) and output else output)


def _alone_in_list(body: bytes) -> bytes | None:
    """The object that `body` has as the only one of its list; None where it has none, or only a reader could tell.

    It is cut out: to read megabytes of numbers and write them again would keep all other requests. Where nothing is
    escaped a string ends at the next quote. If what stands without the strings between the first and the last brace
    closes nothing that it has not opened, these two are a pair.
    """
    if not body.startswith(b'{"output":[{') or not body.endswith(b"}]}") or b"\\" in body:
        return None
    marks = _STRING.sub(b"", body.translate(None, _NO_MARKS))[len(b"{[{") : -len(b"}]}")]
    depths = accumulate(1 if mark in _OPENING else -1 for mark in marks)
    return body[len(b'{"output":[') : -len(b"]}")] if min(depths, default=0) >= 0 else None


def object_in(raw: bytes | bytearray, what: str) -> dict[str, Any]:
    """The JSON object in `raw`. Raises InvalidInput."""
    try:
        found = loaded(orjson.loads, raw)
    except orjson.JSONDecodeError as error:
        if "surrogate in string" in str(error):  # which JSON can write; of a queue's job the task's checks say so
            raise InvalidInput(
                f"a string in the body holds half a surrogate pair ({error}); cut strings between whole characters"
            ) from None
        raise InvalidInput(f"the body is not JSON ({error}); send {what}") from None
    if not isinstance(found, dict):
        raise InvalidInput(f"the body is not an object; send {what}")
    return found


def failed(named: dict[str, Any], status: int, sentence: str) -> web.Response:
    """An error in the form of a queue endpoint, behind what `named` tells."""
    return json_reply(encode({**named, "error": sentence}), status)


def openai_failed(status: int, sentence: str) -> web.Response:
    """An error in OpenAI's form."""
    error = {"message": sentence, "type": _OPENAI_TYPES.get(status, "server_error"), "param": None, "code": None}
    return json_reply(encode({"error": error}), status)


def json_reply(body: bytes, status: int = 200) -> web.Response:
    """What is to be sent again is to come on another connection: one that stays holds a file of a busy worker."""
    is_retry = status == 503
    reply = web.Response(
        body=body, status=status, content_type="application/json", headers=_RETRY if is_retry else None
    )
    if is_retry:
        reply.force_close()
    return reply
