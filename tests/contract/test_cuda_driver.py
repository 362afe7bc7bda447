"""The real pycuda and cuda-python over tests/cuda_driver, a driver made of software: no GPU, but what they do is real.

pycuda has no wheels: what needs it has the marker `driver`, for `make test-driver`, which compiles it first.
"""

import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.cuda_driver.build import PYCUDA, ROOT, compile_driver, compiler, environ

Run = Callable[..., str]

TESTS_ON_DOUBLES = (
    "tests/unit/test_cuda.py",
    "tests/unit/test_boot.py",
    "tests/unit/test_plan_on_double.py",
    "tests/unit/test_engine_times.py",
    "tests/contract/test_tensorrt.py",
    "tests/contract/test_engine.py",
    "tests/e2e/test_tensorrt_worker.py",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if compiler() is None:
        pytest.skip("no C compiler here to build the software driver with")
    return compile_driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def run(folder: Path) -> Run:
    """Start Python with `arguments` on the software driver; what it printed, where it ends well."""

    def start(*arguments: str, timeout: float = 60, **settings: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            env=environ(folder, **settings),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, f"exit code {done.returncode}:\n{done.stdout}"
        return done.stdout

    return start


# Without pycuda

CAPTURE = """
import ctypes
from cuda.bindings import driver as cuda
from tests.cuda_driver.device import library, reports

def call(function, *arguments):
    code, *values = function(*arguments)
    assert code == 0, code
    return values[0] if values else None

call(cuda.cuInit, 0)
call(cuda.cuCtxPushCurrent, call(cuda.cuDevicePrimaryCtxRetain, 0))
stream = int(call(cuda.cuStreamCreate, 1))
address, host = int(call(cuda.cuMemAlloc, 64)), call(cuda.cuMemHostAlloc, 64, 0)
mode = cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
call(cuda.cuStreamBeginCapture, stream, mode)
call(cuda.cuMemcpyHtoDAsync, address, host, 64, stream)
graph = call(cuda.cuStreamEndCapture, stream)
replay = call(cuda.cuGraphInstantiateWithFlags, graph, 0)
call(cuda.cuGraphDestroy, graph)
call(cuda.cuGraphUpload, replay, stream)
for value in (3, 4):
    ctypes.memset(host, value, 64)
    call(cuda.cuGraphLaunch, replay, stream)
    assert ctypes.string_at(library().emu_at(address, 64), 64) != bytes([value]) * 64  # not before somebody waits
    call(cuda.cuStreamSynchronize, stream)
    assert ctypes.string_at(library().emu_at(address, 64), 64) == bytes([value]) * 64

call(cuda.cuStreamBeginCapture, stream, mode)
code, _ = cuda.cuMemAlloc(8)
assert code == cuda.CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
code, graph = cuda.cuStreamEndCapture(stream)
assert (code, int(graph)) == (cuda.CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, 0)
library().emu_fail(b"cuGraphLaunch", 1, 1, 914)
try:
    cuda.cuGraphLaunch(replay, stream)
except ValueError as error:
    assert str(error) == "914 is not a valid CUresult"
assert reports() == "", reports()
"""


def test_cuda_python_captures_replays_and_tells_errors_as_the_engine_takes_it_to(run: Run):
    if find_spec("cuda") is None:
        pytest.skip("cuda-python is not installed")
    run("-W", "error", "-c", CAPTURE)


# With pycuda


@pytest.fixture
def run_with_pycuda(run: Run) -> Run:
    if not PYCUDA.exists():
        pytest.fail("pycuda is not built; `make test-driver` does that")
    return run


@pytest.mark.driver
def test_it_imports_where_warnings_are_errors(run_with_pycuda: Run):
    run_with_pycuda("-W", "error", "-c", "import pycuda.driver, cuda.bindings.driver")


@pytest.mark.driver
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", TESTS_ON_DOUBLES)
def test_tests_written_on_doubles_pass_on_the_real_packages(run_with_pycuda: Run, path: str):
    # A worker's reports would be seen by nobody. And its broken context is one that not even pop works in.
    strict = {"EMU_STRICT": "1", "EMU_STICKY_STACK": "1"} if "e2e" in path else {}
    said = run_with_pycuda("-m", "pytest", "-q", "-p", "tests.cuda_driver.plugin", path, timeout=600, **strict)
    assert " passed" in said


@pytest.mark.driver
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("a_thread_ends_after_the_context_broke", {"EMU_STICKY_STACK": "0"}),
        ("a_thread_ends_after_the_context_broke", {"EMU_STICKY_STACK": "1"}),
        ("a_context_cannot_be_pushed_within_a_block", {}),
        ("an_error_while_the_device_is_busy", {}),
        ("an_error_while_another_engine_is_captured", {}),
        ("an_engine_is_never_closed", {}),
        ("nor_one_that_was_lost", {"EMU_STICKY_STACK": "0"}),
        ("nor_one_that_was_lost", {"EMU_STICKY_STACK": "1"}),
        ("an_engine_goes_from_thread_to_thread", {}),
        ("two_engines_at_once", {}),
        ("a_driver_without_a_function", {"EMU_HIDDEN": "cuGraphUpload"}),
        ("the_tests_of_running_engines_on_a_gpu", {}),
    ],
)
def test_a_process(run_with_pycuda: Run, name: str, settings: dict[str, str]):
    said = run_with_pycuda("-m", "tests.cuda_driver.scenarios", name, EMU_STRICT="1", **settings)
    assert "\n done\n" in f"\n{said}", said


@pytest.mark.driver
@pytest.mark.parametrize(
    ("code", "step", "settings"),
    [(1, 11, {}), (700, 7, {"EMU_STICKY_STACK": "0"}), (700, 4, {"EMU_STICKY_STACK": "1"})],
)
def test_a_call_that_fails(run_with_pycuda: Run, tmp_path: Path, code: int, step: int, settings: dict[str, str]):
    """Whichever of an engine's life it is: no crash, no error but ours, and no memory left where CUDA still works."""
    run_with_pycuda("-m", "tests.cuda_driver.faults", str(code), str(step), str(tmp_path), **settings)
