"""Pages of 2 MB are asked for where ONNX Runtime computes, and nowhere else."""

import subprocess
import sys
from pathlib import Path

import pytest

from engine import huge_pages
from engine.backends import onnxruntime as backend
from engine.huge_pages import anonymous, ask

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


def test_only_large_memory_of_no_file_is_asked_for():
    assert list(anonymous(MAPS.splitlines(), 128 * MB)) == [(0x7F0000000000, 0x7F0008001000)]
    assert list(anonymous(MAPS.splitlines(), 127 * MB)) == [
        (0x7F0000000000, 0x7F0008001000),
        (0x7F0040000000, 0x7F0047FFF000),
    ]


def test_the_arena_gets_them(small_bundle: Path):
    command = [sys.executable, "-c", OPENS, str(small_bundle), str(backend._ARENA_BYTES)]
    large, advised = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert (large, advised) == (("1", "1") if Path("/sys/kernel/mm/transparent_hugepage").exists() else ("0", "0"))


def test_a_machine_that_tells_nothing_gets_none(monkeypatch: pytest.MonkeyPatch):
    def refuse(path: str) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(huge_pages, "open", refuse, raising=False)
    assert ask(MB) == 0
