"""What the worker's processes do without, unless they are told otherwise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BOOT = """
import os, sys, threading, time
from pathlib import Path
from engine.config import Settings
from handler.boot import boot
from handler.startup.timeline import Timeline

worker = boot(Settings(bundle=Path(sys.argv[1]), engine="fake"), Timeline())
threads = [threading.Thread(target=lambda: [bytearray(n) for n in range(1000, 3000)]) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
deadline = time.monotonic() + 5  # the kernel's part of a thread outlives `join` for a moment
while sys.argv[2:] == ["None"] and len(os.listdir("/proc/self/task")) > 2 and time.monotonic() < deadline:
    time.sleep(0.001)
print(os.environ["OPENBLAS_NUM_THREADS"], len(os.listdir("/proc/self/task")), arenas())
worker.batcher.close()
"""
ARENAS = """
import ctypes, re, tempfile

def arenas():
    libc = ctypes.CDLL(None)
    libc.fopen.restype = ctypes.c_void_p
    with tempfile.NamedTemporaryFile() as file:
        stream = ctypes.c_void_p(libc.fopen(file.name.encode(), b"w"))
        libc.malloc_info(0, stream)
        libc.fclose(stream)
        return len(re.findall("<heap nr=", file.read().decode()))
"""

SERVER = """
import sys
from importlib.metadata import version
from handler.startup.frugal import import_no_client

import_no_client()
from handler.web import front

client = [name for name in sys.modules if name.startswith(("aiohttp.client", "aiohttp.conn"))]
assert client == ["aiohttp.client_exceptions"], client
import aiohttp
from aiohttp.http import SERVER_SOFTWARE

assert SERVER_SOFTWARE.endswith(f" aiohttp/{version('aiohttp')}"), SERVER_SOFTWARE
assert aiohttp.ClientSession.__module__ == "aiohttp.client"
assert aiohttp.web is front.web
"""


def test_the_server_is_imported_without_its_library_s_client_which_is_there_all_the_same():
    subprocess.run([sys.executable, "-c", SERVER], check=True)


@pytest.mark.parametrize(("given", "kept"), [(None, "1"), ("2", "2")])
def test_threads_of_numpy_and_arenas(small_bundle: Path, given: str | None, kept: str):
    names = ("OPENBLAS_NUM_THREADS", "MALLOC_ARENA_MAX")
    env = {name: value for name, value in os.environ.items() if name not in names}
    if given is not None:
        env |= dict.fromkeys(names, given)
    command = [sys.executable, "-c", ARENAS + BOOT, str(small_bundle), str(given)]
    threads_of_blas, threads, arenas = subprocess.run(
        command, capture_output=True, text=True, check=True, env=env
    ).stdout.split()
    assert threads_of_blas == kept
    if given is None:
        assert threads == "2"  # the main one, and the engine's
    assert arenas == kept
