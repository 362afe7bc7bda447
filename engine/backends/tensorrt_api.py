"""What TensorRT 8.6 and 10 call or do differently, and what TensorRT says when it fails."""

from __future__ import annotations

import mmap
import os
from bisect import bisect_left
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

from engine.bucket import Ladder
from engine.errors import EngineError

if TYPE_CHECKING:
    from pathlib import Path

    from engine.plans.sidecar import Plan, PlanFile

_KEPT_MESSAGES = 3


def import_tensorrt() -> Any:
    """The module. Only where a driver was found. Raises EngineError."""
    try:
        import tensorrt
    except Exception as error:  # ImportError, or OSError for a library of its that does not load
        raise EngineError(f"tensorrt does not load: {error}; install requirements/all.txt") from error
    return tensorrt


def content_of(path: Path) -> Any:
    """The bytes of a file, mapped: no copy of them is made for TensorRT to copy from. Raises OSError.

    220 MB in the page cache took 25 ms to copy from there, and 150 after `read_bytes` (measured on two shared cores).
    """
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:  # mmap refuses empty files
            return b""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def scratch_size(cuda_engine: Any, profiles: Iterable[int]) -> int:
    """Bytes of scratch memory that execution contexts of these profiles need.

    Of a profile for several buckets as much as its largest bucket needs, whichever are used; of TensorRT 8.6 as much as
    the largest profile of the plan. An execution context may say less for its shapes
    (update_device_memory_size_for_shapes), for sure only where the plan was built with RUNTIME_ACTIVATION_RESIZE_10_10,
    which allocates in another way, and the bindings want no less than the engine's size in set_device_memory.
    """
    of_profile = getattr(cuda_engine, "get_device_memory_size_for_profile_v2", None)
    if of_profile is None:  # TensorRT 8.6
        return int(cuda_engine.device_memory_size)
    return max(int(of_profile(profile)) for profile in set(profiles))


def make_execution_context(trt: Any, cuda_engine: Any) -> Any:
    """An execution context without scratch memory of its own; None when TensorRT makes none.

    The call of 8.6 exists in 10 and issues a DeprecationWarning, which where warnings are errors ends in a SystemError.
    """
    strategies = getattr(trt, "ExecutionContextAllocationStrategy", None)
    if strategies is None:
        return cuda_engine.create_execution_context_without_device_memory()
    return cuda_engine.create_execution_context(strategies.USER_MANAGED)


def set_profile(handle: Any, profile: int, stream: int) -> bool:
    """Select an optimization profile; whether it was taken. The bindings raise where other setters return False.

    Those of 8.6 do so without the interpreter lock, which ends the process: ask only for a profile that there is.
    """
    try:
        return bool(handle.set_optimization_profile_async(profile, stream))
    except RuntimeError:
        return False


def set_scratch(handle: Any, address: int, size: int) -> None:
    """Give an execution context its scratch memory, once its profile is selected."""
    set_memory = getattr(handle, "set_device_memory", None)
    if set_memory is None:  # before TensorRT 10.1
        handle.device_memory = address
    else:
        set_memory(address, size)


def can_share_profiles(trt: Any, plan: Plan) -> bool:
    """Whether several execution contexts may use one optimization profile of `plan`."""
    return plan.profile_sharing or int(trt.__version__.split(".")[0]) >= 10


def dtype_of(trt: Any, cuda_engine: Any, name: str) -> str:
    """Numpy's name for the type of a tensor, or TensorRT's where numpy has none."""
    dtype = cuda_engine.get_tensor_dtype(name)
    try:
        return str(trt.nptype(dtype).__name__).rstrip("_")  # numpy.bool_ is "bool" in a manifest
    except TypeError:
        return str(dtype)


def up_to(ladder: Ladder, max_batch: int | None) -> Ladder:
    """`ladder` without the batch sizes above the first that holds `max_batch` rows."""
    if max_batch is None or max_batch >= ladder.largest.batch:
        return ladder
    above = bisect_left(ladder.batches, max_batch) + 1
    return Ladder(ladder.batches[:above], ladder.lengths).within(ladder.max_tokens)


def notes_on_tokens(plan: PlanFile, ladder: Ladder, max_tokens: int) -> list[str]:
    """A sentence where `ladder`, of `plan`, has no buckets for batches as large as MAX_BATCH_TOKENS asks for."""
    if not 0 < ladder.max_tokens < max_tokens:
        return []
    return [
        f"at most {ladder.max_tokens} tokens run at once, though MAX_BATCH_TOKENS={max_tokens} allows more: "
        f"{plan.name} was built without buckets for them; to have them all build it again and name its --lengths"
    ]


def notes_on_length(plan: PlanFile, takes: int) -> list[str]:
    """A sentence where `plan` ends before the longest row that the model takes."""
    longest = plan.plan.lengths[-1]
    if longest >= takes:
        return []
    return [
        f"rows of more than {longest} tokens fail, though the model takes {takes}: {plan.name} was built with "
        "--lengths that end there"
    ]


def is_out_of_memory(said: str) -> bool:
    """Whether TensorRT tells of memory that ended: CUDA's words "out of memory", or its own code, "OutOfMemory"."""
    return "outofmemory" in said.lower().replace(" ", "")


@cache
def messages(trt: Any) -> Any:
    """A logger that keeps TensorRT's last errors, which is all that it tells beside None or False.

    One a process: TensorRT and its plugins keep the first that they are given, without owning it.
    """

    class Messages(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self._errors = [*self._errors, message.strip()][-_KEPT_MESSAGES:]

        def take(self) -> str:
            said, self._errors = "; ".join(self._errors), []
            return said

    return Messages()
