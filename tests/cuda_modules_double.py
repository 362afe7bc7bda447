"""pycuda.driver and cuda.bindings.driver over tests/cuda_double.py: only the names that the project uses.

What they make of their arguments and of the driver's errors is as in pycuda 2026.1 and cuda-python 11.8.7: the tests
that use them run on the real ones as well, over the software driver (`make test-driver`).
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import ModuleType
from typing import Any

import numpy as np

from engine.tensors import Array
from tests.cuda_double import STREAM, CUresult, Device, Fault, Graph


class PycudaDouble(ModuleType):
    """The names of pycuda.driver that the project uses."""

    class Error(Exception): ...

    class MemoryError(Error): ...  # noqa: A001

    class LogicError(Error): ...

    class LaunchError(Error): ...

    class event_flags:  # noqa: N801
        DISABLE_TIMING = 2

    def __init__(self, device: Device) -> None:
        super().__init__("pycuda.driver")
        self.device = device

        @contextmanager
        def guarded(name: str) -> Iterator[None]:
            try:
                yield
            except Fault as fault:
                kind = {2: self.MemoryError, 719: self.LaunchError}.get(fault.code, self.LogicError)
                raise kind(f"{name} failed: {fault}") from None

        def free(name: str, done: bool, work: Callable[[], object]) -> None:
            """pycuda warns of what the driver refuses here, and goes on."""
            with guarded("free"):
                if done:
                    raise Fault(CUresult.CUDA_ERROR_INVALID_HANDLE)
            try:
                device.call(name, unsafe=True)
                work()
            except Fault as fault:
                print(f"PyCUDA WARNING: {name} failed: {fault}", file=sys.stderr)

        class Context:
            def __del__(self) -> None:
                device.leaked.append("context")  # pycuda detaches it, as no primary context may be

            def push(self) -> None:
                device.contexts.append(self)

            @staticmethod
            def pop() -> None:
                with guarded("context::pop"):
                    if not device.stack:
                        raise Fault(CUresult.CUDA_ERROR_INVALID_CONTEXT)
                    device.contexts.pop()

        class DeviceAllocation:
            def __init__(self, address: int) -> None:
                self.address = address
                self.freed = False

            def __int__(self) -> int:
                return self.address

            def free(self) -> None:
                free("cuMemFree", self.freed, lambda: device.memory.pop(self.address))
                self.freed = True

        class HostAllocation:
            def __init__(self, size: int) -> None:
                with guarded("cuMemHostAlloc"):
                    device.call("cuMemHostAlloc", unsafe=True)
                self.freed = False
                self.bytes = np.full(size, 0xCD, np.uint8)
                self.__array_interface__ = self.bytes.__array_interface__  # an array of it has it as its base
                device.pinned.append(self.bytes)

            def free(self) -> None:
                free("cuMemFreeHost", self.freed, self._unmap)
                self.freed = True

            def _unmap(self) -> None:
                self.bytes.fill(0xDD)  # whoever looks at it now would crash
                device.pinned = [one for one in device.pinned if one is not self.bytes]

        class Stream:
            handle = STREAM

            def __init__(self, flags: int = 0) -> None:
                with guarded("cuStreamCreate"):
                    device.call("cuStreamCreate")

            def __del__(self) -> None:
                if not device.stack:  # as below
                    device.leaked.append("stream")

            def synchronize(self) -> None:
                with guarded("cuStreamSynchronize"):
                    device.call("cuStreamSynchronize", unsafe=True)
                    device.drain()

        class Event:
            def __init__(self, flags: int = 0) -> None:
                with guarded("cuEventCreate"):
                    device.call("cuEventCreate")

            def __del__(self) -> None:
                # pycuda's destructor makes the context current by itself, but only in the thread that retained it.
                if not device.stack:
                    device.leaked.append("event")

            def record(self, stream: Stream) -> Event:
                with guarded("cuEventRecord"):
                    device.call("cuEventRecord")
                    self.passed = False
                    device.submit(lambda: setattr(self, "passed", True))
                return self

            def synchronize(self) -> Event:
                with guarded("cuEventSynchronize"):
                    device.call("cuEventSynchronize", unsafe=True)
                    while not self.passed:
                        device.drain(1)
                return self

        def pagelocked_empty(shape: int, dtype: Any) -> Array:
            assert dtype is np.uint8
            return np.asarray(HostAllocation(shape))

        def mem_alloc(size: int) -> DeviceAllocation:
            with guarded("cuMemAlloc"):
                try:
                    return DeviceAllocation(device.allocate(size))
                except Fault as fault:
                    if fault.code != CUresult.CUDA_ERROR_OUT_OF_MEMORY:
                        raise
                gc.collect()  # as pycuda does, before it asks once more
                return DeviceAllocation(device.allocate(size))

        def memcpy_htod_async(dest: int, src: Array, stream: Stream) -> None:
            with guarded("cuMemcpyHtoDAsync"):
                device.call("cuMemcpyHtoDAsync")
                assert device.is_pinned(src), "an asynchronous copy wants pinned memory"
                assert src.flags.c_contiguous
                device.check(dest, src.nbytes)

                def copy() -> None:
                    device.at(dest, src.nbytes)[:] = src.view(np.uint8)

                device.submit(copy)

        def memcpy_dtoh_async(dest: Array, src: int, stream: Stream) -> None:
            with guarded("cuMemcpyDtoHAsync"):
                device.call("cuMemcpyDtoHAsync")
                assert device.is_pinned(dest), "an asynchronous copy wants pinned memory"
                assert dest.flags.c_contiguous
                device.check(src, dest.nbytes)

                def copy() -> None:
                    dest.view(np.uint8)[:] = device.at(src, dest.nbytes)

                device.submit(copy)

        class Gpu:
            def __init__(self, index: int) -> None: ...

            def retain_primary_context(self) -> Context:
                with guarded("cuDevicePrimaryCtxRetain"):
                    device.call("cuDevicePrimaryCtxRetain")
                return Context()

        def init() -> None:
            with guarded("cuInit"):
                device.call("cuInit")

        def mem_get_info() -> tuple[int, int]:
            used = sum(map(len, device.memory.values()))
            return device.capacity - used, device.capacity

        for thing in (pagelocked_empty, mem_alloc, memcpy_htod_async, memcpy_dtoh_async, init, mem_get_info):
            setattr(self, thing.__name__, thing)
        self.Context, self.Stream, self.Event, self.Device = Context, Stream, Event, Gpu


class BindingsDouble(ModuleType):
    """The names of cuda.bindings.driver that the project uses. Functions return (code, value...)."""

    class CUstreamCaptureMode(IntEnum):
        CU_STREAM_CAPTURE_MODE_GLOBAL = 0
        CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1

    def __init__(self, device: Device) -> None:
        super().__init__("cuda.bindings.driver")
        self.CUresult = CUresult

        def binding(function: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
            def call(*arguments: Any) -> tuple[Any, ...]:
                try:
                    return (CUresult.CUDA_SUCCESS, *function(*arguments))
                except Fault as fault:
                    code = CUresult(fault.code)  # a ValueError, where it has no name for the code
                    return (code, Graph()) if function.__name__ not in _ALONE else (code,)

            call.__name__ = function.__name__
            setattr(self, function.__name__, call)
            return call

        @binding
        def cuDevicePrimaryCtxRetain(index: int) -> tuple[Any, ...]:
            return (object(),)

        @binding
        def cuStreamBeginCapture(stream: int, mode: int) -> tuple[Any, ...]:
            device.call("cuStreamBeginCapture")
            assert device.capturing is None
            device.capturing, device.invalidated = Graph(), False
            return ()

        @binding
        def cuStreamEndCapture(stream: int) -> tuple[Any, ...]:
            graph, device.capturing = device.capturing, None
            device.call("cuStreamEndCapture")
            if device.invalidated:
                raise Fault(CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED)
            return (graph,)

        @binding
        def cuGraphInstantiateWithFlags(graph: Graph, flags: int) -> tuple[Any, ...]:
            device.call("cuGraphInstantiateWithFlags")
            made = Graph()
            made.work = list(graph.work)
            device.graphs.append(made)
            return (made,)

        @binding
        def cuGraphDestroy(graph: Graph) -> tuple[Any, ...]:
            graph.destroyed = True
            return ()

        @binding
        def cuGraphExecDestroy(graph: Graph) -> tuple[Any, ...]:
            device.call("cuGraphExecDestroy")
            assert not graph.destroyed
            graph.destroyed = True
            return ()

        @binding
        def cuGraphUpload(graph: Graph, stream: int) -> tuple[Any, ...]:
            device.call("cuGraphUpload")
            return ()

        @binding
        def cuGraphLaunch(graph: Graph, stream: int) -> tuple[Any, ...]:
            device.call("cuGraphLaunch")
            assert not graph.destroyed
            assert device.capturing is None
            device.queue.extend(graph.work)
            return ()


_ALONE = ("cuStreamBeginCapture", "cuGraphUpload", "cuGraphLaunch", "cuGraphExecDestroy")
