"""CUDA: one device's primary context, one stream, memory, events, capture and replay. Nothing else calls CUDA.

pycuda owns the context, the stream and the memory; cuda-python's driver bindings capture, which pycuda cannot. Both are
imported here alone, and only when a driver was found: see probe.py. Every error leaves as an EngineError of one kind:

    OutOfMemory    an allocation failed; smaller ones may not
    EngineLost     "sticky": CUDA answers every later call in this process with it, so nothing may run again
    EngineError    any other
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.errors import EngineError, EngineLost, OutOfMemory

if TYPE_CHECKING:
    from engine.tensors import Array

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING of cuda.h: does not wait for the legacy stream, which others may use
_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
_UNKNOWN = 999  # CUDA_ERROR_UNKNOWN

_contexts: dict[int, Any] = {}
"""Device -> its primary context, retained once and never released before the process ends: released, it would stay
current in the thread that did it, and the next user of CUDA there would meet a dead context."""


class _Failure(Exception):
    """A call of cuda-python's that did not succeed."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Cuda:
    """The device `index`. Raises EngineError when it cannot be used.

    A CUDA context is current in a thread. Whatever touches the device stands in a `with cuda.active(...)` block, which
    makes it so for the block and for this thread; so an engine may be loaded in one thread and run in another.
    """

    def __init__(self, index: int = 0) -> None:
        self.allocations = 0
        """How often device or pinned memory was asked for. After warm-up it stays as it is."""
        self._held: list[Any] = []
        self._events: list[Any] = []
        self._replays: list[Any] = []
        self._stream: Any = None
        try:
            import pycuda.driver as driver
            from cuda.bindings import driver as bindings  # `cuda.cuda`, its old name, warns
        except Exception as error:  # ImportError, or whatever a library that does not load raises
            raise EngineError(f"pycuda and cuda-python do not load: {error}; install requirements/all.txt") from error
        self._driver, self._bindings = driver, bindings
        try:
            driver.init()
            # The primary one, which TensorRT and ONNX Runtime use as well: a second would cost its own memory.
            if index not in _contexts:
                _contexts[index] = driver.Device(index).retain_primary_context()
                # Kept beyond the end of Python as well: pycuda's destructor calls cuCtxDetach, which is not for it.
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(_contexts[index]))
                with suppress(_Failure):  # for `_abandon`, which gives up the other one
                    self._call(bindings.cuDevicePrimaryCtxRetain, index)
            self._context = _contexts[index]
        except driver.Error as error:
            kind = OutOfMemory if isinstance(error, driver.MemoryError) else EngineError
            raise kind(f"CUDA does not start: {error}") from error
        with self.active("creating a stream"):
            self._stream = driver.Stream(_NON_BLOCKING)

    @property
    def stream(self) -> int:
        """The stream's handle, for TensorRT."""
        return int(self._stream.handle)

    @contextmanager
    def active(self, doing: str) -> Iterator[None]:
        """Make the context current for the block, which may stand inside another.

        Whatever CUDA raises there becomes an error that says `doing`. An EngineError of the block's own becomes
        EngineLost when the context is broken.
        """
        try:
            self._context.push()
            try:
                yield
            except EngineLost:
                raise
            except (self._driver.Error, _Failure, EngineError) as error:
                sticky = self._sticky()
                if isinstance(error, EngineError) and not sticky:
                    # Not `raise ... from error`, nor kept in a local: an error that leads to itself is freed by the
                    # cyclic collector alone, which does not run during a boot, and with it what its traceback names.
                    raise
                raise self._translated(error, doing, sticky) from error
            finally:
                self._driver.Context.pop()
        except self._driver.Error as error:  # of push and pop themselves
            self._abandon()
            if isinstance(error.__context__, EngineLost):  # what the block ended with; pop's error only follows from it
                raise error.__context__ from error.__context__.__cause__
            raise EngineLost(f"CUDA failed while {doing}: {error}") from error

    def _abandon(self) -> None:
        """Give the context up where it can no longer be pushed or popped.

        pycuda would end the whole process: with abort when a thread ends while a context is on pycuda's own stack, and
        with an exception in a destructor that cannot push the context. One that was detached is dropped from the stacks
        of all threads, and destructors leave it alone.
        """
        with suppress(self._driver.Error):  # it was detached before
            self._context.detach()
        self._driver.Context.get_current()  # drops what was detached from this thread's stack

    # Memory

    def device(self, size: int) -> int:
        """Allocate `size` bytes on the device, at least 1; their address, a multiple of 256."""
        self.allocations += 1
        memory = self._driver.mem_alloc(max(size, 1))
        self._held.append(memory)
        return int(memory)

    def pinned(self, size: int) -> Array:
        """Allocate `size` bytes of page-locked host memory, zeroed, in which the device reads and writes directly."""
        self.allocations += 1
        memory: Array = self._driver.pagelocked_empty(max(size, 1), np.uint8)
        memory.fill(0)
        self._held.append(memory.base)
        return memory

    def free(self) -> None:
        """Free all captures, events and memory; for use in a block, when nothing runs and nothing of it is used."""
        self.drop_captures()
        for memory in self._held:
            memory.free()
        self._held.clear()
        self._events.clear()

    def memory_left(self) -> tuple[int, int]:
        """Free and total bytes of the device."""
        free, total = self._driver.mem_get_info()
        return int(free), int(total)

    # The stream. All of it is queued in order; nothing here waits but `wait`.

    def copy_in(self, address: int, source: Array) -> None:
        """Queue a copy of the pinned `source`, contiguous, to the device."""
        self._driver.memcpy_htod_async(address, source, self._stream)

    def copy_out(self, target: Array, address: int) -> None:
        """Queue a copy from the device to the pinned `target`, contiguous."""
        self._driver.memcpy_dtoh_async(target, address, self._stream)

    def event(self) -> Any:
        """A point in the stream that can be waited for."""
        event = self._driver.Event(self._driver.event_flags.DISABLE_TIMING)  # a timed one costs more
        self._events.append(event)
        return event

    def record(self, event: Any) -> None:
        """Move `event` behind everything that is queued now."""
        event.record(self._stream)

    def wait(self, event: Any) -> None:
        """Wait until the stream has passed `event`; other Python threads run meanwhile.

        CUDA spins for so long, which takes a CPU, and a run ends sooner than for a thread that has to be woken: only an
        event with CU_EVENT_BLOCKING_SYNC would let it sleep.
        """
        event.synchronize()

    def wait_all(self) -> None:
        """Wait until the stream is empty."""
        self._stream.synchronize()

    def capture(self, work: Callable[[], None]) -> Any:
        """Record what `work` queues instead of running it; for `replay`. The stream is usable whatever happens."""
        bindings = self._bindings
        mode = bindings.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL  # other threads may allocate
        self._call(bindings.cuStreamBeginCapture, self.stream, mode)
        try:
            work()
        except BaseException:
            with suppress(_Failure):  # CUDA ends with an error what an error ended
                bindings.cuGraphDestroy(self._call(bindings.cuStreamEndCapture, self.stream))
            raise
        graph = self._call(bindings.cuStreamEndCapture, self.stream)
        try:
            replay = self._call(bindings.cuGraphInstantiateWithFlags, graph, 0)
        finally:
            bindings.cuGraphDestroy(graph)
        self._replays.append(replay)
        self._call(bindings.cuGraphUpload, replay, self.stream)  # else the first replay would do it
        return replay

    def replay(self, captured: Any) -> None:
        """Queue what was captured, in one call."""
        self._call(self._bindings.cuGraphLaunch, captured, self.stream)

    def drop_captures(self) -> None:
        """Destroy everything that was captured; for use in a block, when nothing runs."""
        for replay in self._replays:
            self._call(self._bindings.cuGraphExecDestroy, replay)
        self._replays.clear()

    def close(self) -> None:
        """Free everything. pycuda can free only where the context is current, so it is not left to chance."""
        with self.active("freeing memory"):
            self.free()
            self._stream = None

    # Errors

    def _call(self, function: Any, *arguments: Any) -> Any:
        try:
            code, *values = function(*arguments)
        except (ValueError, RuntimeError) as error:
            # "914 is not a valid CUresult": an error of drivers newer than cuda-python. "Function ... not found": of
            # those that are older.
            raise _Failure(_UNKNOWN, f"{function.__name__} failed: {error}") from error
        if int(code):
            raise _Failure(int(code), f"{function.__name__} failed: {code.name}")
        return values[0] if values else None

    def _translated(self, error: Exception, doing: str, sticky: str | None) -> EngineError:
        if isinstance(error, EngineError):
            return EngineLost(f"{error} ({sticky})")
        sentence = f"CUDA failed while {doing}: {error}"
        if sticky:
            return EngineLost(sentence)
        out_of_memory = isinstance(error, self._driver.MemoryError) or getattr(error, "code", 0) == _OUT_OF_MEMORY
        return OutOfMemory(sentence) if out_of_memory else EngineError(sentence)

    def _sticky(self) -> str | None:
        """The error that every further call would meet; None when the context works.

        Asked of CUDA rather than looked up in a list of codes: a sticky error is one that comes back. Asked of the
        stream, not of the whole context, which must not be waited for while another thread captures. And asked through
        pycuda, since cuda-python holds the interpreter lock for as long as the device takes.
        """
        try:
            if self._stream is not None:
                self._stream.synchronize()
            else:
                self._driver.mem_get_info()
        except self._driver.Error as error:
            return str(error)
        return None
