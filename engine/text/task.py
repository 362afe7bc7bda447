"""Base of the tasks on texts: the items are strings, a row is what one of them, or a pair, is tokenized to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar, Self

from engine.config import Limits
from engine.tasks import payload as check
from engine.tasks.items import ItemsTask, Part, Request
from engine.text.bulk import FEW, Text, are_few
from engine.text.tokens import Tokens, usage

if TYPE_CHECKING:
    from engine.bundle import Bundle


class TextTask(ItemsTask):
    """One row a text, cut at the model's length unless `truncate` is false."""

    option_names: ClassVar[tuple[str, ...]] = ("truncate",)
    cut: ClassVar[str] = "longest_first"
    """See Tokens."""
    graph: ClassVar[str] = "model"
    """Which graph the rows are for; with several, `parts` may name another in each row."""

    def __init__(self, tokens: Tokens, config: Mapping[str, Any], limits: Limits) -> None:
        super().__init__(limits)
        self.tokens = tokens
        self.config = config

    @classmethod
    def from_bundle(cls, bundle: Bundle, limits: Limits) -> Self:
        """Read the tokenizer of `bundle`, and the task_config that the subclass documents."""
        task = cls(Tokens(bundle, graph=cls.graph, cut=cls.cut), bundle.manifest.task_config, limits)
        return task.answered_by(bundle)

    def item(self, value: Any, name: str, payload: dict[str, Any]) -> Any:
        """A string of at most `max_chars` characters."""
        return check.string(value, name, self.limits.max_chars)

    def options(self, payload: dict[str, Any]) -> Mapping[str, Any]:
        """`truncate`."""
        return {"truncate": check.boolean(payload, "truncate", True)}

    def texts(self, item: Any, options: Mapping[str, Any]) -> Sequence[Text]:
        """What is tokenized for an item, a row each."""
        return [item]

    def name_of(self, request: Request, index: int, row: int) -> str:
        """What the `row`th row of the item at `index` holds, in words for the caller."""
        return f"{self.one} {request.first + index}"

    def is_quick(self, request: Request) -> bool:
        """Whether it makes few rows, of short texts."""
        texts: list[Text] = []
        for item in request.items:
            texts += self.texts(item, request.options)
            if len(texts) > FEW:
                return False
        return are_few(texts)

    def usage(self, request: Request) -> Mapping[str, int]:
        """What the texts were, in tokens, for a reply."""
        return usage(sum(sum(map(len, part.data)) for part in request.parts))

    def refuse_windows(self, request: Request, most: int, counts: Iterable[int]) -> None:
        """Raise InvalidInput where `counts`, of the windows of each item, are more than can ever wait.

        They cost a reading of every text, and are not asked for where there will hardly be more than `most`.
        """
        if most > self.limits.max_queued_rows:
            for total in accumulate(counts):
                request.spent.refuse_stopped()
                self.refuse_rows(total)

    def parts(self, request: Request) -> list[Part]:
        """Rows of all items, whose texts are tokenized together; `data` are the encodings."""
        texts, count = [], 0
        for item in request.items:
            texts.append(self.texts(item, request.options))
            count += len(texts[-1])
            self.refuse_rows(count)
        encodings = self.tokens.encode([text for group in texts for text in group], request.spent.refuse_stopped)
        parts, at = [], 0
        for index, group in enumerate(texts):
            made = encodings[at : (at := at + len(group))]
            if not request.options["truncate"]:
                for row, encoding in enumerate(made):
                    self.tokens.refuse_cut(encoding, self.name_of(request, index, row))
            parts.append(Part(list(map(self.tokens.row, made)), made))
        return parts
