"""Rerank documents by their relevance to a query, with a cross-encoder.

`task_config` of the manifest: function (sigmoid or none: what the model makes scores with), max_length (tokens).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from engine.errors import InvalidInput
from engine.tasks import payload as check
from engine.tasks.items import Part, Request
from engine.text.scores import FUNCTIONS
from engine.text.task import TextTask
from engine.text.tokens import usage

if TYPE_CHECKING:
    from engine.tasks.base import Json
    from engine.tensors import Arrays


_ROUTE = "/v1/rerank"
_OUR_NAMES = {"docs": "documents", "return_docs": "return_documents"}
_FORMS = (*_OUR_NAMES, *_OUR_NAMES.values(), *check.OF_ROUTES)


class TextRanking(TextTask):
    """`{"query": ..., "documents": [...]}`; the whole job is one item, a row a document.

    Two other forms are taken: `/v1/rerank` as Jina, Cohere and vLLM have it, and that of RunPod's infinity worker, with
    `docs` and `return_docs`.
    """

    summary: ClassVar[str] = "Rerank documents by relevance to a query, as a sentence-transformers CrossEncoder does."
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"query": "Who wrote it?", "documents": ["A quick test.", "Sarah wrote it in London.", "混合的文本 🙂"]},
        {"query": "cat", "documents": ["The cat sits on the mat."], "return_documents": True, "raw_scores": True},
    )
    option_names: ClassVar[tuple[str, ...]] = ("top_n", "return_documents", "raw_scores", "truncate")

    def parse(self, payload: Json) -> Request:
        """Check the job's input. Raises InvalidInput."""
        payload = check.without_nulls(check.require_object(payload), _FORMS)
        body = check.openai_body(payload, _ROUTE)
        payload = payload if body is None else check.without_nulls(body, _FORMS)
        field = "docs" if "docs" in payload else "documents"
        if "docs" in payload and not {"documents", "return_documents"} & set(payload):
            payload = {_OUR_NAMES.get(name, name): value for name, value in payload.items()}
        of_every_job = check.OF_EVERY_JOB if body is None else ""
        check.refuse_unknown(payload, ("query", "documents", "model", *self.option_names), of_every_job)
        if "query" not in payload or "documents" not in payload:
            whole = "`input`" if body is None else "a request to rerank"
            raise InvalidInput(f"{whole} needs `query` (a string) and `documents` (a list of strings)")
        limits = self.limits
        query = check.string(payload["query"], "query", limits.max_chars)
        documents = payload["documents"]
        if isinstance(documents, list):  # other rerankers' clients wrap texts
            documents = [one["text"] if isinstance(one, dict) and set(one) == {"text"} else one for one in documents]
            for index, one in enumerate(documents):
                if isinstance(one, dict):
                    raise InvalidInput(f'`{field}[{index}]` must be a string or {{"text": ...}} and nothing else')
        documents = check.texts(documents, field, limits.max_items, limits.max_chars)
        options = {
            **self.options(payload),
            "route": body is not None,
            "field": field,
            "model": check.model_name(payload),
            "top_n": check.whole_number(payload, "top_n", 1, 1_000_000),
            "return_documents": check.boolean(payload, "return_documents", False),
            "raw_scores": check.boolean(payload, "raw_scores", False),
        }
        return Request([(query, documents)], True, options)

    def split(self, request: Request, rows: int) -> Sequence[Request]:
        """None: an order of some of the documents is none."""
        return []

    def texts(self, item: Any, options: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
        """A pair a document."""
        query, documents = item
        return [(query, document) for document in documents]

    def name_of(self, request: Request, index: int, row: int) -> str:
        """A document, and the query in front of it."""
        return f"`{request.options['field']}[{row}]` with its `query`"

    def answer(self, item: Any, part: Part, outputs: Sequence[Arrays], options: Mapping[str, Any]) -> Json:
        """`{"results": [{"index", "relevance_score"}, ...], "usage"}`, the most relevant first, equal ones in order."""
        function = FUNCTIONS["none" if options["raw_scores"] else self.config["function"]]
        scores = [float(function(row["logits"])[0]) for row in outputs]
        best = sorted(range(len(scores)), key=lambda index: -scores[index])[: options["top_n"]]
        results: list[dict[str, Any]] = [{"index": index, "relevance_score": scores[index]} for index in best]
        if options["return_documents"]:
            for result in results:
                document = item[1][result["index"]]
                result["document"] = {"text": document} if options["route"] else document
        named = {} if options["model"] is None else {"model": options["model"]}
        reply = {**named, "results": results, "usage": usage(sum(map(len, part.data)))}
        return [reply] if options["route"] else reply  # RunPod's OpenAI routes reply with the first of a list


TASK = TextRanking
