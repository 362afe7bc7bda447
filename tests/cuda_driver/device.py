"""The software driver as tests see a device: the same names as tests/cuda_double.py's Device, over libcuda.so.1.

For processes that were started with tests.cuda_driver.build.environ. There is one driver a process, so what several
devices have in a test lies in one; and its sticky errors stay, so every test needs a process of its own.
"""

from __future__ import annotations

import ctypes
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

import tests.cuda_double
from engine.tensors import Array
from tests.cuda_double import CUresult, Fault

_HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_NOT_OURS = ("cuCtxPushCurrent", "cuCtxPopCurrent", "cuStreamIsCapturing", "cuLaunchHostFunc")
"""Calls that the engine does not choose: pycuda's, and those of the stand-in for TensorRT."""

failures: list[str] = []
"""What a kernel raised: where it runs, nobody would hear of it."""


def library() -> ctypes.CDLL:
    """libcuda.so.1, with the types of what tests call."""
    found = ctypes.CDLL("libcuda.so.1")
    found.emu_reports.restype = found.emu_call.restype = found.emu_fault_met.restype = ctypes.c_char_p
    found.emu_at.restype = ctypes.c_void_p
    found.emu_at.argtypes = [ctypes.c_uint64, ctypes.c_size_t]
    found.emu_call.argtypes = [ctypes.c_size_t]
    found.emu_fail.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_long, ctypes.c_int]
    found.cuLaunchHostFunc.argtypes = [ctypes.c_void_p, _HOST_FUNCTION, ctypes.c_void_p]
    found.emu_invalidate.argtypes = [ctypes.c_void_p]
    return found


def reports() -> str:
    """What was done that no correct program does, a line each."""
    return str(library().emu_reports().decode()) + "".join(failures)


class _Calls(list[str]):
    def clear(self) -> None:
        library().emu_forget_calls()


class _Faults(dict[str, CUresult]):
    """Faults to come; `often` is how many calls in a row meet one."""

    def __init__(self, often: int) -> None:
        self._often = often

    def __setitem__(self, name: str, code: int) -> None:
        # pycuda collects garbage and asks again for device memory that there is not.
        twice = name == "cuMemAlloc" and code == CUresult.CUDA_ERROR_OUT_OF_MEMORY
        library().emu_fail(name.encode(), 1, self._often + twice, int(code))


class SoftwareDevice:
    """The one device of this process, with `capacity` bytes."""

    def __init__(self, capacity: int = 1 << 30) -> None:
        self.capacity = capacity
        self.faults: Mapping[str, CUresult] = _Faults(1)
        self.unnamed: Mapping[str, int] = _Faults(1 << 30)
        self.leaked: list[str] = []
        """Stays empty: what leaks is in `reports`, or warned of by pycuda."""
        self.kernels: list[Any] = []

    @property
    def capacity(self) -> int:
        return int(os.environ["EMU_MEMORY"])

    @capacity.setter
    def capacity(self, size: int) -> None:
        os.environ["EMU_MEMORY"] = str(size)

    @property
    def calls(self) -> list[str]:
        lib = library()
        names = (lib.emu_call(index).decode() for index in range(lib.emu_call_count()))
        return _Calls(name for name in names if name not in _NOT_OURS)

    @property
    def stack(self) -> range:
        return range(library().emu_depth())

    @property
    def memory(self) -> range:
        return range(library().emu_allocated(0))

    @property
    def pinned(self) -> range:
        return range(library().emu_allocated(1))

    @property
    def graphs(self) -> list[SimpleNamespace]:
        """The executable ones."""
        lib = library()
        made, left = lib.emu_executables(0), lib.emu_executables(1)
        return [SimpleNamespace(destroyed=index >= left) for index in range(made)]

    @property
    def capturing(self) -> Any:
        return library().emu_capturing() or None

    def captures(self, stream: int) -> bool:
        status = ctypes.c_int()
        library().cuStreamIsCapturing(ctypes.c_void_p(stream), ctypes.byref(status))
        return status.value != 0

    def invalidate(self, stream: int) -> None:
        library().emu_invalidate(stream)

    @property
    def sticky(self) -> int:
        return int(library().emu_sticky())

    @sticky.setter
    def sticky(self, code: int) -> None:
        library().emu_stick(int(code))

    def at(self, address: int, size: int) -> Array:
        """The bytes at `address`, in place."""
        host = library().emu_at(address, size)
        if host is None:
            raise Fault(CUresult.CUDA_ERROR_ILLEGAL_ADDRESS)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(host))

    def sleep(self, milliseconds: int, stream: int) -> None:
        """Queue a kernel that takes so long."""
        lib = library()
        kernel = ctypes.cast(lib.emu_sleep, _HOST_FUNCTION)
        assert lib.cuLaunchHostFunc(stream, kernel, milliseconds) == 0

    def submit(self, work: Callable[[], None], stream: int) -> None:
        """Queue a kernel."""

        def run(argument: Any) -> None:
            try:
                work()
            except Fault:
                pass  # whoever raised it broke the context
            except BaseException:
                failures.append(traceback.format_exc())

        kernel = _HOST_FUNCTION(run)
        self.kernels.append(kernel)  # a graph may run it again
        code = library().cuLaunchHostFunc(stream, kernel, None)
        if code:
            raise Fault(code)


@contextmanager
def installed(device: SoftwareDevice, **modules: ModuleType) -> Iterator[SoftwareDevice]:
    """As the double's: pycuda and cuda-python are the real ones, `modules` are added by their names."""
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield device
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def replace_double() -> None:
    """Let whoever takes Device and `installed` from tests/cuda_double.py from now on get those of this module."""
    # Classes of their own with the same names: what is not the same in both, the tests that run on both would show.
    tests.cuda_double.Device = SoftwareDevice  # type: ignore[misc, assignment]
    tests.cuda_double.installed = installed  # type: ignore[assignment]
