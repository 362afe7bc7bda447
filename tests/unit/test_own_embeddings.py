"""Tasks of a fork that are built on the embeddings' ones: docs/adding-a-task.md, "Another input"."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.bundle import open_bundle
from engine.config import Limits, Settings
from engine.errors import InvalidInput, WorkerFault
from engine.tasks import payload as check
from engine.tasks.feature_extraction import FeatureExtraction
from engine.tasks.sentence_similarity import SentenceSimilarity
from handler.boot import boot
from handler.reply import to_json
from handler.startup.timeline import Timeline
from tests.bundles import write_small_bundle

BASES = pytest.mark.parametrize("base", [FeatureExtraction, SentenceSimilarity])


def without_links(text: str) -> str:
    return " ".join(word for word in text.split() if not word.startswith("https:"))


@contextmanager
def served(folder: Path, monkeypatch: pytest.MonkeyPatch, base: type, **own: Any) -> Iterator[Any]:
    """The handler of a worker whose task is `base` with what is the fork's own; it has a real engine."""
    tag = base.__module__.rpartition(".")[2]
    bundle = write_small_bundle(folder / "bundle", task=tag.replace("_", "-"))
    monkeypatch.setattr(f"engine.tasks.{tag}.TASK", type("Own", (base,), own))
    worker = boot(Settings(bundle=bundle, engine="onnxruntime-cpu"), Timeline())
    try:
        yield worker.handler
    finally:
        worker.batcher.close()


@BASES
async def test_what_texts_takes_out_of_a_text_the_model_does_not_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: type
):
    def texts(self: Any, item: str, options: Any) -> list[str]:
        return [options["prompt"] + without_links(item)]

    plain, linked = "the quick fox", "the https://example.org/a?b=1 quick fox https://example.org"
    with served(tmp_path, monkeypatch, base, texts=texts) as handler:

        async def answer(**payload: Any) -> Any:
            return to_json(await handler.handle({"id": "a", "input": {"normalize": False, **payload}}))

        alone = await answer(text=plain)
        assert alone["usage"]["prompt_tokens"] == 5
        assert await answer(text=linked) == alone
        assert (await answer(input=linked))["data"][0]["embedding"] == alone["embedding"]
        assert await answer(texts=[linked] * 20) == await answer(texts=[plain] * 20)
        prompted = await answer(text=linked, prompt_name="query")
        assert prompted == await answer(text=plain, prompt_name="query")
        assert prompted["embedding"] != alone["embedding"]


@BASES
def test_a_text_for_each_item_is_asked_of_texts(small_bundle: Path, base: Any):
    class Own(base):
        def texts(self, item: str, options: Any) -> Any:
            return item  # no list: its characters

    task = Own.from_bundle(open_bundle(small_bundle), Limits())
    with pytest.raises(WorkerFault, match="Own.texts gives 6 texts for 2 items; let it return a list of one text for"):
        task.preprocess(task.parse({"texts": ["fox", "dog"]}))


class Reviews:
    """Another input: what docs/adding-a-task.md says."""

    one, many, noun = "review", "reviews", "an object with `title` and `body`"

    def item(self: Any, value: Any, name: str, payload: Any) -> Any:
        if not isinstance(value, dict):
            raise InvalidInput(f"`{name}` must be {self.noun}, got {check.kind(value)}")
        return tuple(check.string(value.get(key), f"{name}.{key}", self.limits.max_chars) for key in ("title", "body"))

    def texts(self, item: Any, options: Any) -> Any:
        return [options["prompt"] + ": ".join(item)]


@BASES
@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        ({"text": "a"}, "unknown field `text`; known are .*`review`, `reviews`"),
        ({}, r"needs either `review` \(an object with `title` and `body`\) or `reviews` \(a list of them\)"),
        ({"review": "a"}, "`review` must be an object with `title` and `body`, got a string"),
        (
            {"review": ["a"]},
            "`review` must be an object with `title` and `body`, got a list, which goes into `reviews`",
        ),
        ({"reviews": {"title": "a"}}, "`reviews` must be a list, got an object; one item goes into `review`"),
        ({"reviews": []}, "`reviews` must hold 1 to 2 items, got 0"),
        ({"reviews": [{"title": "a", "body": "b"}, {"title": "a"}]}, r"`reviews\[1\].body` must be a string, got null"),
        ({"review": {"title": "a " * 40, "body": "b"}, "truncate": False}, "review 0 has more than 32 tokens"),
    ],
)
def test_what_is_no_item_of_ones_own_is_refused_in_its_words(
    small_bundle: Path, base: Any, payload: Any, sentence: str
):
    own: Any = type("Own", (Reviews, base), {})
    task = own.from_bundle(open_bundle(small_bundle), Limits(max_items=2))
    with pytest.raises(InvalidInput, match=sentence):
        task.preprocess(task.parse(payload))


@BASES
async def test_items_of_ones_own_are_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: type):
    fox, dog = {"title": "the quick", "body": "fox"}, {"title": "lazy", "body": "dog"}
    with served(tmp_path, monkeypatch, base, **vars(Reviews)) as handler:

        async def answer(**payload: Any) -> Any:
            return to_json(await handler.handle({"id": "a", "input": payload}))

        alone = await answer(review=fox)
        assert alone["usage"]["prompt_tokens"] == 6
        several = await answer(reviews=[fox, dog])
        assert several["embeddings"][0] == alone["embedding"] != several["embeddings"][1]
        assert await answer(inputs=[fox, dog]) == several
        if base is SentenceSimilarity:
            same, _ = (await answer(source_sentence=fox, sentences=[fox, dog]))["similarities"]
            assert same == pytest.approx(1)
            sentence = "invalid input: `sentences[1]` must be an object with `title` and `body`, got a string"
            assert await answer(source=fox, sentences=[fox, "dog"]) == {"error": sentence}
