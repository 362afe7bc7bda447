"""Stands in for pycuda.driver and cuda.bindings.driver: a device whose memory is bytes here and whose stream runs late.

What is queued runs when something waits for it, not before: who reads results without waiting, or refills a buffer
that is still to be copied, gets wrong answers. Device addresses are no host addresses, and every access is checked
against what was allocated. It knows the rules of capture and of sticky errors that the engine relies on, and no others.

The modules over it are in tests/cuda_modules_double.py.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import ModuleType
from typing import Any

import numpy as np

import engine.backends.cuda
from engine.tensors import Array

_FIRST_ADDRESS = 0x7F00_0000_0000
STREAM = 0x5EA
"""The handle of the one stream."""


class CUresult(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_INVALID_HANDLE = 400
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_LAUNCH_FAILED = 719
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901


_TEXTS = {
    1: "invalid argument",
    2: "out of memory",
    201: "invalid device context",
    400: "invalid resource handle",
    700: "an illegal memory access was encountered",
    719: "unspecified launch failure",
    900: "operation not permitted when stream is capturing",
    901: "operation failed due to a previous error during capture",
}
"""Of cuGetErrorString, which is what pycuda tells; cuda-python gives the names."""


class Fault(Exception):
    """What a call of the driver ends with; each binding shows it in its own way."""

    def __init__(self, code: int) -> None:
        super().__init__(_TEXTS.get(code, "an error without a text here"))
        self.code = code


class Graph:
    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []
        self.destroyed = False


class Device:
    """One GPU with `capacity` bytes. `faults` maps the name of a driver function to the error that it gives next."""

    def __init__(self, capacity: int = 1 << 30) -> None:
        self.capacity = capacity
        self.memory: dict[int, Array] = {}
        self.pinned: list[Array] = []
        self.sticky: CUresult | None = None
        self.faults: dict[str, CUresult] = {}
        self.unnamed: dict[str, int] = {}
        """The name of a driver function -> an error of drivers newer than cuda-python, which has no name for it."""
        self.leaked: list[str] = []
        """What was dropped where no context is current."""
        self.calls: list[str] = []
        self.queue: list[Callable[[], None]] = []
        self.capturing: Graph | None = None
        self.invalidated = False
        self.graphs: list[Graph] = []
        self._next = _FIRST_ADDRESS
        self._stacks = threading.local()

    @property
    def stack(self) -> list[Any]:
        """This thread's contexts in the driver: one at most, since pycuda pops the one before it pushes the next."""
        return self.contexts[-1:]

    @property
    def contexts(self) -> list[Any]:
        """The contexts that this thread has pushed."""
        if not hasattr(self._stacks, "contexts"):
            self._stacks.contexts = []
        contexts: list[Any] = self._stacks.contexts
        return contexts

    def call(self, name: str, *, unsafe: bool = False) -> None:
        """What every driver function begins with; `unsafe` ones end a capture."""
        self.calls.append(name)
        if not self.stack and name not in ("cuInit", "cuDevicePrimaryCtxRetain"):
            raise Fault(CUresult.CUDA_ERROR_INVALID_CONTEXT)
        if self.sticky:
            raise Fault(self.sticky)
        if name in self.faults:
            fault = self.faults.pop(name)
            if fault in (CUresult.CUDA_ERROR_ILLEGAL_ADDRESS, CUresult.CUDA_ERROR_LAUNCH_FAILED):
                self.sticky = fault
            raise Fault(fault)
        if name in self.unnamed:
            raise Fault(self.unnamed[name])
        if unsafe and self.capturing is not None:
            self.invalidated = True
            raise Fault(CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)

    # Memory

    def allocate(self, size: int) -> int:
        self.call("cuMemAlloc", unsafe=True)
        if sum(map(len, self.memory.values())) + size > self.capacity:
            raise Fault(CUresult.CUDA_ERROR_OUT_OF_MEMORY)
        address = self._next
        self._next += -(-size // 4096) * 4096 + 4096  # with a gap behind it: overruns are found
        self.memory[address] = np.full(size, 0xAB, np.uint8)  # not zero: who reads what was never written sees it
        return address

    def at(self, address: int, size: int) -> Array:
        """The bytes at `address`, in place."""
        for base, memory in self.memory.items():
            if base <= address and address + size <= base + len(memory):
                return memory[address - base :][:size]
        self.sticky = CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
        raise Fault(self.sticky)

    def check(self, address: int, size: int) -> None:
        """What a copy does at once: an address that is none never reaches the device."""
        if not any(base <= address and address + size <= base + len(memory) for base, memory in self.memory.items()):
            raise Fault(CUresult.CUDA_ERROR_INVALID_VALUE)

    def is_pinned(self, array: Array) -> bool:
        return any(np.shares_memory(array, one) for one in self.pinned)

    # The stream

    def captures(self, stream: int) -> bool:
        """Whether what is queued is recorded instead."""
        return self.capturing is not None

    def invalidate(self, stream: int) -> None:
        """Do what a capture does not survive."""
        self.invalidated = True

    def submit(self, work: Callable[[], None], stream: int = STREAM) -> None:
        assert stream == STREAM
        (self.queue if self.capturing is None else self.capturing.work).append(work)

    def drain(self, until: int | None = None) -> None:
        """Run what is queued, or the first `until` of it."""
        count = len(self.queue) if until is None else until
        work, self.queue = self.queue[:count], self.queue[count:]
        for one in work:
            if self.sticky:
                raise Fault(self.sticky)
            one()


@contextmanager
def installed(device: Device, **modules: ModuleType) -> Iterator[Device]:
    """Let imports of pycuda.driver and cuda.bindings.driver find doubles of `device`; add `modules` by their names."""
    from tests.cuda_modules_double import BindingsDouble, PycudaDouble

    pycuda, cuda, bindings = ModuleType("pycuda"), ModuleType("cuda"), ModuleType("cuda.bindings")
    pycuda.driver = PycudaDouble(device)  # type: ignore[attr-defined]
    cuda.bindings = bindings  # type: ignore[attr-defined]
    bindings.driver = BindingsDouble(device)  # type: ignore[attr-defined]
    found = {
        "pycuda": pycuda,
        "pycuda.driver": pycuda.driver,
        "cuda": cuda,
        "cuda.bindings": bindings,
        "cuda.bindings.driver": bindings.driver,
        **modules,
    }
    before = {name: sys.modules.get(name) for name in found}
    contexts = dict(engine.backends.cuda._contexts)
    engine.backends.cuda._contexts.clear()
    sys.modules.update(found)
    try:
        yield device
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
        engine.backends.cuda._contexts.clear()
        engine.backends.cuda._contexts.update(contexts)
