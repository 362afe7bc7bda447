"""Text embeddings: one vector a text. Pooling is in the graph; what a request may switch is done here.

`task_config` of the manifest: pooling, dimension, max_length (tokens), normalize (default of the request's option),
prompts (name -> prefix) and default_prompt (a name, or null).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from engine.config import Limits
from engine.errors import InvalidInput, WorkerFault
from engine.tasks import payload as check
from engine.tasks.items import Part, Request, Room
from engine.text.task import TextTask
from engine.vectors import FORMATS, encoded, refuse_many

if TYPE_CHECKING:
    from engine.bundle import Bundle
    from engine.tasks.base import Json
    from engine.tensors import Arrays, Row
    from engine.text.bulk import Text

_OPENAI_ROUTE = "/v1/embeddings"


class FeatureExtraction(TextTask):
    """`{"text": ...}` or `{"texts": [...]}`, or OpenAI's embeddings: by its route, or the body alone, as infinity's."""

    summary: ClassVar[str] = "Text embeddings: one vector a text, as sentence-transformers makes it."
    auto_class: ClassVar[str] = "AutoModel"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"text": "A quick test."},
        {"texts": ["The cat sits on the mat.", "Ein Satz auf Deutsch, etwas länger als der erste.", "混合的文本 🙂"]},
        {"texts": ["word " * 40, "A sentence of medium length that says little.", "x"], "normalize": False},
    )
    option_names: ClassVar[tuple[str, ...]] = ("normalize", "dimensions", "encoding_format", "truncate", "prompt_name")
    model = ""
    """Whose vectors these are, for an answer in OpenAI's form."""

    @classmethod
    def from_bundle(cls, bundle: Bundle, limits: Limits) -> Self:
        """Read the tokenizer of `bundle`."""
        task = super().from_bundle(bundle, limits)
        task.model = bundle.manifest.model
        for name in ("normalize", "dimension"):  # a bundle that lacks one is refused at the boot, not with each job
            task.config[name]
        return task

    def parse(self, payload: Json) -> Request:
        """Check the job's input; `inputs`, the pipelines' name, may hold one text or a list. Raises InvalidInput."""
        fields = (self.one, self.many, "inputs", "input", *check.OF_ROUTES)
        payload = check.without_nulls(check.require_object(payload), fields)
        body = check.openai_body(payload, _OPENAI_ROUTE)
        if body is not None or "input" in payload:
            return self._parse_openai(payload if body is None else body, route=body is not None)
        return self._request(payload)

    def _parse_openai(self, body: dict[str, Any], *, route: bool) -> Request:
        # `user` is for OpenAI's abuse monitoring; clients send it, nothing depends on it. `modality` is infinity's.
        of_every_job = "" if route else check.OF_EVERY_JOB
        check.refuse_unknown(body, ("input", "model", "user", "modality", *self.option_names), of_every_job)
        check.choice(body, "modality", ("text",))
        if "input" not in body:
            raise InvalidInput("a request for embeddings needs `input`, a string or a list of strings")
        if isinstance(body["input"], list) and body["input"] and not isinstance(body["input"][0], str):
            raise InvalidInput(
                "`input` must be a string or a list of strings; token ids are not supported (LangChain's "
                "OpenAIEmbeddings sends strings with check_embedding_ctx_length=False)"
            )
        value, single = body["input"], isinstance(body["input"], str)
        items = [self.item(value, "input", body)] if single else self.items(value, "input", body)
        openai = {"openai_model": check.model_name(body) or self.model, "openai_route": route}
        return Request(items, single, {**self.options(body), **openai})

    def items(self, values: Any, name: str, payload: dict[str, Any]) -> list[Any]:
        """As in the base class; strings without a name for each, which of 10,000 would keep the event loop."""
        if type(self).item is not TextTask.item:
            return super().items(values, name, payload)
        return check.texts(values, name, self.limits.max_items, self.limits.max_chars)

    def options(self, payload: dict[str, Any]) -> Mapping[str, Any]:
        """Beside them may be `openai_model`: then the answer has OpenAI's form, with `openai_route` that of a list."""
        return {
            "normalize": check.boolean(payload, "normalize", bool(self.config["normalize"])),
            "dimensions": check.whole_number(payload, "dimensions", 1, self.config["dimension"]),
            "encoding_format": check.choice(payload, "encoding_format", FORMATS),
            "truncate": check.boolean(payload, "truncate", True),
            "prompt": check.prompt(payload, self.config),
        }

    def texts(self, item: Any, options: Mapping[str, Any]) -> Sequence[Text]:
        """The text behind its prompt: one, for a vector answers an item."""
        return [options["prompt"] + item]

    def split(self, request: Request, rows: int) -> Sequence[Request]:
        """As in the base class, but an OpenAI request, whose reply is one object, has no parts."""
        return [] if "openai_model" in request.options else super().split(request, rows)

    def preprocess(self, request: Request) -> Sequence[Row]:
        """A row an item. Raises InvalidInput for long texts where they are not to be cut, and for too many of them.

        Raises WorkerFault where `texts` does not give one text for each item.
        """
        self.refuse_many(request)
        texts: list[Text] = []
        for item in request.items:
            texts += self.texts(item, request.options)
        if len(texts) != len(request.items):
            raise WorkerFault(
                f"{type(self).__name__}.texts gives {len(texts)} texts for {len(request.items)} items; let it return "
                "a list of one text for each"
            )
        encodings = self.tokens.encode(texts, request.spent.refuse_stopped)
        if not request.options["truncate"]:
            for index, encoding in enumerate(encodings):
                self.tokens.refuse_cut(encoding, self.name_of(request, index, 0))
        rows = list(map(self.tokens.row, encodings))
        Room(self, request.share).take(rows, "the job's rows")
        # One for all: a part for each of many texts costs more than its row. And only what `usage` counts, which the
        # rows hold as well.
        request.parts = [Part((), [encoding.ids for encoding in encodings])]
        return rows

    def refuse_many(self, request: Request) -> None:
        """Raise AnswerTooLarge for more vectors than RunPod's queue takes, before they are computed."""
        options = request.options
        numbers = len(request.items) * (options["dimensions"] or self.config["dimension"])
        refuse_many(numbers, options, self.limits, "texts", may_stream="openai_model" not in options)

    def postprocess(self, request: Request, outputs: Sequence[Arrays]) -> Json:
        """The reply: `embedding` or `embeddings`, as arrays that the handler turns into JSON, or base64 strings."""
        options, tokens = request.options, self.usage(request)
        vectors, dimensions = encoded(outputs, options["normalize"], options["encoding_format"], options["dimensions"])
        if "openai_model" in options:
            data = [{"object": "embedding", "index": i, "embedding": e} for i, e in enumerate(vectors)]
            reply = {"object": "list", "data": data, "model": options["openai_model"], "usage": tokens}
            return [reply] if options["openai_route"] else reply  # RunPod's routes reply with the first of a list
        key, value = ("embedding", vectors[0]) if request.single else ("embeddings", vectors)
        return {key: value, "dimensions": dimensions, "usage": tokens}


TASK = FeatureExtraction
