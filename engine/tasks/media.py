"""Images and audio in a payload: base64, a data URI or an https URL becomes bytes. Decoding them is the tasks' affair.

`MediaTask` does it for lists of them. Whoever calls `bytes_of` or `each_bytes_of` directly does so in `preprocess`,
never in `parse`, since a fetch blocks, and sets `blocking = True`.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from string import hexdigits
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from engine.errors import InvalidInput, Unreachable
from engine.fetching.spent import Spent
from engine.tasks.items import ItemsTask, Part, Request, Room, missing
from engine.tasks.payload import kind

if TYPE_CHECKING:
    from engine.config import Limits
    from engine.tasks.base import Json

_FETCHED_AHEAD = 8
_DIGITS = np.array([int(chr(byte), 16) if chr(byte) in hexdigits else 16 for byte in range(256)], np.uint8)

FORMS = "base64, a data URI (`data:...;base64,...`) or an https URL"
"""What may stand in a field for media, in words for a caller."""


def bytes_of(value: Json, field: str, limits: Limits, spent: Spent | None = None) -> bytes:
    """The bytes that `value` stands for, at least one and at most `limits.max_media_bytes`; bytes stand for themselves.

    `field` names the value in errors; `spent` is the job's, in which several values may be URLs. Raises InvalidInput,
    or Unreachable where a URL may work later. Blocks while it fetches.
    """
    if isinstance(value, bytes):
        return value
    content = _content(require(value, field), field, limits, spent or Spent())
    if not content:
        raise InvalidInput(f"`{field}` is empty; it must be {FORMS}")
    if len(content) > limits.max_media_bytes:
        raise InvalidInput(_too_large(field, len(content), limits))
    return content


def each_bytes_of(items: Sequence[tuple[str, Json]], limits: Limits, spent: Spent) -> Generator[bytes, None, None]:
    """What `bytes_of` gives for every (field, value), in order; where several are URLs, a few are fetched ahead."""
    if sum(_is_url(value) for _, value in items) < 2:
        yield from (bytes_of(value, field, limits, spent) for field, value in items)
        return
    from concurrent.futures import Future, ThreadPoolExecutor

    ahead: deque[Future[bytes]] = deque()
    threads = ThreadPoolExecutor(_FETCHED_AHEAD, thread_name_prefix="fetch")
    try:
        for field, value in items:
            ahead.append(threads.submit(bytes_of, value, field, limits, spent))
            if len(ahead) == _FETCHED_AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        # Behind one that failed. Not waited for: whoever drops this generator last may be the event loop.
        threads.shutdown(wait=False, cancel_futures=True)


class MediaTask(ItemsTask):
    """Base of tasks on images or recordings: an item is the name of its field, for errors, and what stands in it."""

    noun: ClassVar[str] = FORMS
    blocking: ClassVar[bool] = True
    """An item may have to be fetched."""

    def item(self, value: Any, name: str, payload: dict[str, Any]) -> Any:
        """Any string; what it holds is looked at in `parts`, off the event loop."""
        return name, require(value, name)

    def parts(self, request: Request) -> list[Part]:
        """The part of every item, in order. Raises InvalidInput or Unreachable."""
        contents = each_bytes_of(request.items, self.limits, request.spent)
        room, parts, count, items = Room(self, request.share), [], 0, list(request.items)
        for index, content in enumerate(contents):
            request.spent.refuse_stopped()
            field, value = request.items[index]
            # Split again, or made again when it has waited for other jobs, it is not fetched a second time.
            if _is_url(value) and request.spent.may_keep(len(content)):
                request.items[index] = (field, content)
            parts.append(self.part(field, content, request.options))
            count += len(parts[-1].rows)
            self.refuse_rows(count)
            room.take(parts[-1].rows, f"`{field}` and what is before it", (index + 1) / len(request.items))
        if not request.is_part:
            request.items = items
        return parts

    def part(self, field: str, content: bytes, options: Mapping[str, Any]) -> Part:
        """The rows that the bytes of one file make. Raises InvalidInput; `field` names the file in errors."""
        raise missing(self, "part")


def require(value: Json, field: str) -> str:
    """`value` when it may be media, by its type alone: the check for `parse`. Raises InvalidInput."""
    if not isinstance(value, str):
        raise InvalidInput(f"`{field}` must be {FORMS}, got {kind(value)}")
    return value


def _is_url(value: Json) -> bool:
    return isinstance(value, str) and value[:6].lower() == "https:"


def _content(value: str, field: str, limits: Limits, spent: Spent) -> bytes:
    scheme, colon, rest = value[:16].lower().partition(":")
    if not colon:
        return _from_base64(value, field, limits)
    if scheme == "data":
        return _from_data_uri(value, field, limits)
    if scheme == "https":
        return _fetched(value, field, limits, spent)
    what = f"a URL that begins with {scheme}:" if rest.startswith("//") else "something else"
    raise InvalidInput(f"`{field}` must be {FORMS}, got {what}")


def _fetched(url: str, field: str, limits: Limits, spent: Spent) -> bytes:
    from engine.fetching.fetch import fetch

    spent.check(field, limits)
    begin = time.monotonic()
    try:
        content = fetch(url, limits)
        spent.add(len(content), time.monotonic() - begin)
        return content
    except (InvalidInput, Unreachable) as error:
        raise type(error)(f"`{field}`: {error}") from error


def _from_data_uri(value: str, field: str, limits: Limits) -> bytes:
    header, comma, data = value.partition(",")
    if not comma:
        raise InvalidInput(f"`{field}` is a data URI without a comma; write `data:TYPE;base64,DATA`")
    if header.rpartition(";")[2].strip().lower() == "base64":
        return _from_base64(_unquoted(data).decode("latin-1") if "%" in data else data, field, limits)
    if len(data) > 3 * limits.max_media_bytes:  # every byte may be written as three characters
        raise InvalidInput(_too_large(field, len(data), limits))
    return _unquoted(data)


def _unquoted(text: str) -> bytes:
    """Its bytes, of which any may be written as %xx; urllib's unquote_to_bytes takes seconds where millions are."""
    coded = np.frombuffer(text.encode("utf-8", "surrogatepass") + b"\0\0", np.uint8)
    at = np.flatnonzero(coded == ord("%"))
    high, low = _DIGITS[coded[at + 1]], _DIGITS[coded[at + 2]]
    are_codes = (high < 16) & (low < 16)
    at = at[are_codes]
    made, kept = coded.copy(), np.ones(len(coded), bool)
    made[at] = (16 * high + low)[are_codes]
    kept[at + 1] = kept[at + 2] = False
    plain: bytes = made[kept][:-2].tobytes()
    return plain


def _from_base64(text: str, field: str, limits: Limits) -> bytes:
    # Lines are broken by some encoders; four characters make three bytes.
    text = "".join(text.split()) if any(space in text for space in "\n\r\t ") else text
    size = len(text) * 3 // 4 - text[-2:].count("=")
    if size > limits.max_media_bytes:
        raise InvalidInput(_too_large(field, size, limits))
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(f"`{field}` is neither a URL nor valid base64 ({error}); it must be {FORMS}") from None


def _too_large(field: str, size: int, limits: Limits) -> str:
    return f"`{field}` has {size} bytes, allowed are {limits.max_media_bytes} (MAX_MEDIA_BYTES)"
