"""Text embeddings: one vector a text. Pooling is in the graph; what a request may switch is done here.

`task_config` of the manifest: pooling, dimension, max_length (tokens), normalize (default of the request's option),
prompts (name -> prefix) and default_prompt (a name, or null).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from tokenizers import Tokenizer

from engine.config import Limits
from engine.errors import InvalidInput
from engine.tasks import payload as check
from engine.tensors import Row

if TYPE_CHECKING:
    from engine.bundle import Bundle
    from engine.tasks.base import Json
    from engine.tensors import Array, Arrays

_NORM_FLOOR = 1e-12  # torch.nn.functional.normalize's default eps
_OPENAI_ROUTE = "/v1/embeddings"
_OPTIONS = ("normalize", "dimensions", "encoding_format", "truncate", "prompt_name")
_FORMATS = ("float", "base64")


@dataclass
class Request:
    """A checked job: the texts and how to answer.

    `first` is the place of the first text in the whole job, `tokens` is counted while preprocessing.
    """

    texts: list[str]
    single: bool
    openai_model: str | None
    normalize: bool
    dimensions: int | None
    encoding_format: str
    truncate: bool
    prompt: str
    first: int = 0
    tokens: int = 0


class FeatureExtraction:
    """`{"text": ...}` or `{"texts": [...]}`, or OpenAI's embeddings route."""

    summary: ClassVar[str] = "Text embeddings: one vector a text, as sentence-transformers makes it."
    auto_class: ClassVar[str] = "AutoModel"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"text": "A quick test."},
        {"texts": ["The cat sits on the mat.", "Ein Satz auf Deutsch, etwas länger als der erste.", "混合的文本 🙂"]},
        {"texts": ["word " * 40, "A sentence of medium length that says little.", "x"], "normalize": False},
    )

    def __init__(self, tokenizer: Tokenizer, model: str, config: Mapping[str, Any], limits: Limits) -> None:
        self._tokenizer = tokenizer
        self._model = model
        self._limits = limits
        self._dimension = int(config["dimension"])
        self._max_length = int(config["max_length"])
        self._normalize = bool(config["normalize"])
        self._prompts: dict[str, str] = dict(config.get("prompts", {}))
        self._default_prompt = self._prompts.get(config.get("default_prompt") or "", "")
        tokenizer.no_padding()
        tokenizer.enable_truncation(self._max_length)
        self._inputs: frozenset[str] = frozenset()

    @classmethod
    def from_bundle(cls, bundle: Bundle, limits: Limits) -> FeatureExtraction:
        """Read the tokenizer of `bundle`."""
        manifest = bundle.manifest
        tokenizer = Tokenizer.from_file(str(bundle.file("tokenizer.json")))
        task = cls(tokenizer, manifest.model, manifest.task_config, limits)
        task._inputs = frozenset(spec.name for spec in manifest.graphs["model"].inputs)
        return task

    def parse(self, payload: Json) -> Request:
        """Check the job's input. Raises InvalidInput."""
        payload = check.require_object(payload)
        if "openai_route" in payload or "openai_input" in payload:
            return self._parse_openai(payload)
        check.refuse_unknown(payload, ("text", "texts", *_OPTIONS))
        if ("text" in payload) == ("texts" in payload):
            raise InvalidInput("`input` needs either `text` (a string) or `texts` (a list of strings)")
        single = "text" in payload
        if single and not isinstance(payload["text"], str):
            raise InvalidInput(f"`text` must be a string, got {check.kind(payload['text'])}; a list goes into `texts`")
        return self._request(payload, "text" if single else "texts", single, None)

    def _parse_openai(self, payload: dict[str, Any]) -> Request:
        check.refuse_unknown(payload, ("openai_route", "openai_input"))
        if payload.get("openai_route") != _OPENAI_ROUTE:
            raise InvalidInput(
                f"`openai_route` must be {_OPENAI_ROUTE}, got {check.shown(payload.get('openai_route'))}"
            )
        body = check.require_object(payload.get("openai_input"), "`openai_input`")
        # `user` is for OpenAI's abuse monitoring; clients send it, nothing depends on it.
        check.refuse_unknown(body, ("input", "model", "user", *_OPTIONS))
        if "input" not in body:
            raise InvalidInput("`openai_input` needs `input`, a string or a list of strings")
        if isinstance(body["input"], list) and body["input"] and not isinstance(body["input"][0], str):
            raise InvalidInput("`input` must be a string or a list of strings; token ids are not supported")
        model = body.get("model") or self._model
        if not isinstance(model, str):
            raise InvalidInput(f"`model` must be a string, got {check.kind(model)}")
        return self._request(body, "input", isinstance(body["input"], str), model)

    def _request(self, body: dict[str, Any], field: str, single: bool, openai_model: str | None) -> Request:
        texts = [body[field]] if single else body[field]
        prompt_name = body.get("prompt_name")
        if prompt_name is not None and (not isinstance(prompt_name, str) or prompt_name not in self._prompts):
            known = ", ".join(sorted(self._prompts)) or "none for this model"
            raise InvalidInput(f"`prompt_name` must be one of: {known}; got {check.shown(prompt_name)}")
        return Request(
            texts=check.texts(texts, field, self._limits.max_items, self._limits.max_chars),
            single=single,
            openai_model=openai_model,
            normalize=check.boolean(body, "normalize", self._normalize),
            dimensions=check.whole_number(body, "dimensions", 1, self._dimension),
            encoding_format=check.choice(body, "encoding_format", _FORMATS),
            truncate=check.boolean(body, "truncate", True),
            prompt=self._prompts[prompt_name] if prompt_name is not None else self._default_prompt,
        )

    def split(self, request: Request, rows: int) -> Sequence[Request]:
        """Parts of `rows` texts; one text, and an OpenAI request, whose reply is one object, stay whole."""
        if request.single or request.openai_model is not None:
            return [request]
        starts = range(0, len(request.texts), rows)
        return [replace(request, texts=request.texts[at : at + rows], first=at) for at in starts]

    def preprocess(self, request: Request) -> Sequence[Row]:
        """Tokenise in one call (parallel inside, without the interpreter lock). Raises InvalidInput for long texts."""
        encodings = self._tokenizer.encode_batch_fast([request.prompt + text for text in request.texts])
        if not request.truncate:
            for index, encoding in enumerate(encodings):
                if encoding.overflowing:
                    raise InvalidInput(
                        f"text {request.first + index} has more than {self._max_length} tokens, the most that the "
                        "model takes; shorten it or leave `truncate` at true"
                    )
        request.tokens = sum(len(encoding.ids) for encoding in encodings)
        return [self._row(encoding) for encoding in encodings]

    def _row(self, encoding: Any) -> Row:
        ids = np.array(encoding.ids, np.int32)
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        if "token_type_ids" in self._inputs:
            feeds["token_type_ids"] = np.array(encoding.type_ids, np.int32)
        # A tokenizer without special tokens makes an empty row of an empty text; a bucket is at least one token long.
        return Row(feeds, max(1, len(ids)))

    def postprocess(self, request: Request, outputs: Sequence[Arrays]) -> Json:
        """The reply: `embedding` or `embeddings`, as arrays that the handler turns into JSON, or base64 strings.

        Shortened vectors are cut first and normalised then, as OpenAI does.
        """
        vectors = np.stack([row["embedding"] for row in outputs])[:, : request.dimensions]
        if request.normalize:
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), _NORM_FLOOR)
        encoded = _base64(vectors) if request.encoding_format == "base64" else vectors
        usage = {"prompt_tokens": request.tokens, "total_tokens": request.tokens}
        if request.openai_model is not None:
            data = [{"object": "embedding", "index": i, "embedding": e} for i, e in enumerate(encoded)]
            # RunPod's OpenAI routes reply with the first element of a list.
            return [{"object": "list", "data": data, "model": request.openai_model, "usage": usage}]
        key, value = ("embedding", encoded[0]) if request.single else ("embeddings", encoded)
        return {key: value, "dimensions": vectors.shape[1], "usage": usage}


def _base64(vectors: Array) -> list[str]:
    """Each vector as little-endian float32, which is what OpenAI's client decodes."""
    return [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in vectors]


TASK = FeatureExtraction
