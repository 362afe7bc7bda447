"""MP3 files get a length: their frames are walked, counted, and put behind a first frame that says how many there are.

libsndfile takes a file's length from its Xing or Info frame, and guesses from the first frame's bit rate where there is
none. It stops there, so what a wrong length leaves out is not heard. The walk also tells what is cut off, and what is
no frame. It looks at every byte a bounded number of times.

Frame headers: ISO/IEC 11172-3, 2.4.2.3 (MPEG-1), ISO/IEC 13818-3 (MPEG-2, lower rates); Fraunhofer's MPEG-2.5 halves
the rates once more. Xing, Info and LAME tags: gabriel.mp3-tech.org/mp3infotag.html; read as ffmpeg's mp3dec.c does.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from engine.errors import InvalidInput

_MPEG_1 = 3  # the version bits; 2 is MPEG-2, 0 MPEG-2.5
_KBITS = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)  # of layer III, from index 1
_KBITS_2 = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_SYNC = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]")  # layer III; a last bit of 0 announces a checksum
_ROOMY = 9  # the index of a bit rate whose frames hold a Xing and a LAME tag
_DECODER_DELAY = 529  # samples that decoders make before the first one: LAME's 528 and one, as mpg123 leaves them out
_ENCODERS = (b"LAME", b"Lavf", b"Lavc")  # whose tags hold the encoder's delay and padding
_LOOKS = 10_000  # places behind the last frame where another one may begin
_ID3_HEADER, _ID3V1 = 10, 128  # bytes; the header's last four hold the length of the rest, seven bits each
_MOST_TAGS = 10_000  # one behind the other, of ten bytes and up; a file has one
_ID3_FOOTER = 0x10  # a flag of ID3v2.4


class _Frame(NamedTuple):
    size: int
    """bytes"""
    kind: tuple[int, int, bool]
    """what no recording changes in the middle: version, index of the rate, whether there is one channel"""

    @property
    def samples(self) -> int:
        """Of each channel."""
        return 1152 if self.kind[0] == _MPEG_1 else 576

    @property
    def rate(self) -> int:
        return _RATES[self.kind[0]][self.kind[1]]

    @property
    def main_data(self) -> int:
        """Where it begins, behind header and side information; a Xing tag is there."""
        version, _, mono = self.kind
        if version == _MPEG_1:
            return 4 + (17 if mono else 32)
        return 4 + (9 if mono else 17)


class _Info(NamedTuple):
    frames: int | None
    delay: int | None
    padding: int


def behind_id3(content: bytes, field: str, at: int = 0) -> int:
    """Where what follows the ID3v2 tags at `at` begins. Raises InvalidInput, which names `field`, for too many."""
    count = 0
    while content[at : at + 3] == b"ID3" and at + _ID3_HEADER <= len(content):
        count += 1
        if count > _MOST_TAGS:
            raise InvalidInput(f"`{field}` has more than {_MOST_TAGS} ID3 tags in a row; send it without them")
        size = 0
        for byte in content[at + 6 : at + _ID3_HEADER]:
            size = size << 7 | byte & 0x7F
        has_footer = content[at + 5] & _ID3_FOOTER  # the header once more, which the length leaves out
        at += _ID3_HEADER + size + (_ID3_HEADER if has_footer else 0)
    return at


def with_length(content: bytes, max_s: float, field: str) -> bytes | None:
    """The MP3 file `content`, from its first frame on, with the right length in front; None if its end is missing.

    Frames are those that ffmpeg decodes, so the silent first ones of further files at the end of the first count. Of
    more than `max_s` seconds only a little more is kept. Raises InvalidInput, which names `field`, for other things
    between frames than ID3 tags, and for frames of different rates or channels.
    """
    first = _frame(content, 0)
    if first is None:
        raise InvalidInput(f"`{field}` cannot be decoded; its first MP3 frame is damaged")
    info = _info(content[: first.size], first)
    at = first.size if info else 0
    most = int(max_s * first.rate / first.samples) + 20  # delay and padding leave out less than 20 frames
    count, runs, start = 0, [], at
    while count < most:
        frame = _frame(content, at)
        if frame and frame.kind == first.kind:
            at += frame.size
            count += 1
            continue
        runs.append(content[start:at])
        start = behind_id3(content, field, at + _ID3V1 if content[at : at + 3] == b"TAG" else at)
        if start == at:
            break
        at = start
    else:
        runs.append(content[start:at])
    walked = count < most
    if at > len(content) or (walked and info and count < (info.frames or 0)):
        return None
    if walked and _goes_on(content, at):
        raise InvalidInput(
            f"`{field}` holds MP3 frames of several rates or channels, or something else between them; "
            "send one recording, encoded anew"
        )
    return b"".join([*_start(content, first, count, info or _Info(None, None, 0)), *runs])


def _frame(content: bytes, at: int) -> _Frame | None:
    """The frame whose header is at `at`; None where there is no such header. Its end may lie behind the content's."""
    if at + 4 > len(content) or not _SYNC.match(content, at):
        return None
    version, (bits, mode) = content[at + 1] >> 3 & 3, content[at + 2 : at + 4]
    kbits, rate = bits >> 4, bits >> 2 & 3
    if not 0 < kbits < 15 or rate == 3:
        return None
    return _Frame(_size(version, bits), (version, rate, mode >> 6 == 3))


def _size(version: int, bits: int) -> int:
    """Bytes of a frame whose header's third byte is `bits`: the bit rate's index, the rate's, and one for padding."""
    per_frame, table = (144_000, _KBITS) if version == _MPEG_1 else (72_000, _KBITS_2)
    return per_frame * table[(bits >> 4) - 1] // _RATES[version][bits >> 2 & 3] + (bits >> 1 & 1)


def _info(frame: bytes, header: _Frame) -> _Info | None:
    """What the file's first frame says, where it is no sound."""
    if frame[36:40] == b"VBRI":  # Fraunhofer's; what it counts is not certain
        return _Info(None, None, 0)
    tag = frame[header.main_data :]
    if tag[:4] not in (b"Xing", b"Info"):
        return None
    flags, at, frames = int.from_bytes(tag[4:8], "big"), 8, None
    if flags & 1:
        frames, at = int.from_bytes(tag[8:12], "big"), 12
    at += (4 if flags & 2 else 0) + (100 if flags & 4 else 0) + (4 if flags & 8 else 0)
    if tag[at : at + 4] not in _ENCODERS:
        return _Info(frames, None, 0)
    both = int.from_bytes(tag[at + 21 : at + 24], "big")
    return _Info(frames, both >> 12, both & 0xFFF)


def _goes_on(content: bytes, at: int) -> bool:
    """Whether frames follow, not at `at` alone: two in a row, as noise hardly has them."""
    for count, match in enumerate(_SYNC.finditer(content, at)):
        frame = _frame(content, match.start())
        following = frame and _frame(content, match.start() + frame.size)
        if count == _LOOKS or (frame and following and frame.kind == following.kind):
            return True
    return False


def _start(content: bytes, first: _Frame, count: int, info: _Info) -> list[bytes]:
    """Frames in front of `count` others, from which the decoder learns their number and what to leave out.

    Without an encoder's delay nothing is to be left out, but the decoder then leaves out its own. So a frame of silence
    goes first, and all of it is left out.
    """
    header = bytes([0xFF, content[1] | 1, _ROOMY << 4 | content[2] & 0x0C, content[3] & 0xC0])
    silent = header.ljust(_size(first.kind[0], header[2]), b"\0")
    # Padding counts from where the encoder's input ended; the decoder's delay is the least.
    padding = max(info.padding, _DECODER_DELAY) if info.frames == count else _DECODER_DELAY
    if info.delay is None:
        delay, before = first.samples - _DECODER_DELAY, [silent]
    else:
        delay, before = info.delay, []
    tag = b"Xing" + (1).to_bytes(4, "big") + (count + len(before)).to_bytes(4, "big")
    tag += b"LAME" + bytes(17) + (delay << 12 | padding).to_bytes(3, "big")
    at = first.main_data
    return [silent[:at] + tag + silent[at + len(tag) :], *before]
