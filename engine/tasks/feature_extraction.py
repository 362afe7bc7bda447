"""Text embeddings: one vector a text. Pooling is in the graph; what a request may switch is done here.

`task_config` of the manifest: pooling, dimension, max_length (tokens), normalize (default of the request's option),
prompts (name -> prefix) and default_prompt (a name, or null).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from engine.config import Limits
from engine.errors import InvalidInput
from engine.fetching.spent import Spent
from engine.tasks import payload as check
from engine.text.bulk import FEW, are_few
from engine.text.tokens import Tokens, usage
from engine.vectors import FORMATS, LEAST_BYTES, encoded

if TYPE_CHECKING:
    from engine.bundle import Bundle
    from engine.tasks.base import Json
    from engine.tensors import Arrays, Row

_OPENAI_ROUTE = "/v1/embeddings"
_FIELDS = ("text", "texts", "inputs")
_OPTIONS = ("normalize", "dimensions", "encoding_format", "truncate", "prompt_name")


@dataclass
class Request:
    """A checked job: the texts and how to answer.

    `first` is the place of the first text in the whole job, `tokens` is counted while preprocessing. With
    `openai_model`, which is repeated, the answer has OpenAI's form; with `openai_route` it is the one of a list.
    """

    texts: list[str]
    single: bool
    openai_model: str | None
    openai_route: bool
    normalize: bool
    dimensions: int | None
    encoding_format: str
    truncate: bool
    prompt: str
    first: int = 0
    is_part: bool = False
    tokens: int = 0
    spent: Spent = field(default_factory=Spent, compare=False)
    """Says when nobody waits for it any more; the parts of a job that is split share it."""


class FeatureExtraction:
    """`{"text": ...}` or `{"texts": [...]}`, or OpenAI's embeddings: by its route, or the body alone, as infinity's."""

    summary: ClassVar[str] = "Text embeddings: one vector a text, as sentence-transformers makes it."
    auto_class: ClassVar[str] = "AutoModel"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"text": "A quick test."},
        {"texts": ["The cat sits on the mat.", "Ein Satz auf Deutsch, etwas länger als der erste.", "混合的文本 🙂"]},
        {"texts": ["word " * 40, "A sentence of medium length that says little.", "x"], "normalize": False},
    )

    def __init__(self, tokens: Tokens, model: str, config: Mapping[str, Any], limits: Limits) -> None:
        self._tokens = tokens
        self._model = model
        self._limits = limits
        self._dimension = int(config["dimension"])
        self._normalize = bool(config["normalize"])
        self._config = config

    @classmethod
    def from_bundle(cls, bundle: Bundle, limits: Limits) -> Self:
        """Read the tokenizer of `bundle`."""
        return cls(Tokens(bundle), bundle.manifest.model, bundle.manifest.task_config, limits)

    def parse(self, payload: Json) -> Request:
        """Check the job's input; `inputs`, the pipelines' name, may hold one text or a list. Raises InvalidInput."""
        payload = check.without_nulls(check.require_object(payload), (*_FIELDS, "input", *check.OF_ROUTES))
        body = check.openai_body(payload, _OPENAI_ROUTE)
        if body is not None or "input" in payload:
            return self._parse_openai(payload if body is None else body, route=body is not None)
        check.refuse_unknown(payload, (*_FIELDS, *_OPTIONS), check.OF_EVERY_JOB)
        present = [name for name in _FIELDS if name in payload]
        if len(present) != 1:
            both = ", not both" if present else ""
            raise InvalidInput(f"`input` needs either `text` (a string) or `texts` (a list of strings){both}")
        (field,) = present
        single = field == "text" or (field == "inputs" and not isinstance(payload[field], list))
        if single and not isinstance(payload[field], str):
            raise InvalidInput(
                f"`{field}` must be a string, got {check.kind(payload[field])}; a list goes into `texts`"
            )
        return self._request(payload, field, single)

    def _parse_openai(self, body: dict[str, Any], *, route: bool) -> Request:
        # `user` is for OpenAI's abuse monitoring; clients send it, nothing depends on it.
        of_every_job = "" if route else check.OF_EVERY_JOB
        check.refuse_unknown(body, ("input", "model", "user", *_OPTIONS), of_every_job)
        if "input" not in body:
            raise InvalidInput("a request for embeddings needs `input`, a string or a list of strings")
        if isinstance(body["input"], list) and body["input"] and not isinstance(body["input"][0], str):
            raise InvalidInput("`input` must be a string or a list of strings; token ids are not supported")
        return self._request(
            body, "input", isinstance(body["input"], str), check.model_name(body) or self._model, route
        )

    def _request(
        self,
        body: dict[str, Any],
        field: str,
        single: bool,
        openai_model: str | None = None,
        openai_route: bool = False,
    ) -> Request:
        value, limits = body[field], self._limits
        return Request(
            texts=[check.string(value, field, limits.max_chars)]
            if single
            else check.texts(value, field, limits.max_items, limits.max_chars),
            single=single,
            openai_model=openai_model,
            openai_route=openai_route,
            normalize=check.boolean(body, "normalize", self._normalize),
            dimensions=check.whole_number(body, "dimensions", 1, self._dimension),
            encoding_format=check.choice(body, "encoding_format", FORMATS),
            truncate=check.boolean(body, "truncate", True),
            prompt=check.prompt(body, self._config),
        )

    def split(self, request: Request, rows: int) -> Sequence[Request]:
        """Parts of `rows` texts; one text is one part, and an OpenAI request, whose reply is one object, has none."""
        if request.openai_model is not None:
            return []
        if request.single:
            return [request]
        starts = range(0, len(request.texts), rows)
        return [
            replace(request, texts=request.texts[at : at + rows], first=request.first + at, is_part=True)
            for at in starts
        ]

    def is_quick(self, request: Request) -> bool:
        """Whether there are few texts, and short ones."""
        return len(request.texts) <= FEW and are_few([request.prompt + text for text in request.texts])

    def preprocess(self, request: Request) -> Sequence[Row]:
        """A row a text. Raises InvalidInput for long texts where they are not to be cut, and for too many of them."""
        self._refuse_many(request)
        texts = [request.prompt + text for text in request.texts]
        encodings = self._tokens.encode(texts, request.spent.refuse_stopped)
        if not request.truncate:
            for index, encoding in enumerate(encodings):
                self._tokens.refuse_cut(encoding, self._name_of(request, index))
        request.tokens = sum(map(len, encodings))
        return [self._tokens.row(encoding) for encoding in encodings]

    def _refuse_many(self, request: Request) -> None:
        """Raise AnswerTooLarge for more vectors than RunPod's queue takes, before they are computed."""
        if not self._limits.posts_replies:
            return
        ways = ["send fewer texts at once"]
        if request.encoding_format == "float":
            ways.append("ask for `encoding_format` base64")
        if request.openai_model is None:
            ways.append("ask for a `stream`")
        numbers = len(request.texts) * (request.dimensions or self._dimension)
        check.refuse_large_answer(int(numbers * LEAST_BYTES[request.encoding_format]), ", or ".join(ways))

    def _name_of(self, request: Request, index: int) -> str:
        """The text at `index` in words for the caller."""
        return f"text {request.first + index}"

    def postprocess(self, request: Request, outputs: Sequence[Arrays]) -> Json:
        """The reply: `embedding` or `embeddings`, as arrays that the handler turns into JSON, or base64 strings."""
        vectors, dimensions = encoded(outputs, request.normalize, request.encoding_format, request.dimensions)
        if request.openai_model is not None:
            data = [{"object": "embedding", "index": i, "embedding": e} for i, e in enumerate(vectors)]
            reply = {"object": "list", "data": data, "model": request.openai_model, "usage": usage(request.tokens)}
            return [reply] if request.openai_route else reply  # RunPod's OpenAI routes reply with the first of a list
        key, value = ("embedding", vectors[0]) if request.single else ("embeddings", vectors)
        return {key: value, "dimensions": dimensions, "usage": usage(request.tokens)}


TASK = FeatureExtraction
