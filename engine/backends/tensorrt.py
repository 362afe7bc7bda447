"""TensorRT as an engine: a plan, one execution context and two captures a bucket. Written once for 8.6 and 10.

Two rules of TensorRT shape it. A capture is good only while its execution context is left as it was, so every bucket
has one of its own and nothing is set between runs. Execution contexts that never run at the same time may share their
scratch memory, so all of them do. Decides nothing: see select.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engine.backends.base import Engine
from engine.backends.buffers import DeviceBuffers
from engine.backends.cuda import Cuda
from engine.backends.tensorrt_api import (
    can_share_profiles,
    content_of,
    dtype_of,
    import_tensorrt,
    is_out_of_memory,
    make_execution_context,
    messages,
    notes_on_length,
    notes_on_tokens,
    scratch_size,
    set_profile,
    set_scratch,
    up_to,
)
from engine.batching.costs import BEST_TOKENS_OF_A_GPU, best_tokens, overhead_tokens
from engine.bucket import Bucket, Ladder
from engine.errors import EngineError, EngineLost, OutOfMemory

if TYPE_CHECKING:
    from engine.bundle import Bundle
    from engine.plans.sidecar import PlanFile
    from engine.tensors import Arrays, TensorSpec

_OVERHEAD_TOKENS = 512  # where the sidecar has no latencies; not measured yet


@dataclass(eq=False)
class _Context:
    """An execution context and the bucket that its shapes and addresses are set to."""

    handle: Any
    bucket: Bucket | None = None
    shared: bool = False


@dataclass(eq=False)
class _Run:
    """How a bucket is run: by its captures, one a slot, or without any, by its execution context."""

    bucket: Bucket
    context: _Context
    captures: list[Any] = field(default_factory=list)


class TensorRtEngine(Engine):
    """One plan of a bundle's graph on the first GPU, at the buckets of at most `max_batch` rows.

    `max_tokens` is what batches are held to, and buckets that none comes to are left out; 0 is `best_tokens`, None
    leaves none out.
    Give it only a plan whose sidecar fits (engine/plans/sidecar.py) and whose bytes were verified, and only where a
    driver was found: without one TensorRT crashes the process. When the device has no room for all buckets, those of
    the largest batch are left out, once: with their buffers and captures, and with their scratch memory where they have
    profiles of their own (see scratch_size). Raises EngineError.
    """

    computes_in_caller = False
    slots = 2

    def __init__(
        self, bundle: Bundle, graph: str, plan: PlanFile, *, max_batch: int | None = None, max_tokens: int | None = None
    ) -> None:
        found = bundle.manifest.graphs[graph]
        self.inputs: tuple[TensorSpec, ...] = found.inputs
        self.outputs: tuple[TensorSpec, ...] = found.outputs
        self.notes: list[str] = notes_on_length(plan, bundle.manifest.max_length(graph))
        self.overhead_tokens, self.best_tokens = _OVERHEAD_TOKENS, BEST_TOKENS_OF_A_GPU
        if plan.plan.latencies_us:
            measured = dict(zip(plan.plan.ladder, plan.plan.latencies_us, strict=True))
            self.overhead_tokens, self.best_tokens = overhead_tokens(measured), best_tokens(measured)
        self.best_tokens = min(self.best_tokens, plan.plan.max_tokens or self.best_tokens)
        self.buckets = up_to(plan.plan.ladder, max_batch)
        if max_tokens is not None:
            self.notes += notes_on_tokens(plan, self.buckets, max_tokens)
            self.buckets = self.buckets.within(max_tokens or self.best_tokens)
        self._plan = plan.plan
        self._name = plan.name
        self._whole = self.buckets
        self._runs: dict[Bucket, _Run] = {}
        self._started: dict[int, Bucket] = {}
        self._closed = False
        self._cuda = Cuda()
        try:
            self._trt = import_tensorrt()
            self._messages = messages(self._trt)
            with self._cuda.active(f"loading {plan.name}"):
                self._runtime, self._cuda_engine = self._deserialize(plan)
                self._check_tensors()
            self._shrinking_once(lambda: None)
        except BaseException:
            self.close()
            raise

    @property
    def allocations(self) -> int:
        """How often device or pinned memory was asked for; constant after warm-up."""
        return self._cuda.allocations

    def feeds(self, bucket: Bucket, slot: int = 0) -> Arrays:
        """The input buffers of `bucket`, in pinned memory."""
        return self._buffers.feeds(bucket, slot)

    def warm_up(self) -> None:
        """Run every bucket once, largest first, and capture it for each slot. May shrink the ladder.

        Raises EngineError.
        """
        self._shrinking_once(self._warm_up)

    def start(self, bucket: Bucket, slot: int = 0) -> None:
        """Queue copy in, run and copy out, in one call where the bucket is captured, and return."""
        run = self._runs[bucket]
        with self._cuda.active(f"running {bucket}"):
            if run.captures:
                self._cuda.replay(run.captures[slot])
            else:
                self._enqueue(run, slot)
            self._cuda.record(self._done[slot])
        self._started[slot] = bucket

    def finish(self, slot: int = 0) -> Arrays:
        """Wait for the run in `slot`; views in pinned memory, valid until that slot is started again."""
        bucket = self._started.pop(slot)
        with self._cuda.active(f"running {bucket}"):
            self._cuda.wait(self._done[slot])
        return self._buffers.results(bucket, slot)

    def close(self) -> None:
        """Free everything. Further calls are errors."""
        if self._closed:
            return
        self._closed = True
        try:
            with self._cuda.active("closing"):
                self._free()
                self._cuda_engine = self._runtime = None
            self._cuda.close()
        except EngineError:
            pass  # a lost context frees nothing any more; the process is about to end

    # Loading

    def _deserialize(self, plan: PlanFile) -> tuple[Any, Any]:
        self._trt.init_libnvinfer_plugins(self._messages, "")  # a plan may hold some that the ONNX parser put there
        try:
            runtime = self._trt.Runtime(self._messages)
        except TypeError as error:  # what the bindings make of a runtime that is none
            raise self._error(f"TensorRT {self._trt.__version__} does not start on this driver") from error
        if plan.plan.version_compatible:  # it brings the runtime of its own version along, as code
            runtime.engine_host_code_allowed = True
        try:
            content = content_of(plan.path)
        except OSError as error:
            raise EngineError(f"{plan.path} cannot be read ({error.strerror})") from error
        cuda_engine = runtime.deserialize_cuda_engine(content)
        if cuda_engine is None:
            raise self._error(f"TensorRT {self._trt.__version__} does not load {plan.name}")
        return runtime, cuda_engine

    def _check_tensors(self) -> None:
        """The plan's inputs and outputs must be the manifest's, its optimization profiles those of the sidecar."""
        engine, modes = self._cuda_engine, self._trt.TensorIOMode
        wanted = {s.name: (modes.INPUT, s.dtype) for s in self.inputs}
        wanted |= {s.name: (modes.OUTPUT, s.dtype) for s in self.outputs}
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        found = {name: (engine.get_tensor_mode(name), dtype_of(self._trt, engine, name)) for name in names}
        if found != wanted:
            listed = [", ".join(f"{n} {dtype}" for n, (_, dtype) in sorted(side.items())) for side in (found, wanted)]
            raise EngineError(f"{self._name} has the tensors {listed[0]}; the manifest says {listed[1]}")
        there, said = engine.num_optimization_profiles, len(self._plan.profiles)
        if there != said:
            raise EngineError(f"{self._name} has {there} optimization profiles; its sidecar says {said}")

    def _shrinking_once(self, step: Callable[[], None]) -> None:
        """Allocate what is not yet allocated and do `step`, and both again without the largest batch if memory ends."""
        try:
            self._allocate()
            step()
            return
        except OutOfMemory as error:
            if self.buckets is not self._whole or len(self.buckets.batches) == 1:
                raise
            reason = str(error)
        # Only now, for the error's traceback holds on to what is to be freed.
        with self._cuda.active("making room"):
            self._free()
        self.buckets = Ladder(self._whole.batches[:-1], self._whole.lengths).within(self._whole.max_tokens)
        left_out, kept = self._whole.batches[-1], self.buckets.batches[-1]
        self.notes.append(f"no room for batches of {left_out}, at most {kept} rows run at once: {reason}")
        self._allocate()
        step()

    def _allocate(self) -> None:
        if self._runs:
            return
        with self._cuda.active(f"allocating the buffers of {self._name}"):
            self._buffers = DeviceBuffers(self._cuda, self.inputs, self.outputs, self.buckets, self.slots)
            profiles = {bucket: self._plan.profile_of(bucket) for bucket in self.buckets}
            size = scratch_size(self._cuda_engine, profiles.values())
            self._scratch = self._cuda.device(size), size
            self._done = [self._cuda.event() for _ in range(self.slots)]
            contexts: dict[int, _Context] = {}
            for bucket in reversed(self.buckets):  # largest first: what does not fit is noticed at once
                context = contexts.get(profiles[bucket])
                if context is None or can_share_profiles(self._trt, self._plan):
                    context = contexts[profiles[bucket]] = self._new_context(profiles[bucket])
                    self._set(context, bucket)
                else:
                    context.shared = True
                self._runs[bucket] = _Run(bucket, context)
            self._cuda.wait_all()  # setting a profile may have queued copies

    def _new_context(self, profile: int) -> _Context:
        handle = make_execution_context(self._trt, self._cuda_engine)
        if handle is None:
            raise self._error(f"TensorRT makes no execution context for {self._name}")
        if not set_profile(handle, profile, self._cuda.stream):
            raise self._error(f"TensorRT does not take optimization profile {profile} of {self._name}")
        set_scratch(handle, *self._scratch)
        return _Context(handle)

    def _set(self, context: _Context, bucket: Bucket) -> None:
        """Set shapes and addresses of `context` to those of `bucket`."""
        context.bucket = bucket
        for spec in self.inputs:
            if not context.handle.set_input_shape(spec.name, spec.shape_at(bucket)):
                raise self._error(f"{self._name} does not take {spec.name} at {bucket}")
        for name, address in self._buffers.addresses(bucket).items():
            if not context.handle.set_tensor_address(name, address):
                raise self._error(f"TensorRT does not take the address of {name}")
        for spec in self.outputs:
            found, wanted = tuple(context.handle.get_tensor_shape(spec.name)), spec.shape_at(bucket)
            if found != wanted:
                raise EngineError(f"{self._name} gives {spec.name} the shape {found} at {bucket}, not {wanted}")

    def _free(self) -> None:
        self._cuda.wait_all()
        self._cuda.drop_captures()  # before the execution contexts that they came from, and these before their memory
        self._runs.clear()
        self._done = []  # an event that outlives the block may be dropped where no context is current
        vars(self).pop("_buffers", None)  # to touch a view of memory that is gone crashes the process
        self._cuda.free()

    # Running

    def _warm_up(self) -> None:
        refusals: list[str] = []
        with self._cuda.active("warming up"):
            for run in self._runs.values():
                # Once without capturing: after its shapes were set, an execution context does deferred work, which
                # cannot be captured.
                self._enqueue(run, 0)
                self._cuda.wait_all()
                if not run.context.shared:
                    refusals += self._capture(run)
        shared = sum(run.context.shared for run in self._runs.values())
        if refusals:
            self.notes.append(f"{len(refusals)} of {len(self._runs)} buckets run without a CUDA graph: {refusals[0]}")
        if shared:
            self.notes.append(
                f"{shared} of {len(self._runs)} buckets run without a CUDA graph: they share optimization profiles, "
                f"and TensorRT {self._trt.__version__} gives each profile one execution context"
            )

    def _capture(self, run: _Run) -> list[str]:
        """Capture `run` for every slot; why not, where CUDA or TensorRT refuses.

        In words: an error in a local of the caller's would hold on to it, and it to what memory that ends must free.
        """
        try:
            with self._cuda.active(f"capturing {run.bucket}"):
                run.captures = [
                    self._cuda.capture(lambda slot=slot: self._enqueue(run, slot))  # type: ignore[misc]
                    for slot in range(self.slots)
                ]
        except (EngineLost, OutOfMemory):
            raise
        except EngineError as error:
            return [str(error)]
        return []

    def _enqueue(self, run: _Run, slot: int) -> None:
        if run.context.bucket != run.bucket:
            self._cuda.wait_all()  # its last run may still be in flight
            self._set(run.context, run.bucket)
        buffers = self._buffers
        self._cuda.copy_in(buffers.device_in, buffers.host_in(run.bucket, slot))
        if not run.context.handle.execute_async_v3(self._cuda.stream):
            raise self._error(f"TensorRT does not run {run.bucket}")
        self._cuda.copy_out(buffers.host_out(run.bucket, slot), buffers.device_out)

    def _error(self, what: str) -> EngineError:
        """An error with what TensorRT said last."""
        said = self._messages.take()
        error = OutOfMemory if is_out_of_memory(said) else EngineError
        return error(f"{what}: {said}" if said else what)
