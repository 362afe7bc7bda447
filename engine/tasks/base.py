"""The Task protocol: everything that a model family needs beside its engine. Rule: no I/O after `from_bundle`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeAlias

if TYPE_CHECKING:
    from engine.bundle import Bundle
    from engine.config import Limits
    from engine.tensors import Arrays, Row

Json: TypeAlias = Any
"""What `json` reads and writes; replies may also carry numpy arrays, which the handler converts."""


class Task(Protocol):
    """Pre- and postprocessing of one Hugging Face task tag. `request` is whatever `parse` returns."""

    summary: ClassVar[str]
    """What the task does, in one sentence, for `python -m export --list-tasks` and the documentation."""
    auto_class: ClassVar[str]
    """Name of the transformers class that loads such models (a name: nothing here imports transformers)."""
    examples: ClassVar[Sequence[Mapping[str, Json]]]
    """Payloads that feed warm-up, parity, benchmarks and tests."""

    @classmethod
    def from_bundle(cls, bundle: Bundle, limits: Limits) -> Self:
        """Read tokenizer and settings. Raises BundleError.

        A worker calls this in a thread that then ends, while the engine runs for the first time: what belongs to a
        thread, such as a connection of sqlite3's, is to be made by what uses it.
        """
        ...

    def parse(self, payload: Json) -> Any:
        """Check a job's input and return a request. Raises InvalidInput with a sentence that says what is allowed."""
        ...

    def split(self, request: Any, rows: int) -> Sequence[Any]:
        """`request` in parts of at most `rows` rows, each answered like a request of its own: what a stream sends.

        A part may be split again, where its answer turns out to be too large. What cannot be split is one part,
        `[request]`, or is not streamed but answered as a whole: no part. Where all parts use what the first one
        computes, the task says so with `first_part_alone = True`: no other begins before that one is answered.
        """
        ...

    def preprocess(self, request: Any) -> Sequence[Row]:
        """The rows that answer `request`; none without a model. Raises InvalidInput. May run off the event loop.

        Called again where the rows had to wait for memory that other jobs held (`engine/tasks/budget.py`).

        A task that waits here, for a server or a disk, says so with `blocking = True`, and is always run off the loop;
        without that attribute it is only for large payloads, for parts of a stream, and where a method
        `is_quick(request)`, which a task may have, says no.
        """
        ...

    def postprocess(self, request: Any, outputs: Sequence[Arrays]) -> Json:
        """The reply, from one mapping of output arrays (without batch axis) a row, in the order of the rows.

        Runs off the event loop where there are many rows, or where a method `answers_in(request, rows)`, which a task
        may have, counts many answers in them.
        """
        ...
