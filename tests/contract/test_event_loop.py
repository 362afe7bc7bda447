"""What stands still while a job is prepared or answered: its own thread, never the event loop of all jobs."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from engine.backends.fake import FakeEngine
from engine.batching.batcher import Batcher
from engine.batching.passage import Passage
from engine.batching.stats import Stats
from engine.bundle import Graph, open_bundle
from engine.config import Settings
from engine.images.task import MapTask
from engine.tasks import load_task
from engine.tasks.base import Task
from engine.tasks.fill_mask import FillMask
from engine.tasks.items import Request
from engine.tasks.question_answering import QuestionAnswering
from engine.tensors import Row, TensorSpec
from engine.text.bulk import FEW
from handler.handler import Handler
from tests.bundles import MAX_LENGTH, write_small_bundle

CONFIG: dict[str, Any] = {
    "max_length": MAX_LENGTH,
    "dimension": 8,
    "normalize": True,
    "prompts": {},
    "default_prompt": None,
    "labels": ["x", "y", "z"],
    "function": "none",
    "entailment": 0,
    "contradiction": 1,
    "cls_token_id": None,
    "unk_token_id": None,
}
OUTPUTS: dict[str, list[tuple[str, tuple[int | str, ...]]]] = {
    "feature-extraction": [("embedding", ("batch", 8))],
    "text-classification": [("logits", ("batch", 3))],
    "text-ranking": [("logits", ("batch", 1))],
    "zero-shot-classification": [("logits", ("batch", 2))],
    "token-classification": [("logits", ("batch", "length", 3))],
    "question-answering": [("start_logits", ("batch", "length")), ("end_logits", ("batch", "length"))],
}


class Watched:
    """A tokenizer that tells `seen` of every call: its method, and what it was given."""

    def __init__(self, tokenizer: Any, seen: Callable[[str, Any], None]) -> None:
        self._tokenizer = tokenizer
        self._seen = seen

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._tokenizer, name)
        if not name.startswith("encode"):
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            self._seen(name, arguments)
            return found(*arguments, **options)

        return call


class Worker:
    """A handler for `task` on a fake engine, and who tokenized what."""

    def __init__(self, folder: Path, task: str) -> None:
        inputs = tuple(TensorSpec(name, "int32", ("batch", "length")) for name in ("input_ids", "attention_mask"))
        outputs = tuple(TensorSpec(name, "float32", shape) for name, shape in OUTPUTS[task])
        graphs = {"model": Graph(inputs, outputs, {"fp32": "graphs/model/fp32.onnx"})}
        bundle = open_bundle(write_small_bundle(folder / task, task=task, task_config=CONFIG, graphs=graphs))
        self.task: Any = load_task(bundle, Settings.from_environ({"MAX_ITEMS": "5000", "MAX_CHARS": "200000"}))
        self.batcher = Batcher(FakeEngine.from_bundle(bundle), max_rows=32, max_tokens=0, max_queued=100_000)
        self.handler = Handler(self.task, self.batcher, dict)
        self.calls: list[tuple[bool, str, Any]] = []
        """Whether it was on the event loop, the method, and its arguments."""
        self.on_call: Callable[[], None] = lambda: None
        tokens = vars(self.task)["tokens"]
        tokens.tokenizer = Watched(tokens.tokenizer, self._seen)
        if hasattr(tokens, "_bulk"):
            tokens._bulk._tokenizer = tokens.tokenizer

    def _seen(self, name: str, arguments: Any) -> None:
        self.calls.append((threading.current_thread() is threading.main_thread(), name, arguments))
        self.on_call()

    async def ask(self, payload: Any) -> Any:
        return await self.handler.handle({"input": payload})


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = {task: Worker(tmp_path_factory.mktemp("loop"), task) for task in OUTPUTS}
    yield made
    for worker in made.values():
        worker.batcher.close()


LONG = [f"{index} " + "fox " * 24_000 for index in range(30)]
TEXT = st.sampled_from(["a", "ก 🙂", "fox " * 40, "a" * 3_900, "fox " * 970, "fox " * 30_000])
SHORT = st.builds("{}{}".format, st.sampled_from(["a", "ก 🙂", "fox " * 40]), st.integers(0, 10**6))
MANY = st.lists(TEXT, min_size=1, max_size=12) | st.lists(SHORT, min_size=17, max_size=30)
PAYLOADS = {
    "feature-extraction": st.builds(lambda texts: {"texts": texts}, MANY),
    "text-classification": st.builds(lambda texts: {"texts": texts}, MANY),
    "text-ranking": st.builds(lambda query, texts: {"query": query, "documents": texts}, TEXT, MANY),
    "zero-shot-classification": st.builds(
        lambda text, labels, template: {
            "text": text,
            "candidate_labels": [label[:900] for label in labels],
            "hypothesis_template": template + "{}",
        },
        TEXT,
        MANY,
        st.sampled_from(["", "x" * 990]),
    ),
    "token-classification": st.builds(
        lambda texts, stride: {"texts": texts, "aggregation_strategy": "simple", **stride},
        MANY,
        st.sampled_from([{}, {"stride": 4}]),
    ),
    "question-answering": st.builds(
        lambda questions, text, stride: {"question": questions, "context": text, "doc_stride": stride},
        st.lists(SHORT, min_size=1, max_size=40),
        TEXT,
        st.sampled_from([0, 8]),
    ),
}


@pytest.mark.parametrize("task", PAYLOADS)
@given(data=st.data())
@settings(max_examples=40)
def test_the_loop_waits_for_no_turn_of_the_tokenizers_threads(workers: Any, task: str, data: Any):
    """Which a batch does, however small it is, while another job's is on all CPUs; alone, a text holds up the rest."""
    worker = workers[task]
    worker.calls.clear()
    asyncio.run(worker.ask(data.draw(PAYLOADS[task])))
    on_loop = [(name, arguments) for is_on_loop, name, arguments in worker.calls if is_on_loop]
    assert {name for name, _ in on_loop} <= {"encode"}
    assert len(on_loop) <= 2 * FEW
    assert sum(len(text) for _, texts in on_loop for text in texts) < 20_000


@pytest.mark.parametrize("task", PAYLOADS)
def test_what_was_asked_of_the_loop_is_what_was_asked_of_a_thread(
    workers: Any, task: str, monkeypatch: pytest.MonkeyPatch
):
    """A few texts of every kind, prepared here and there."""
    payloads = {
        "text-ranking": {"query": "ก the fox", "documents": ["dogs 🙂", "the quick"]},
        "zero-shot-classification": {"text": "ก the fox", "candidate_labels": ["dogs 🙂", "the quick"]},
        "question-answering": {"question": "ก the fox", "context": "the quick brown fox", "top_k": 3},
    }
    payload = payloads.get(task, {"texts": ["ก the fox", "dogs 🙂"]})
    worker = workers[task]
    worker.calls.clear()
    expected = asyncio.run(worker.ask(payload))
    assert all(is_on_loop for is_on_loop, _, _ in worker.calls)
    worker.calls.clear()
    monkeypatch.setattr("engine.text.bulk._SHORT", 0)
    assert asyncio.run(worker.ask(payload)) == expected
    assert not any(is_on_loop for is_on_loop, _, _ in worker.calls)


@pytest.mark.parametrize(
    ("task", "payload"),
    [
        ("feature-extraction", {"texts": LONG}),
        ("text-ranking", {"query": "a", "documents": LONG}),
        ("zero-shot-classification", {"texts": LONG, "candidate_labels": ["b"]}),
        ("token-classification", {"texts": LONG}),
        ("question-answering", {"question": [f"{index}?" for index in range(20)], "context": "fox " * 5_000}),
    ],
)
def test_a_cancelled_job_is_not_tokenized_to_its_end(workers: Any, task: str, payload: Any):
    worker = workers[task]
    worker.calls.clear()
    begun, gate = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        assert gate.wait(30)

    async def cancel() -> None:
        asked = asyncio.create_task(worker.ask(payload))
        assert await asyncio.to_thread(begun.wait, 30)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        gate.set()
        await asyncio.get_running_loop().shutdown_default_executor()

    worker.on_call = hold
    try:
        asyncio.run(cancel())
    finally:
        worker.on_call = lambda: None
    assert 1 <= len(worker.calls) <= 2  # what was begun is finished: a slice, or a question and its context


@pytest.mark.parametrize("shared", ["question", "context"])
def test_what_all_pairs_share_is_read_once_and_by_each(workers: Any, shared: str):
    worker = workers["question-answering"]
    long = "fox the dogs " * 40
    pairs = [{"question": "why " * index + "?", "context": f"{long} {index}"} for index in range(4)]
    pairs = [{**pair, shared: pairs[0][shared]} for pair in pairs]
    alone = [asyncio.run(worker.ask(pair)) for pair in pairs]
    worker.calls.clear()
    assert asyncio.run(worker.ask({"inputs": pairs})) == alone
    assert len(worker.calls) == 5


def test_a_small_job_gets_a_thread_while_large_ones_hold_all_of_asyncios(workers: Any):
    worker = workers["feature-extraction"]
    gate = threading.Event()

    async def ask() -> Any:
        loop = asyncio.get_running_loop()
        held = [loop.run_in_executor(None, gate.wait, 30) for _ in range(40)]
        try:
            return await asyncio.wait_for(worker.ask({"texts": ["a"] * 100}), 20)
        finally:
            gate.set()
            await asyncio.gather(*held)

    assert len(asyncio.run(ask())["embeddings"]) == 100


@pytest.mark.parametrize(("per_row", "is_on_loop"), [(1, True), (8, True), (9, False)])
async def test_many_answers_are_put_together_beside_the_loop(workers: Any, per_row: int, is_on_loop: bool):
    worker = workers["feature-extraction"]
    where = []

    class Counting:
        """The worker's task, with so many answers a row."""

        def __getattr__(self, name: str) -> Any:
            return getattr(worker.task, name)

        def answers_in(self, request: Any, rows: int) -> int:
            return rows * per_row

        def postprocess(self, *arguments: Any) -> Any:
            where.append(threading.current_thread() is threading.main_thread())
            return worker.task.postprocess(*arguments)

    task: Any = Counting()
    reply = await Handler(task, worker.batcher, dict).handle({"input": {"texts": ["a", "b"]}})
    assert len(reply["embeddings"]) == 2
    assert where == [is_on_loop]


@pytest.mark.parametrize(("size", "is_soon_done"), [((480, 640), True), ((2000, 2200), False)])
async def test_large_pictures_keep_nobody_waiting_whose_are_small(size: tuple[int, int], is_soon_done: bool):
    where = []

    class Drawn(MapTask):
        """Answers with nothing, as if that were a picture."""

        def answer(self, *given: Any) -> Any:
            where.append(threading.current_thread().name.startswith("soon"))
            return {}

    content = io.BytesIO()
    Image.new("1", size).save(content, "PNG")
    task: Any = Drawn(
        {"image": {"height": 8, "width": 8, "resize": "exact", "size": (8, 8)}}, Settings(max_pixels=5_000_000)
    )
    payload = {"image": base64.b64encode(content.getvalue()).decode()}
    assert await Handler(task, Passage(Stats()), dict).handle({"input": payload}) == {}
    assert where == [is_soon_done]


async def test_those_that_take_long_keep_nobody_waiting_whose_are_fewer(workers: Any, monkeypatch: pytest.MonkeyPatch):
    worker, gate, held = workers["feature-extraction"], threading.Event(), threading.Semaphore(0)
    postprocess = worker.task.postprocess

    def slow(request: Any, outputs: Any) -> Any:
        if len(outputs) > 512:
            held.release()
            gate.wait(30)
        return postprocess(request, outputs)

    monkeypatch.setattr(worker.task, "postprocess", slow)
    long = [asyncio.create_task(worker.ask({"texts": ["a"] * 513})) for _ in range(4)]
    for _ in long:
        assert await asyncio.to_thread(held.acquire, timeout=30)
    try:
        assert len((await asyncio.wait_for(worker.ask({"texts": ["a"] * 512}), 20))["embeddings"]) == 512
    finally:
        gate.set()
    assert [len(reply["embeddings"]) for reply in await asyncio.gather(*long)] == [513] * 4


@pytest.mark.parametrize(
    ("texts", "is_on_loop"), [(["a"] * 16, True), (["fox " * 40] * 8, True), (["fox " * 40] * 9, False)]
)
async def test_entities_of_many_tokens_are_put_together_beside_the_loop(
    workers: Any, monkeypatch: pytest.MonkeyPatch, texts: list[str], is_on_loop: bool
):
    """However few texts they are of."""
    worker, where = workers["token-classification"], []
    postprocess = worker.task.postprocess

    def noted(*arguments: Any) -> Any:
        where.append(threading.current_thread() is threading.main_thread())
        return postprocess(*arguments)

    monkeypatch.setattr(worker.task, "postprocess", noted)
    assert len(await worker.ask({"texts": texts})) == len(texts)
    assert where == [is_on_loop]


def test_candidates_are_answers():
    kinds: list[Any] = [FillMask, QuestionAnswering]
    for kind in kinds:
        request = Request([], True, {"top_k": 100, "length": 16, "max_answer_len": 15})
        assert kind.answers_in(object.__new__(kind), request, 2) == 200


@pytest.mark.parametrize(
    ("length", "longest", "is_on_loop"),
    [(384, 15, True), (384, 30, True), (8192, 1, True), (8192, 15, False), (8192, 8192, False), (512, 512, False)],
)
async def test_long_windows_are_read_beside_the_loop(length: int, longest: int, is_on_loop: bool):
    """Each pair of a first and a last token may be an answer."""
    task: Any = object.__new__(QuestionAnswering)
    where = []

    class Long:
        """One window, for one answer."""

        is_quick = staticmethod(lambda request: True)
        answers_in = task.answers_in
        preprocess = staticmethod(lambda request: ["a row"])

        def parse(self, payload: Any) -> Request:
            return Request([], True, {"top_k": 1, "length": length, "max_answer_len": longest})

        def postprocess(self, request: Request, outputs: Any) -> Any:
            where.append(threading.current_thread() is threading.main_thread())
            return {}

    async def run(rows: Any, on_rows_done: Any) -> Any:
        return [{}]

    batcher: Any = SimpleNamespace(run=run)
    long: Any = Long()
    assert await Handler(long, batcher, dict).handle({"input": {}}) == {}
    assert where == [is_on_loop]


async def test_the_check_of_a_payload_is_timed(workers: Any, monkeypatch: pytest.MonkeyPatch):
    worker = workers["feature-extraction"]
    now = [0.0]
    monkeypatch.setattr("handler.handler.time", SimpleNamespace(perf_counter=lambda: now[0]))
    parse = worker.task.parse

    def slow(payload: Any) -> Any:
        now[0] += 1.5
        return parse(payload)

    monkeypatch.setattr(worker.task, "parse", slow)
    reply = await worker.ask({"text": "a", "timings": True})
    assert reply["timings_ms"] == {"prepare": 1500.0, "engine": 0.0}


class Own:
    """A task of one's own in its smallest form, which does not say what is quick."""

    def __init__(self) -> None:
        self.was_on_loop: list[bool] = []

    def parse(self, payload: Any) -> Any:
        return payload

    def preprocess(self, request: Any) -> list[Row]:
        self.was_on_loop.append(threading.current_thread() is threading.main_thread())
        return [Row({}, 1)]

    def postprocess(self, request: Any, outputs: Any) -> Any:
        return request["reply"]


@pytest.mark.parametrize(("length", "is_on_loop"), [(3000, True), (5000, False)])
async def test_a_large_payload_is_prepared_beside_the_loop_whatever_the_task_says(length: int, is_on_loop: bool):
    task = Own()
    handler = Handler(cast("Task", task), Passage(Stats()), dict)
    assert await handler.handle({"input": {"texts": ["a" * (length // 2)] * 2, "reply": "fine"}}) == "fine"
    assert task.was_on_loop == [is_on_loop]


@pytest.mark.parametrize("reply", [[1, 2], "text", {"a": 1}], ids=str)
async def test_a_reply_that_is_no_object_is_as_it_is_without_timings(reply: Any):
    found = await Handler(cast("Task", Own()), Passage(Stats()), dict).handle(
        {"input": {"reply": reply, "timings": True}}
    )
    assert found == (reply if not isinstance(reply, dict) else {**reply, "timings_ms": found["timings_ms"]})
