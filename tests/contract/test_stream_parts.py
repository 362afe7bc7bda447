"""A streamed job's parts: none larger than RunPod takes, as long as one row is not."""

import asyncio
import base64
import io
import threading
import time
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

import orjson
import pytest
from PIL import Image

from engine.backends.fake import FakeEngine
from engine.batching.batcher import Batcher
from engine.bundle import Graph, open_bundle
from engine.config import Limits, Settings
from engine.errors import AnswerTooLarge
from engine.tasks import TASKS, load_task
from engine.tasks.feature_extraction import FeatureExtraction
from engine.tasks.items import Request
from engine.tasks.sentence_similarity import SentenceSimilarity
from engine.tasks.text_ranking import TextRanking
from engine.tensors import TensorSpec
from handler.aggregate import END
from handler.counts import Counts
from handler.handler import Handler
from handler.stock import answers
from tests.bundles import write_small_bundle
from tests.contract.test_engine import failure_of, let_go, without_collections

__all__ = ["without_collections"]

TEXTS = [" ".join("abcdefgh"[: 1 + index % 8]) for index in range(150)]
LIMITS = Limits(max_items=1000)


def parts_of(handler: Handler, texts: list[str], limit: int, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Bodies of the parts of a stream; together they hold what the job without `stream` is answered with."""
    monkeypatch.setattr("handler.parts._LARGEST", limit)
    bodies: list[bytes] = []

    async def keep(body: bytes) -> None:
        bodies.append(body)

    async def ask() -> bytes:
        whole = await handler.body({"input": {"texts": texts}})
        assert await handler.body({"input": {"texts": texts, "stream": True}}, keep) == b'{"output":[]}'
        return whole

    whole = asyncio.run(ask())
    given = [orjson.loads(body)["output"] for body in bodies]
    places = accumulate([len(part["embeddings"]) for part in given], initial=0)
    assert [part["first"] for part in given] == list(places)[:-1]
    embeddings = [one for part in given for one in part["embeddings"]]
    assert embeddings == orjson.loads(whole)["output"]["embeddings"]
    return bodies


@pytest.mark.parametrize(("limit", "sizes"), [(1_000_000, [64, 64, 22]), (3000, None), (10, [1] * 150)])
def test_parts_are_as_large_as_is_allowed(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch, limit: int, sizes: list[int] | None
):
    bundle = open_bundle(small_bundle)
    batcher = Batcher(FakeEngine.from_bundle(bundle), max_rows=32, max_tokens=0, max_queued=10_000)
    bodies = parts_of(Handler(load_task(bundle, LIMITS), batcher, dict), TEXTS, limit, monkeypatch)
    batcher.close()
    parts = [orjson.loads(body)["output"]["embeddings"] for body in bodies]
    if sizes is None:
        assert 1 < len(parts[0]) < 64
        assert max(map(len, bodies)) <= limit
    else:
        assert [len(part) for part in parts] == sizes


class Echo(FeatureExtraction):
    """Answers with vectors as long as the texts."""

    def postprocess(self, request: Request, outputs: Any) -> Any:
        return {"embeddings": [[float(request.first + index)] * len(text) for index, text in enumerate(request.items)]}


def test_answers_that_grow_are_measured_whenever_one_is_made(small_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """Parts that are too large are split where they are, also those that were split before."""
    bundle = open_bundle(small_bundle)
    batcher = Batcher(FakeEngine.from_bundle(bundle), max_rows=32, max_tokens=0, max_queued=10_000)
    texts = [*["a"] * 64, *["b" * 50] * 64, *["c" * 400] * 64, *["d"] * 64]
    bodies = parts_of(Handler(Echo.from_bundle(bundle, LIMITS), batcher, dict), texts, 5000, monkeypatch)
    batcher.close()
    assert max(map(len, bodies)) <= 5000
    sizes = [len(orjson.loads(body)["output"]["embeddings"]) for body in bodies]
    assert sizes[0] == 64
    assert 1 in sizes


class Choosy(FeatureExtraction):
    """A fork's task, whose answer may be the error of its job."""

    def postprocess(self, request: Request, outputs: Any) -> Any:
        return {"error": "too few"} if len(request.items) < 64 else {"count": len(request.items)}


def test_a_part_that_is_an_error_fails_the_job_of_the_stock_loop(small_bundle: Path):
    bundle = open_bundle(small_bundle)
    batcher = Batcher(FakeEngine.from_bundle(bundle), max_rows=32, max_tokens=0, max_queued=10_000)
    answer = answers(Handler(Choosy.from_bundle(bundle, LIMITS), batcher, dict), Settings(), Counts())

    async def ask() -> tuple[Any, Any]:
        jobs = [{"input": {"texts": TEXTS[:count], "stream": True}} for count in (128, 150)]
        return await answer(jobs[0]), await answer(jobs[1])

    assert asyncio.run(ask()) == (
        [{"first": 0, "count": 64}, {"first": 64, "count": 64}],
        {"error": "too few"},
    )
    batcher.close()


class Ranking(TextRanking):
    """Of a model that is none for it."""

    def answer(self, item: Any, part: Any, outputs: Any, options: Any) -> Any:
        return {"results": len(outputs)}


@pytest.mark.parametrize(
    ("task", "payload"),
    [
        (FeatureExtraction, {"input": TEXTS, "model": "m"}),
        (FeatureExtraction, {"openai_route": "/v1/embeddings", "openai_input": {"input": TEXTS}}),
        (SentenceSimilarity, {"source_sentence": "a", "sentences": TEXTS}),
        (Ranking, {"query": "a", "documents": TEXTS}),
    ],
    ids=["infinity", "openai", "similarity", "ranking"],
)
async def test_a_reply_in_one_piece_is_not_streamed(small_bundle: Path, task: Any, payload: dict[str, Any]):
    """As one part it could be more than RunPod takes of a stream."""
    bundle = open_bundle(small_bundle)
    batcher = Batcher(FakeEngine.from_bundle(bundle), max_rows=32, max_tokens=0, max_queued=10_000)
    handler = Handler(task.from_bundle(bundle, LIMITS), batcher, dict)
    bodies: list[bytes] = []

    async def keep(body: bytes) -> None:
        bodies.append(body)

    whole = await handler.body({"input": payload})
    assert await handler.body({"input": {**payload, "stream": True}}, keep) == whole
    answer = answers(handler, Settings(), Counts())
    assert await answer({"input": {**payload, "stream": True}}) == orjson.loads(whole)["output"]
    assert (bodies, whole[:10]) == ([], b'{"output":')
    batcher.close()


@asynccontextmanager
async def streaming(bundle: Path, **options: Any) -> AsyncIterator[tuple[FakeEngine, Batcher, list[bytes], Any]]:
    """An engine, what queues for it, the parts so far, and a function that streams texts."""
    opened = open_bundle(bundle)
    engine = FakeEngine.from_bundle(opened)
    batcher = Batcher(engine, max_rows=32, max_tokens=0, **options)
    handler = Handler(load_task(opened, LIMITS), batcher, dict)
    bodies: list[bytes] = []

    async def keep(body: bytes) -> None:
        bodies.append(body)

    yield engine, batcher, bodies, lambda job: handler.body({"input": job}, keep)
    batcher.close()


async def test_one_item_is_one_part_which_has_no_place_in_a_list(small_bundle: Path):
    bundle, bodies = open_bundle(small_bundle), list[bytes]()
    batcher = Batcher(FakeEngine.from_bundle(bundle), max_rows=32, max_tokens=0, max_queued=10_000)
    handler = Handler(load_task(bundle, LIMITS), batcher, dict)

    async def keep(body: bytes) -> None:
        bodies.append(body)

    assert await handler.body({"input": {"text": "a", "stream": True}}, keep) == END
    assert bodies == [await handler.body({"input": {"text": "a"}})]
    batcher.close()


async def test_parts_wait_for_room_that_others_of_their_job_have_taken(small_bundle: Path):
    """Four at once are more rows than may wait; each alone is not."""
    async with streaming(small_bundle, max_queued=100) as (engine, _, bodies, ask):
        engine.on_run = lambda bucket: time.sleep(0.02)
        assert await ask({"texts": ["a"] * 600, "stream": True}) == END
        assert [len(orjson.loads(body)["output"]["embeddings"]) for body in bodies] == [64] * 9 + [24]


async def test_parts_for_which_others_leave_no_room_are_told_to_retry(small_bundle: Path):
    async with streaming(small_bundle, max_queued=100) as (engine, batcher, bodies, ask):
        gate = threading.Event()

        def hold(bucket: object) -> None:
            gate.wait(10)

        engine.on_run = hold
        other = asyncio.create_task(ask({"texts": ["a"] * 100}))
        while batcher.queued != 68:  # the others run
            await asyncio.sleep(0.01)
        said = orjson.loads(await ask({"texts": ["a"] * 600, "stream": True}))
        assert said["error"].startswith("overloaded, please retry: 68 rows wait, 64 more are over the limit of 100")
        gate.set()
        assert b"embeddings" in await other
        assert bodies == []


class Held(FeatureExtraction):
    """Keeps track of its rows, and fails where it is told to."""

    held: ClassVar[list[weakref.ref[Any]]] = []
    how: ClassVar[str] = ""

    def preprocess(self, request: Any) -> Any:
        rows = super().preprocess(request)
        self.held.extend(weakref.ref(row.feeds["input_ids"]) for row in rows)
        return rows

    def postprocess(self, request: Any, outputs: Any) -> Any:
        if self.how == "put together":
            raise ValueError("x")
        if self.how == "too large":
            raise AnswerTooLarge("much", 100)
        return super().postprocess(request, outputs)


@pytest.mark.parametrize("how", ["run", "put together", "too large", "too large to wait", "cancelled"])
@pytest.mark.usefixtures("without_collections")
async def test_a_stream_that_ended_early_is_let_go_of_at_once(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch, how: str
):
    monkeypatch.setattr(Held, "how", how)
    bundle, running = open_bundle(small_bundle), threading.Event()

    def on_run(bucket: object) -> None:
        running.set()
        if how == "run":
            raise RuntimeError("x")
        time.sleep(0.02)  # so that parts wait

    engine = FakeEngine.from_bundle(bundle)
    engine.on_run = on_run
    batcher = Batcher(engine, max_rows=32, max_tokens=0, max_queued=40 if how == "too large to wait" else 150)
    handler = Handler(Held.from_bundle(bundle, LIMITS), batcher, dict)

    async def ignore(body: bytes) -> None:
        pass

    job = asyncio.ensure_future(handler.body({"input": {"texts": TEXTS * 2, "stream": True}}, ignore))
    if how == "cancelled":
        assert await asyncio.to_thread(running.wait, 10)
        job.cancel()
        assert await failure_of(job) is asyncio.CancelledError
    else:
        assert b"error" in await job
    del job
    await let_go(Held.held)
    batcher.close()
    Held.held.clear()


class Wordy(FeatureExtraction):
    """Refuses to answer more than three texts at once."""

    def postprocess(self, request: Request, outputs: Any) -> Any:
        if len(request.items) > 3 or request.items[-1] == "long":
            raise AnswerTooLarge("much", 1_000_000 * len(request.items) // 3)
        return [request.first, len(request.items)]


async def test_a_part_that_is_refused_for_its_answers_size_is_split(small_bundle: Path):
    bundle = open_bundle(small_bundle)
    batcher = Batcher(FakeEngine.from_bundle(bundle), max_rows=32, max_tokens=0, max_queued=10_000)
    handler = Handler(Wordy.from_bundle(bundle, LIMITS), batcher, dict)
    bodies: list[bytes] = []

    async def keep(body: bytes) -> None:
        bodies.append(body)

    assert await handler.body({"input": {"texts": TEXTS, "stream": True}}, keep) == END
    parts = [orjson.loads(body)["output"] for body in bodies]
    assert [first for first, _ in parts] == [sum(count for _, count in parts[:at]) for at in range(len(parts))]
    assert sum(count for _, count in parts) == len(TEXTS)
    said = await handler.body({"input": {"texts": ["a", "b", "c", "long"], "stream": True}}, keep)
    assert said == b'{"error":"invalid input: much"}'
    batcher.close()


PIXELS = TensorSpec("pixels", "uint8", ("batch", 8, 8, 3))
CONTENT = io.BytesIO()
Image.new("RGB", (100, 100)).save(CONTENT, "PNG")
PICTURE = base64.b64encode(CONTENT.getvalue()).decode()


@pytest.mark.parametrize(
    ("tag", "output", "payload", "row_bytes", "reply_bytes"),
    [
        ("image-segmentation", TensorSpec("logits", "float32", ("batch", 2, 64, 64)), {}, 5 * 33_000, None),
        (
            "depth-estimation",
            TensorSpec("predicted_depth", "float32", ("batch", 8, 8)),
            {"predicted_depth": "float"},
            2_000_000_000,
            500_000,
        ),
    ],
)
async def test_a_part_whose_rows_or_maps_are_too_large_together_is_split(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tag: str,
    output: TensorSpec,
    payload: dict[str, Any],
    row_bytes: int,
    reply_bytes: int | None,
):
    if tag not in TASKS:
        pytest.skip(f"there is no {tag}")  # in a fork that has removed it
    if reply_bytes is not None:
        monkeypatch.setattr("engine.images.task.MOST_REPLY_BYTES", reply_bytes)
        monkeypatch.setattr("handler.parts._LARGEST", reply_bytes)
    config = {"image": {"height": 8, "width": 8, "resize": "exact", "size": (8, 8)}, "labels": ["sky", "sea"]}
    graphs = {"model": Graph((PIXELS,), (output,), {"fp32": "graphs/model/fp32.onnx"})}
    bundle = open_bundle(write_small_bundle(tmp_path / "bundle", task=tag, task_config=config, graphs=graphs))

    async def parts(count: int, most: int) -> tuple[bytes, list[int]]:
        batcher = Batcher(FakeEngine.from_bundle(bundle), max_rows=8, max_tokens=0, max_queued=10_000)
        handler = Handler(load_task(bundle, Limits(max_row_bytes=most)), batcher, dict)
        bodies: list[bytes] = []

        async def keep(body: bytes) -> None:
            bodies.append(body)

        async with asyncio.timeout(60):
            last = await handler.body({"input": {"images": [PICTURE] * count, "stream": True, **payload}}, keep)
        batcher.close()
        return last, [len(orjson.loads(body)["output"]) for body in bodies]

    last, sizes = await parts(70, row_bytes)
    assert last == END
    assert sum(sizes) == 70
    assert 1 < sizes[0] <= 5
    if reply_bytes is not None:
        monkeypatch.setattr("engine.images.task.MOST_REPLY_BYTES", 1000)
    last, sizes = await parts(1, 1000)
    assert b"more than 1000 bytes" in last
    assert not sizes
