"""A task without a model: a request to another service, with retries. An example to copy for any call to the outside.

Settings: UPSTREAM_URL, UPSTREAM_AUTHORIZATION, UPSTREAM_ATTEMPTS; FETCH_TIMEOUT_S is for each attempt, FETCH_HOSTS must
hold the service's host, and what engine/fetching/fetch.py refuses is refused here too: only https, only public
addresses. `task_config` is empty.
"""

from __future__ import annotations

import base64
import json
import random
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import isfinite
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn
from urllib.parse import unquote, urlencode

from engine.config import Limits, shown
from engine.errors import BadHost, ConfigError, InvalidInput, Unreachable, WorkerFault
from engine.fetching.fetch import Deadline, Network, Reply, check_url, request
from engine.tasks import payload as check
from engine.tasks.items import ItemsTask, Part, Request

if TYPE_CHECKING:
    from engine.tasks.base import Json
    from engine.tensors import Arrays

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_FIELDS = ("path", "method", "query", "body")
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 8.0
_UNQUOTED = 4  # times; clients quote a path once, or twice by mistake
_NOT_IN_PATHS = frozenset(map(chr, (*range(32), 127, ord("\\"))))
_DEEPEST = 250  # levels of JSON that are passed on: orjson writes 254, and the reply is around them


class ApiProxy(ItemsTask):
    """`{"request": {"path": "/items", "method": "GET", "query": {...}, "body": ...}}`, or `requests`.

    What the service answers with a status below 500 is the answer, refusals such as 404 included. On 429, 5xx and
    failed connections the same request is sent again, with the same Idempotency-Key, after pauses that double.
    """

    summary: ClassVar[str] = "Calls another service with timeout and retries; no model. An example to copy."
    auto_class: ClassVar[str] = ""
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"request": {"path": "/status"}},
        {
            "requests": [
                {"path": "/items", "query": {"page": 2}},
                {"path": "/items", "method": "POST", "body": {"a": 1}},
            ]
        },
    )
    one: ClassVar[str] = "request"
    many: ClassVar[str] = "requests"
    noun: ClassVar[str] = "an object with `path`"
    blocking: ClassVar[bool] = True

    def __init__(
        self, limits: Limits, network: Network | None = None, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        super().__init__(limits)
        self._url = limits.upstream_url.rstrip("/")
        self._network, self._sleep = network, sleep
        if not self._url:
            raise ConfigError("api-proxy needs UPSTREAM_URL; set it to the https URL that paths are appended to")
        try:
            check_url(self._url, limits.fetch_hosts)
        except InvalidInput as error:
            raise ConfigError(f"UPSTREAM_URL={shown(self._url)!r} cannot be called: {error}") from None
        if not all(" " <= character <= "~" for character in limits.upstream_authorization):
            raise ConfigError("UPSTREAM_AUTHORIZATION holds characters that a header cannot; set it to plain ASCII")

    def item(self, value: Any, name: str, payload: dict[str, Any]) -> Any:
        """Method, URL and body."""
        value = check.require_object(value, f"`{name}`")
        check.refuse_unknown(value, _FIELDS)
        method = check.choice({"method": check.shown(value.get("method") or "GET").upper()}, "method", _METHODS)
        path = check.string(value.get("path"), f"{name}.path", self.limits.max_chars)
        if not path.startswith("/") or not _stays_below(path):
            raise InvalidInput(
                f"`{name}.path` must begin with / and hold no ?, # or .., and no backslash or control character; "
                "parameters go into `query`"
            )
        query = check.require_object({} if value.get("query") is None else value["query"], f"`{name}.query`")
        # Nor true and false, which Python would write with a capital letter.
        if not all(isinstance(one, str | int | float) and not isinstance(one, bool) for one in query.values()):
            raise InvalidInput(f"`{name}.query` must hold strings and numbers only")
        try:
            body = None if value.get("body") is None else json.dumps(value["body"], allow_nan=False).encode()
        except (ValueError, RecursionError):
            raise InvalidInput(f"`{name}.body` holds NaN or infinity, or is nested too deeply") from None
        url = f"{self._url}{path}" + (f"?{urlencode(query)}" if query else "")
        check_url(url, self.limits.fetch_hosts)
        return method, url, body

    def split(self, request: Request, rows: int) -> Sequence[Request]:
        """One by one: a part whose answer is too large is split and answered anew, which would send it twice."""
        return super().split(request, 1)

    def parts(self, request: Request) -> list[Part]:
        """No rows; `data` is the service's answer."""
        parts = []
        for index, item in enumerate(request.items, request.first):
            field = "request" if request.single else f"requests[{index}]"
            begin = time.monotonic()
            reply = self._call(*item, check_spent=partial(request.spent.check, field, self.limits))
            request.spent.add(len(reply.body), time.monotonic() - begin)
            parts.append(Part([], reply))
        return parts

    def _call(self, method: str, url: str, body: bytes | None, *, check_spent: Callable[[], None]) -> Reply:
        """Send until it is answered, at most UPSTREAM_ATTEMPTS times, each after a check of what the job has spent.

        Raises Unreachable, InvalidInput for an answer that cannot be read, WorkerFault where UPSTREAM_URL is wrong.
        """
        headers = {"Idempotency-Key": uuid.uuid4().hex, "Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self.limits.upstream_authorization:
            headers["Authorization"] = self.limits.upstream_authorization
        for attempt in range(self.limits.upstream_attempts):
            is_last = attempt == self.limits.upstream_attempts - 1
            check_spent()
            deadline, wanted_pause = Deadline(self.limits.fetch_timeout_s), 0.0
            try:
                reply = request(method, url, self.limits, deadline, body=body, headers=headers, network=self._network)
            except BadHost as error:
                raise WorkerFault(f"UPSTREAM_URL: {error}") from error
            except Unreachable:
                if is_last:
                    raise
            else:
                if reply.status != 429 and reply.status < 500:
                    return reply
                if is_last:
                    raise Unreachable(f"the service answered with status {reply.status}, {attempt + 1} times")
                wanted_pause = _retry_after(reply)
            self._sleep(max(wanted_pause, _FIRST_PAUSE_S * 2**attempt * random.uniform(0.5, 1.5)))  # noqa: S311
        raise AssertionError("no attempt")

    def answer(self, item: Any, part: Part, outputs: Sequence[Arrays], options: Mapping[str, Any]) -> Json:
        """`status`, and `json`, `text` or `base64` by what the service sent."""
        content = part.data.body
        kind = part.data.headers.get("content-type", "").partition(";")[0].strip().lower()
        try:
            if kind == "application/json" or kind.endswith("+json"):
                return {"status": part.data.status, "json": _json(content)}
            if kind.startswith("text/"):
                return {"status": part.data.status, "text": content.decode()}
        except (ValueError, RecursionError, InvalidInput):
            pass  # not what the service says it is, or not to be passed on as that
        return {"status": part.data.status, "base64": base64.b64encode(content).decode()}


def _stays_below(path: str) -> bool:
    """Whether `path`, behind UPSTREAM_URL, names something below it, however often the server unquotes it.

    Control characters end a path to some servers, or are taken out, so that two points follow each other; what comes
    behind a semicolon is a parameter of the segment to some, and a backslash a slash.
    """
    plain, quoted = unquote(path), path
    for _ in range(_UNQUOTED):
        plain, quoted = unquote(plain), plain
    if plain != quoted or any(mark in path for mark in "?#") or any(one in _NOT_IN_PATHS for one in plain):
        return False
    return all(segment.partition(";")[0].strip() != ".." for segment in plain.split("/"))


def _json(content: bytes) -> Json:
    """Raises ValueError, RecursionError or InvalidInput for what is no JSON, or none that a reply can carry.

    Python takes numbers beyond a float's, and nesting of which it can write no more than half.
    """

    def refuse(constant: str) -> NoReturn:
        raise ValueError(constant)

    def number(text: str) -> float:
        return float(text) if isfinite(float(text)) else refuse(text)

    document = json.loads(content, parse_constant=refuse, parse_float=number)
    check.refuse_lone_surrogates(document)
    layer = [document]
    for _ in range(_DEEPEST + 1):
        containers = [one for one in layer if isinstance(one, dict | list)]
        if not containers:
            return document
        layer = [inner for one in containers for inner in (one.values() if isinstance(one, dict) else one)]
    return refuse("depth")


def _retry_after(reply: Reply) -> float:
    """The pause that the service asks for, in seconds, within reason; 0 for none, or for a date."""
    asked = reply.headers.get("retry-after", "")
    return min(float(asked), _LONGEST_PAUSE_S) if asked.isdecimal() else 0.0


TASK = ApiProxy
