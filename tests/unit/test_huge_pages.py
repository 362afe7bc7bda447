"""Pages of 2 MB are asked for where ONNX Runtime computes, and nowhere else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine import huge_pages
from engine.backends import onnxruntime as backend
from engine.huge_pages import HUGE_PAGE, anonymous, ask, collapse, used
from tests import large_pages

MB = 1 << 20
MAPS = """\
55d0c0000000-55d0c9000000 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0008001000 rw-p 00000000 00:00 0
7f0010000000-7f0018000000 rw-p 00000000 fe:00 123                        /bundle/weights.bin
7f0020000000-7f0028000000 r--p 00000000 00:00 0
7f0030000000-7f0038000000 rw-s 00000000 00:00 0
7f0040000000-7f0047fff000 rw-p 00000000 00:00 0
7ffc00000000-7ffc10000000 rw-p 00000000 00:00 0                          [stack]
"""
OPENS = """
import sys
from pathlib import Path
from engine.backends.onnxruntime import OnnxRuntimeEngine
from engine.bundle import open_bundle

engine = OnnxRuntimeEngine(open_bundle(Path(sys.argv[1])), threads=2, lanes=True)
engine.warm_up()
size, flags = 0, []
for line in open("/proc/self/smaps"):
    name, _, value = line.partition(":")
    if name == "Size":
        size = int(value.split()[0]) << 10
    elif name == "VmFlags":
        flags.append((size, "hg" in value.split()))
print(sum(advised and size >= int(sys.argv[2]) for size, advised in flags), sum(advised for _, advised in flags))
"""


OPENS_LANES = """
import sys
from pathlib import Path
from engine.backends.onnxruntime import OnnxRuntimeEngine
from engine.bundle import open_bundle
from tests.large_pages import huge_kb

engine = OnnxRuntimeEngine(open_bundle(Path(sys.argv[1])), threads=2, lanes=True)
engine.warm_up()
before = huge_kb()
engine.open_lanes()
print(before, huge_kb())
"""
MADE = """
import mmap, random
from engine.huge_pages import HUGE_PAGE, collapse
from tests.large_pages import huge_kb

memory = mmap.mmap(-1, 8 * HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)  # in small pages, whatever this machine gives by itself
written = random.Random(0).randbytes(4 * HUGE_PAGE)
memory[: len(written)] = written  # the other half is not used
memory.madvise(mmap.MADV_HUGEPAGE)
before = huge_kb()
put = collapse()
assert memory[: len(written)] == written
print(put >= 3 * HUGE_PAGE, huge_kb() - before, put)
"""


def test_only_large_memory_of_no_file_is_asked_for():
    assert list(anonymous(MAPS.splitlines(), 128 * MB)) == [(0x7F0000000000, 0x7F0008001000)]
    assert list(anonymous(MAPS.splitlines(), 127 * MB)) == [
        (0x7F0000000000, 0x7F0008001000),
        (0x7F0040000000, 0x7F0047FFF000),
    ]
    heap = (0x55D0C0000000, 0x55D0C9000000)
    assert next(anonymous(MAPS.splitlines(), 128 * MB, "[heap]")) == heap


def test_only_large_pages_that_are_used_are_made():
    small = HUGE_PAGE // os.sysconf("SC_PAGE_SIZE")
    asked = []

    def resident(at: int, size: int) -> bytes:
        asked.append((at, size))
        return b"".join(bytes([1] * count + [0] * (small - count)) for count in counts)

    counts = [small, small * 7 // 8, small * 7 // 8 - 1, 0, small]
    begin = 10 * HUGE_PAGE
    found = list(used(begin - 4096, begin + 5 * HUGE_PAGE + 4096, resident))
    assert found == [(begin, begin + 2 * HUGE_PAGE), (begin + 4 * HUGE_PAGE, begin + 5 * HUGE_PAGE)]
    assert asked == [(begin, 5 * HUGE_PAGE)]
    assert list(used(begin + 4096, begin + HUGE_PAGE + 4096, resident)) == []  # no whole one
    assert len(asked) == 1


@pytest.mark.skipif(not large_pages.KNOWN, reason="this kernel has none")
def test_what_is_in_use_is_put_into_them_and_nothing_changes():
    enough, grown_kb, put = subprocess.run(
        [sys.executable, "-c", MADE], capture_output=True, text=True, check=True
    ).stdout.split()
    assert enough == "True"
    if large_pages.AT_ONCE:
        assert 3 * HUGE_PAGE <= int(grown_kb) << 10 <= int(put)


def test_the_arena_gets_them(small_bundle: Path):
    command = [sys.executable, "-c", OPENS, str(small_bundle), str(backend._ARENA_BYTES)]
    large, advised = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert (large, advised) == (("1", "1") if large_pages.KNOWN else ("0", "0"))


@pytest.mark.skipif(not large_pages.ON_REQUEST_ALONE, reason="this kernel gives them by itself, or not at once")
def test_what_a_process_with_lanes_uses_lies_in_them(small_bundle: Path):
    command = [sys.executable, "-c", OPENS_LANES, str(small_bundle)]
    before, after = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert int(after) > int(before)


def test_a_machine_that_tells_nothing_gets_none(monkeypatch: pytest.MonkeyPatch):
    def refuse(path: str) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(huge_pages, "open", refuse, raising=False)
    assert ask(MB) == 0
    assert collapse() == 0
