"""What a recording's file says about its length, looked at and put right before libsndfile goes by it.

It takes what is left of a WAV file for all of it, 0 for no samples, a guess for the length of MP3, in a WAV file as
well, and the first of several Ogg or FLAC recordings for the only one, without a word.
"""

from __future__ import annotations

import re
import struct

from engine.audio.mp3 import behind_id3, with_length
from engine.audio.ogg import excess
from engine.errors import InvalidInput

_MAGIC = re.compile(rb"RIFF....WAVE|fLaC|OggS|\xff[\xe2\xe3\xf2\xf3\xfa\xfb]", re.DOTALL)  # MP3 is layer III
_UNKNOWN_SIZE = 0x7FFF_0000  # of a WAV file that was streamed, or more: 2 or 4 GB less a header, until the end
_MP3_INSIDE = b"\x55\0"  # the kind of a WAV file's samples: WAVE_FORMAT_MPEGLAYER3
_MOST_CHUNKS = 10_000  # of a WAV file, of eight bytes and up; one has a handful
_OGG_NEXT = re.compile(rb"OggS\0[\0\1\4\5]")  # a page that begins no stream
_OGG_FIRST = re.compile(rb"OggS\0[\2\3\6\7]")
_FLAC_FIRST = re.compile(rb"fLaC[\0\x80]\0\0\x22")  # the stream's information comes first and has 34 bytes


def readable(content: bytes, max_s: float, field: str) -> bytes:
    """The file `content` as libsndfile reads it rightly: without ID3 tags in front, with a length that is right.

    Raises InvalidInput, which names `field`, for what is no recording, is cut off or holds several; some of that only
    the decoder notices. Of an MP3 file of more than `max_s` seconds only a little more is kept.
    """
    content = content[behind_id3(content, field) :]  # libsndfile skips the tags too, and takes any format behind them
    if not _MAGIC.match(content):
        raise InvalidInput(f"`{field}` is not a WAV, FLAC, Ogg or MP3 recording")
    found: bytes | None = content
    if content[:4] == b"RIFF":
        found = _wav(content, max_s, field)
    elif content[:4] == b"OggS":
        found = _ogg(content, field)
    elif content[:4] == b"fLaC":
        _refuse_several(_FLAC_FIRST.search(content, 4), field)
    else:
        found = with_length(content, max_s, field)
    if found is None:
        raise cut_off(field)
    return found


def cut_off(field: str) -> InvalidInput:
    """The error for a file whose end is missing."""
    return InvalidInput(f"`{field}` ends before its own header says; send the whole file")


def damaged(field: str) -> InvalidInput:
    """The error for a file that no decoder reads."""
    return InvalidInput(f"`{field}` cannot be decoded; it is damaged or cut off")


def _refuse_several(second: re.Match[bytes] | None, field: str) -> None:
    if second:
        raise InvalidInput(f"`{field}` holds several recordings, one behind the other; send them one by one")


def _wav(content: bytes, max_s: float, field: str) -> bytes | None:
    """With the true size of its samples where it has none; None where there are less than its header says.

    Of one that holds MP3, that, as `with_length` makes it.
    """
    at, count, kind = 12, 0, b""
    while at + 8 <= len(content):
        count += 1
        if count > _MOST_CHUNKS:
            raise InvalidInput(f"`{field}` has more than {_MOST_CHUNKS} chunks before its samples; save it anew")
        size, left = int.from_bytes(content[at + 4 : at + 8], "little"), len(content) - at - 8
        if content[at : at + 4] == b"fmt ":
            kind = content[at + 8 : at + 10]
        if content[at : at + 4] == b"data":
            # Whoever knew the size of the whole file, wrote 0 because there is no sample.
            empty = len(content) - int.from_bytes(content[4:8], "little") in (8, 9)
            if size > left and size < _UNKNOWN_SIZE:
                return None
            is_open = size > left or (not size and not empty)
            if kind == _MP3_INSIDE:
                return with_length(content[at + 8 : len(content) if is_open else at + 8 + size], max_s, field)
            if is_open:
                return content[: at + 4] + left.to_bytes(4, "little") + content[at + 8 :]
            return content
        at += 8 + size + size % 2
    return content


def _ogg(content: bytes, field: str) -> bytes | None:
    """As it is; None where the last page lacks its end: the lengths of its parts stand in a table from byte 27 on."""
    page = content[content.rfind(b"OggS") :]
    parts = page[26] if len(page) > 26 else 0
    if len(page) < 27 + parts + sum(page[27 : 27 + parts]):
        return None
    sound = _OGG_NEXT.search(content)
    _refuse_several(sound and _OGG_FIRST.search(content, sound.end()), field)
    try:
        what = excess(content)
    except (ValueError, IndexError, ZeroDivisionError, struct.error):
        raise damaged(field) from None
    if what:
        raise InvalidInput(f"`{field}` is {what}; encode it anew")
    return content
