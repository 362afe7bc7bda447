"""Every name that engine/backends/cuda.py takes from cuda-python exists there, with these parameters.

It imports without a driver. pycuda has no wheels and does not, so its names are checked on a GPU only.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import engine.backends.cuda
import engine.boot

cuda = pytest.importorskip("cuda.bindings.driver", reason="cuda-python is not installed")

SIGNATURES = {
    "cuDevicePrimaryCtxRetain": "(dev)",
    "cuStreamBeginCapture": "(hStream, mode: CUstreamCaptureMode)",
    "cuStreamEndCapture": "(hStream)",
    "cuGraphInstantiateWithFlags": "(hGraph, unsigned long long flags)",
    "cuGraphUpload": "(hGraphExec, hStream)",
    "cuGraphLaunch": "(hGraphExec, hStream)",
    "cuGraphDestroy": "(hGraph)",
    "cuGraphExecDestroy": "(hGraphExec)",
}


def names_used() -> set[str]:
    source = Path(engine.backends.cuda.__file__).read_text()
    return set(re.findall(r"bindings\.(\w+)", source))


def test_it_imports_where_warnings_are_errors():
    """As in these tests, on a GPU. In a process of its own, since `importorskip` has silenced what it warned of."""
    *_, name = engine.boot._BESIDE_TENSORRT
    assert cuda.__name__ == name
    subprocess.run([sys.executable, "-W", "error", "-c", f"import {name}"], check=True)


def test_the_list_is_complete():
    assert names_used() == {*SIGNATURES, "CUstreamCaptureMode"}


@pytest.mark.parametrize(("name", "parameters"), SIGNATURES.items())
def test_a_function_takes_these_parameters(name: str, parameters: str):
    assert getattr(cuda, name).__doc__.startswith(f"{name}{parameters}\n")


def test_the_capture_mode_and_the_codes():
    assert int(cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL) == 1
    assert int(cuda.CUresult.CUDA_SUCCESS) == 0
    assert int(cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY) == engine.backends.cuda._OUT_OF_MEMORY
    assert int(cuda.CUstream_flags.CU_STREAM_NON_BLOCKING) == engine.backends.cuda._NON_BLOCKING
    assert cuda.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS.name == "CUDA_ERROR_ILLEGAL_ADDRESS"
