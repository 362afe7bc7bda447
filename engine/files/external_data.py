"""Which files an ONNX file takes tensors from. Rule: no onnx, whose import no boot can wait for.

ONNX Runtime opens what stands there, `..` included, so that nothing may be overlooked: bytes that protobuf might read
in another way are an error. What holds no tensor is stepped over, as is what tensors hold, however large it is.
"""

from __future__ import annotations

import os
from collections.abc import Container, Mapping
from mmap import ACCESS_READ, mmap
from pathlib import Path, PurePosixPath
from typing import Final

from engine.errors import BundleError

_KEY: Final = b"location"
_NUMBER, _SIZED, _FIXED = 0, 2, {1: 8, 5: 4}
"""Kinds of fields on the wire (https://protobuf.dev/programming-guides/encoding/), with the bytes of those that have a
fixed size; of the other kinds onnx.proto has none."""

LEADING: Final[Mapping[str, Mapping[int, str]]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {13: "StringStringEntryProto"},
    "StringStringEntryProto": {},
}
"""Those of onnx.proto's messages that may hold a place outside, and the numbers of the fields that lead there."""
_LARGE: Final = ("GraphProto", "TensorProto")
"""Walked through; others are searched first, for there are thousands, of which few lead anywhere."""


def refuse_outside(folder: Path, onnx: str, files: Container[str], fix: str) -> None:
    """Raise BundleError where `onnx` takes tensors from anything but `files`: no hash, and no signature, covers that.

    `fix`: what to do about a file that cannot be read.
    """
    path = folder / onnx
    try:
        place = outside(folder, onnx, files)
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}); {fix}") from error
    except ValueError as error:
        raise BundleError(f"{path} is not an ONNX file ({error}); {fix}") from error
    if place:
        what = f"takes tensors from {place[:80]!r}, which is no file of the manifest"
        raise BundleError(f"{path} {what}; export the model again")


def outside(folder: Path, onnx: str, files: Container[str]) -> str:
    """A place that the file `onnx` of `folder` takes tensors from and that is none of `files`; empty if there is none.

    Raises OSError, and ValueError for what is no ONNX file.
    """
    with open(folder / onnx, "rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        places = sorted(map(os.fsdecode, locations(content)))
    for place in places:
        # Names with a star are ONNX Runtime's own: */_ORT_MEM_ADDR_/* is the memory of the process.
        if "*" in place or str(PurePosixPath(onnx).parent / place) not in files:
            return place or "a place without a name"
    return ""


def locations(content: bytes | mmap) -> set[bytes]:
    """What its tensors say of where they lie. Raises ValueError."""
    try:
        return _locations(content)
    except IndexError:
        raise ValueError("it ends within a field") from None


def _locations(content: bytes | mmap) -> set[bytes]:
    found: set[bytes] = set()
    pending = [("ModelProto", 0, len(content))]
    while pending:
        message, at, end = pending.pop()
        leading, strings = LEADING[message], {1: b"", 2: b""}  # an entry's key and value
        while at < end:
            tag, at = _number(content, at)
            if tag >> 32:  # of which protobuf takes the rest
                raise ValueError(f"no field before byte {at}")
            number, wire = tag >> 3, tag & 7
            if wire == _SIZED:
                size, begin = _number(content, at)
                at = begin + size
                if at > end:  # no number of a file's bytes either, perhaps
                    break
                if inner := leading.get(number):
                    if inner in _LARGE or content.find(_KEY, begin, at) >= 0:
                        pending.append((inner, begin, at))
                elif not leading:
                    strings[number] = content[begin:at]
            elif wire == _NUMBER:
                _, at = _number(content, at)
            elif wire in _FIXED:
                at += _FIXED[wire]
            else:
                raise ValueError(f"a field of kind {wire} before byte {at}")
        if at != end:
            raise ValueError(f"a field ends at byte {at}, beyond {end}")
        if strings[1] == _KEY:
            found.add(strings[2])
    return found


def _number(content: bytes | mmap, at: int) -> tuple[int, int]:
    """That at byte `at`, and where it ends."""
    value = content[at]
    if value < 128:
        return value, at + 1
    value, shift = value & 127, 7
    for place in range(at + 1, at + 10):
        byte = content[place]
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place + 1
        shift += 7
    raise ValueError(f"no number at byte {at}")
