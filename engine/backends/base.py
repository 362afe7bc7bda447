"""The Engine protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from engine.bucket import Bucket, Ladder
    from engine.tensors import Arrays, TensorSpec


class Engine(Protocol):
    """One loaded model on one backend; owned by one thread at a time."""

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        """The graph's inputs."""
        ...

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        """The graph's outputs."""
        ...

    @property
    def buckets(self) -> Ladder:
        """The shapes that `run` takes, smallest first."""
        ...

    @property
    def overhead_tokens(self) -> int:
        """What a run costs beside its tokens, expressed in tokens: how much padding is worth saving a run."""
        ...

    @property
    def best_tokens(self) -> int:
        """Tokens of a batch, padding included, above which more of them bring no more rows a second."""
        ...

    def feeds(self, bucket: Bucket) -> Arrays:
        """The input buffers of `bucket`: write into them in place, then call `run`. Allocated at load."""
        ...

    def warm_up(self) -> None:
        """Run what the first job would otherwise pay for. Raises EngineError."""
        ...

    def run(self, bucket: Bucket) -> Arrays:
        """Run what stands in `feeds(bucket)`.

        Returns views of shape (bucket.batch, ...), valid until the next run. Raises EngineError.
        """
        ...

    def close(self) -> None:
        """Free everything. Further calls are errors."""
        ...
