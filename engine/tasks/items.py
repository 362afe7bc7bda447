"""What most tasks share: a job is one item or a list of items, each answered on its own, and the reply has that shape.

A subclass says what an item is, which options there are, which rows an item makes, and what the answer to one item is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from engine.config import Limits
from engine.errors import AnswerTooLarge, InvalidInput
from engine.fetching.spent import Spent
from engine.tasks import payload as check
from engine.tasks.budget import Share
from engine.tensors import Row, TensorSpec, bytes_at

if TYPE_CHECKING:
    from engine.bundle import Bundle
    from engine.tasks.base import Json
    from engine.tensors import Arrays


@dataclass
class Part:
    """The rows of one item, none without a model; `data` is whatever its answer needs beside their outputs."""

    rows: Sequence[Row]
    data: Any = None


@dataclass
class Request:
    """A checked job. `first` is the place of the first item in the whole job; `preprocess` adds the parts."""

    items: list[Any]
    single: bool
    options: Mapping[str, Any]
    first: int = 0
    parts: list[Part] = field(default_factory=list)
    spent: Spent = field(default_factory=Spent, compare=False)
    """What its URLs have cost; the parts of a job that is split share it."""
    share: Share = field(default_factory=Share, compare=False)
    """What its rows hold of the process's memory, or those of a part: the handler gives each its own."""
    is_part: bool = False
    """Of a job that is split; it may be split again."""


class ItemsTask:
    """Base of such tasks: `{"text": ...}` or `{"texts": [...]}` beside options."""

    one: ClassVar[str] = "text"
    """Field that holds one item; what it holds in words is `noun`."""
    many: ClassVar[str] = "texts"
    """Field that holds a list of them."""
    noun: ClassVar[str] = "a string"
    option_names: ClassVar[tuple[str, ...]] = ()
    """Fields beside the items."""
    fewer: ClassVar[str] = "lower `top_k`, or send less at once"
    """What makes an answer smaller, in words for a caller."""

    outputs: Mapping[str, Sequence[TensorSpec]] = MappingProxyType({})
    """What each graph answers a row with; of a task that was made without a bundle nothing is known."""
    answer_bytes: Callable[[str, int], int] = staticmethod(lambda graph, length: 0)
    """What a graph's answer to a row of a length holds."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits

    @classmethod
    def from_bundle(cls, bundle: Bundle, limits: Limits) -> Self:
        """For a task that needs nothing of its bundle."""
        return cls(limits).answered_by(bundle)

    def answered_by(self, bundle: Bundle) -> Self:
        """The task, which knows the outputs of `bundle` from now on."""
        outputs = self.outputs = {name: graph.outputs for name, graph in bundle.manifest.graphs.items()}
        self.answer_bytes = lru_cache(lambda graph, length: bytes_at(outputs.get(graph, ()), length))
        return self

    def parse(self, payload: Json) -> Request:
        """Check the job's input; `inputs`, the pipelines' name, may hold one item or a list. Raises InvalidInput."""
        return self._request(check.without_nulls(check.require_object(payload), (self.one, self.many, "inputs")))

    def _request(self, payload: dict[str, Any]) -> Request:
        check.refuse_unknown(payload, (self.one, self.many, "inputs", *self.option_names), check.OF_EVERY_JOB)
        field_name, value, single = self._field(payload)
        items = [self.item(value, field_name, payload)] if single else self.items(value, field_name, payload)
        return Request(items, single, self.options(payload))

    def _field(self, payload: dict[str, Any]) -> tuple[str, Any, bool]:
        """The field that holds the items, its value, and whether that is one item alone."""
        present = [name for name in (self.one, self.many, "inputs") if name in payload]
        if len(present) != 1:
            both = ", not both" if present else ""
            raise InvalidInput(
                f"`input` needs either `{self.one}` ({self.noun}) or `{self.many}` (a list of them){both}"
            )
        (name,) = present
        value = payload[name]
        if name == self.one and isinstance(value, list):
            raise InvalidInput(f"`{name}` must be {self.noun}, got a list, which goes into `{self.many}`")
        return name, value, name == self.one or (name == "inputs" and not isinstance(value, list))

    def items(self, values: Any, name: str, payload: dict[str, Any]) -> list[Any]:
        """What the field `name` holds, a list of 1 to `max_items` items, checked. Raises InvalidInput."""
        if not isinstance(values, list):
            raise InvalidInput(f"`{name}` must be a list, got {check.kind(values)}; one item goes into `{self.one}`")
        if not 1 <= len(values) <= self.limits.max_items:
            raise InvalidInput(f"`{name}` must hold 1 to {self.limits.max_items} items, got {len(values)}")
        return [self.item(value, f"{name}[{index}]", payload) for index, value in enumerate(values)]

    def split(self, request: Request, rows: int) -> Sequence[Request]:
        """Parts of `rows` items; one item stays whole."""
        if request.single:
            return [request]
        starts = range(0, len(request.items), rows)
        return [
            replace(
                request,
                items=request.items[at : at + rows],
                first=request.first + at,
                parts=[],
                is_part=True,
            )
            for at in starts
        ]

    def preprocess(self, request: Request) -> Sequence[Row]:
        """The rows of all items, in their order. Raises InvalidInput, or Overloaded by what other jobs hold."""
        parts = self.parts(request)
        rows = [row for part in parts for row in part.rows]
        Room(self, request.share).take(rows, "the job's rows")
        request.parts = parts  # not sooner: a job that waits for its turn holds no rows
        return rows

    def postprocess(self, request: Request, outputs: Sequence[Arrays]) -> Json:
        """One answer, or a list of them."""
        answers = list(self.answers(request, outputs))
        return answers[0] if request.single else answers

    def answers_in(self, request: Request, rows: int) -> int:
        """An item without rows has an answer, too."""
        return max(rows, len(request.items))

    def answers(self, request: Request, outputs: Sequence[Arrays]) -> Iterator[Json]:
        """The answer to each item; the next one is made when it is asked for.

        Raises AnswerTooLarge once they are more than RunPod takes, by `least_bytes`: Python's objects take ten times
        as much.
        """
        following, size = iter(outputs), 0
        for item, part in zip(request.items, request.parts, strict=True):
            request.spent.refuse_stopped()
            answer = self.answer(item, part, list(islice(following, len(part.rows))), request.options)
            size += self.least_bytes(answer)
            check.refuse_large_answer(size, self.fewer)
            yield answer

    def refuse_rows(self, count: int) -> None:
        """Raise InvalidInput where a job makes more rows than can ever wait.

        To be asked before they are made: what is refused may be far more than there is memory for.
        """
        if count > self.limits.max_queued_rows:
            raise InvalidInput(
                f"the job makes more than {self.limits.max_queued_rows} rows, as many as may wait (MAX_QUEUED_ROWS); "
                "split it"
            )

    # What a subclass says

    def item(self, value: Any, name: str, payload: dict[str, Any]) -> Any:
        """One item, checked; `name` is its field in words for the caller. Raises InvalidInput."""
        raise missing(self, "item")

    def options(self, payload: dict[str, Any]) -> Mapping[str, Any]:
        """The options, checked, with their defaults. Raises InvalidInput."""
        return {}

    def parts(self, request: Request) -> list[Part]:
        """The rows of each item; at least one where a model answers it. Raises InvalidInput."""
        raise missing(self, "parts")

    def answer(self, item: Any, part: Part, outputs: Sequence[Arrays], options: Mapping[str, Any]) -> Json:
        """The answer to one item, from the outputs of its rows."""
        raise missing(self, "answer")

    def least_bytes(self, answer: Json) -> int:
        """What `answer` has of a reply's bytes at least; for those that may hold many times what their item does."""
        return 0


class Room:
    """What the rows of one job, and their outputs, may still hold.

    A hundred bytes of an image become a megabyte of pixels, and a word a weight for every word of a vocabulary, all of
    which stay until the last row is answered.
    """

    def __init__(self, task: ItemsTask, share: Share) -> None:
        self._answer_bytes = task.answer_bytes
        self._share = share
        self._most = self._left = task.limits.max_row_bytes

    def take(self, rows: Sequence[Row], what: str, of_all: float = 1.0) -> None:
        """Make room for `rows` and their outputs; `of_all` is how much of the job's items that makes with those before.

        Raises AnswerTooLarge, in which `what` has become too much, and Overloaded where other jobs hold too much.
        """
        for row in rows:
            for array in row.feeds.values():
                self._left -= array.nbytes
            self._left -= self._answer_bytes(row.graph, row.length)
        size = self._most - self._left
        if self._left < 0:
            raise AnswerTooLarge(
                f"{what} become more than {self._most} bytes for the engine and from it (MAX_ROW_BYTES); split the job",
                int(size / of_all),
                self._most,
            )
        self._share.reach(size, min(int(size / of_all), self._most))


def missing(task: object, method: str) -> NotImplementedError:
    """For a method that a base class leaves to the task."""
    return NotImplementedError(f"{type(task).__name__} has no method `{method}`, which every task must have")
