"""The Engine protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from engine.bucket import Bucket, Ladder
    from engine.tensors import Arrays, TensorSpec


class Engine(Protocol):
    """One loaded model on one backend; owned by one thread at a time. What has a value here may be left as it is."""

    inputs: Sequence[TensorSpec]
    """The graph's inputs."""
    outputs: Sequence[TensorSpec]
    """The graph's outputs."""
    buckets: Ladder
    """The shapes that `run` takes, smallest first."""
    overhead_tokens: int
    """What a run costs beside its tokens, expressed in tokens: how much padding is worth saving a run."""
    best_tokens: int
    """Tokens of a batch, padding included, above which more of them bring no more rows a second."""
    slots: int = 1
    """Buffer sets that every bucket has. With two, one may be filled while the run of the other goes on."""
    computes_in_caller: bool = True
    """Whether the thread that calls `start` computes; else it waits, for which CUDA spins, and Python threads
    run meanwhile."""
    caller_cpu: int | None = None
    """The CPU that the thread which calls `start` should keep to; None leaves it to the scheduler."""
    lanes: int = 0
    """How many engines `open_lanes` gives; 0 where batches side by side bring nothing."""
    notes: Sequence[str] = ()
    """What is not as it should be and yet runs, in sentences for the health reply."""

    def open_lanes(self) -> Sequence[Engine]:
        """Engines for the same rows that may run at the same time, each in a thread of its own, when this one does not.

        Takes about as long as loading did; this one may run meanwhile, but no thread of Python's where a backend keeps
        the interpreter's lock, as ONNX Runtime does. They belong to the caller, and are closed before this one. Raises
        EngineError.
        """
        return ()

    def feeds(self, bucket: Bucket, slot: int = 0) -> Arrays:
        """The input buffers of `bucket`: write into them in place, then `start` or `run`. Allocated at load."""
        ...

    def warm_up(self) -> None:
        """Run what the first job would otherwise pay for. Raises EngineError."""
        return

    def start(self, bucket: Bucket, slot: int = 0) -> None:
        """Begin to run what stands in `feeds(bucket, slot)`. Raises EngineError.

        An engine with two slots returns at once; one with a single slot may return when it is done. A slot is not
        started again before it was finished.
        """
        ...

    def finish(self, slot: int = 0) -> Arrays:
        """Wait for the run that was started in `slot`.

        Returns views of shape (batch, ...), valid until `slot` is started again. Raises EngineError.
        """
        ...

    def run(self, bucket: Bucket) -> Arrays:
        """`start` and `finish` in the first slot."""
        self.start(bucket)
        return self.finish()

    def close(self) -> None:
        """Free everything. Further calls are errors."""
        return
