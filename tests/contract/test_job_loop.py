"""The protocol, case by case: our loop with the SDK's own functions against the emulated endpoint."""

import asyncio
import gc
import os
import signal
import time
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.emulator import Emulator, Fault, JobRecord
from handler.job_loop import JobLoop
from handler.options import asks
from handler.protocol import sdk as sdk_module
from handler.protocol.sdk import Sdk
from handler.protocol.transport import Poll
from tests.loops import bodies, each, until

WORKER = "worker-1"
SHUTTING_DOWN = {"error": "overloaded, please retry: the worker is shutting down"}


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    async with Emulator(long_poll_s=2.0) as running:
        yield running


@pytest.fixture
def sdk(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Sdk:
    """The real SDK, whose addresses are read at import, pointed at this test's emulator."""
    loaded = sdk_module.load()
    from runpod.serverless.modules import rp_job

    env = emulator.worker_env(WORKER)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RUNPOD_LOG_LEVEL", "INFO")
    monkeypatch.delenv("RUNPOD_ENDPOINT_ID")
    monkeypatch.setattr(rp_job, "JOB_GET_URL", env["RUNPOD_WEBHOOK_GET_JOB"].replace("$ID", WORKER))
    monkeypatch.setattr(rp_job, "aiohttp", sdk_module._stand_ins()["aiohttp"])  # a worker has not the emulator's
    loaded.progress.clear()
    return replace(
        loaded,
        job_done_url=env["RUNPOD_WEBHOOK_POST_OUTPUT"].replace("$RUNPOD_POD_ID", WORKER),
        job_stream_url=env["RUNPOD_WEBHOOK_POST_STREAM"].replace("$RUNPOD_POD_ID", WORKER),
    )


@asynccontextmanager
async def serving(
    sdk: Sdk, handler: Callable[[dict[str, Any]], Any], concurrency: int = 4, **options: Any
) -> AsyncIterator[JobLoop]:
    """A running loop that is stopped at the end and must then end by itself."""
    loop = JobLoop(sdk, bodies(handler), concurrency=concurrency, **options)
    task = asyncio.create_task(loop.run())
    try:
        yield loop
    finally:
        with (
            pytest.MonkeyPatch.context() as patch
        ):  # else half a second of every test; what is about it has its own loop
            patch.setattr("handler.protocol.transport._SETTLE_S", 0.05)
            loop.stop()
            await asyncio.wait_for(task, 15)
        assert sdk.progress.get_job_count() == 0


async def echo(job: dict[str, Any]) -> Any:
    return {"echo": job["input"]}


def answered_once(record: JobRecord) -> bool:
    return len(record.answers) == 1


# What a handler returns or raises


async def test_an_answer_arrives(sdk: Sdk, emulator: Emulator):
    async with serving(sdk, echo):
        record = await emulator.wait(emulator.submit({"x": 1}))
    assert (record.status, record.output) == ("COMPLETED", {"echo": {"x": 1}})
    assert answered_once(record)


@pytest.mark.parametrize("error", ["no such thing", {"code": 7}])
async def test_a_body_with_an_error_fails_the_job(sdk: Sdk, emulator: Emulator, error: Any):
    async with serving(sdk, lambda job: {"error": error}):
        record = await emulator.wait(emulator.submit({"x": 1}))
    assert (record.status, record.error) == ("FAILED", error)
    assert answered_once(record)


@pytest.mark.parametrize("error", [RuntimeError("engine on fire"), TimeoutError("of something that it asked")])
@pytest.mark.parametrize("debug", [False, True])
async def test_an_exception_fails_the_job_with_a_traceback_where_that_is_wanted(
    sdk: Sdk, emulator: Emulator, capsys: pytest.CaptureFixture[str], error: Exception, debug: bool
):
    def handler(job: dict[str, Any]) -> Any:
        raise error

    async with serving(sdk, handler, debug=debug):
        record = await emulator.wait(emulator.submit({}))
    sentence, _, more = record.error.partition("\n")
    assert (record.status, sentence) == ("FAILED", f"worker fault: {type(error).__name__}: {error}")
    assert more.startswith("Traceback") == debug
    told = f"ERROR | {record.id} | the handler failed: RuntimeError: engine on fire"
    assert (told in capsys.readouterr().out) == isinstance(error, RuntimeError)


class PanicException(BaseException):
    """pyo3's is no Exception either."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PanicException("of Rust's"), "PanicException: of Rust's"),
        (asyncio.CancelledError(), "the handler ended as cancelled, but nobody has cancelled the job"),
    ],
)
async def test_whatever_a_handler_raises_is_answered_and_the_next_job_is_taken(
    sdk: Sdk, emulator: Emulator, error: BaseException, said: str
):
    async def handler(job: dict[str, Any]) -> Any:
        if job["input"] == "bad":
            raise error
        return 1

    async with serving(sdk, handler, 1):
        bad, good = emulator.submit("bad"), emulator.submit("good")
        assert (await emulator.wait(bad)).error == f"worker fault: {said}"
        assert (await emulator.wait(good)).output == 1


async def test_a_handler_that_gives_up_by_itself_as_the_worker_stops_has_its_job_retried(sdk: Sdk, emulator: Emulator):
    async def handler(job: dict[str, Any]) -> Any:
        loop.stop()
        raise asyncio.CancelledError

    async with serving(sdk, handler) as loop:
        record = await emulator.wait(emulator.submit({}))
    assert record.answers[0].body == SHUTTING_DOWN


@pytest.mark.parametrize("debug", [False, True])
async def test_a_job_that_takes_too_long_fails(sdk: Sdk, emulator: Emulator, debug: bool):
    async with serving(sdk, lambda job: asyncio.sleep(30), job_timeout_s=0.05, debug=debug):
        record = await emulator.wait(emulator.submit({}))
    assert record.error.startswith("worker fault: the job took longer than 0.05 s (JOB_TIMEOUT_S)")


async def test_refresh_worker_is_stripped_and_asks_for_a_new_pod(sdk: Sdk, emulator: Emulator):
    async with serving(sdk, lambda job: {"refresh_worker": True, "done": 1}):
        record = await emulator.wait(emulator.submit({}))
    assert [post.body for post in record.answers] == [{"output": {"done": 1}, "stopPod": True}]


async def test_a_generator_streams(sdk: Sdk, emulator: Emulator):
    async with serving(sdk, lambda job: each(*({"part": index} for index in range(3)))):
        record = await emulator.wait(emulator.submit({}))
    assert record.status == "COMPLETED"
    assert [chunk["part"] for chunk in record.chunks] == [0, 1, 2]
    (final,) = record.answers
    assert (final.is_stream, final.body) == (True, {"output": record.chunks})


async def test_bodies_that_are_encoded_already_are_posted_as_they_are(sdk: Sdk, emulator: Emulator):
    """Of a stream the last one is no part of it."""
    whole = b'{"output":{"whole":1}}'
    parts = [b'{"output":"a"}', b'{"output":"b"}', {"not": "encoded"}, b'{"output":"c"}', b'{"output":[],"error":"no"}']

    async with serving(sdk, lambda job: each(*parts) if job["input"] == "stream" else whole, 1):
        record = await emulator.wait(emulator.submit("stream", job_id="same"))
        assert record.chunks == ["a", "b", {"not": "encoded"}, "c"]
        # The platform hands the id out again, this time for another kind of answer.
        emulator.faults.add("job-take", Fault(body='[{"id": "same", "input": "whole"}]'))
        await emulator.wait(emulator.submit("whole"))
        while len(record.answers) < 2:
            await asyncio.sleep(0.01)
    assert [(post.body, post.is_stream) for post in record.answers] == [
        ({"output": [], "error": "no"}, True),
        ({"output": {"whole": 1}}, False),
    ]


END = b'{"output":[]}'


@pytest.mark.parametrize(
    ("streamed", "final"),
    [
        ([], {"output": []}),
        ([1], {"output": [1]}),
        (["12345678", {"stopPod": True}, b'{"output":[1]}', END], {"output": ["12345678", {"stopPod": True}, [1]]}),
        ([b'{"output":"12","stopPod":true}', b'{"output":3}', END], {"output": ["12", 3], "stopPod": True}),
        ([b'{"stopPod":true}', 3, END], {"output": [3], "stopPod": True}),
        (["1" * 40, 2], {"output": []}),
        (["1" * 20, "2" * 20, 3, END], {"output": []}),
        ([1, b'{"error":"no"}', b'{"output":2}', END], {"error": "no"}),
        ([b'{"output":{"whole":1}}'], {"output": {"whole": 1}}),
    ],
)
async def test_a_stream_ends_with_the_list_of_its_parts(
    sdk: Sdk, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, streamed: list[Any], final: dict[str, Any]
):
    """As the SDK has it with return_aggregate_stream; with an empty one where that is more than RunPod takes."""
    monkeypatch.setattr("handler.aggregate.LARGEST_REPLY", 70)
    async with serving(sdk, lambda job: each(*streamed)):
        record = await emulator.wait(emulator.submit({}))
    assert record.answers[0].body == final
    assert record.answers[0].is_stream == bool(record.chunks)


async def test_a_generator_that_yields_an_error_fails_the_job(sdk: Sdk, emulator: Emulator):
    async with serving(sdk, lambda job: each(1, {"error": "no more"}, 2)):
        record = await emulator.wait(emulator.submit({}))
    assert (record.status, record.error, record.chunks) == ("FAILED", "no more", [1])


# What the platform sends


@pytest.mark.parametrize("status", [204, 400, 500, 502])
async def test_polls_without_a_job_do_no_harm(
    sdk: Sdk, emulator: Emulator, capsys: pytest.CaptureFixture[str], status: int
):
    seen = []
    for route in ("job-take", "job-stop"):
        emulator.faults.add(route, Fault(status=status, body='{"id": "of what went wrong", "input": 2}'), times=2)
    async with serving(sdk, lambda job: seen.append(job["input"])):
        await emulator.wait(emulator.submit(1))
    assert seen == [1]
    failures = 2 if status >= 500 else 0
    assert capsys.readouterr().out.count("taking a job failed") == failures
    assert emulator.faults.pending("job-take") == 0


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("value", ["9" * 5000, "[" * 5000 + "]" * 5000], ids=["digits", "depth"])
async def test_a_job_that_python_cannot_read_takes_no_other_with_it(
    sdk: Sdk, emulator: Emulator, value: str, whole: bool
):
    """RunPod's gateway can, so that any caller may send it; what the SDK drops was handed out all the same."""
    bad = f'{{"input": {{"id": "no", "text": "\\"}}"}}, "a": {value}, "id": "bad"}}'
    body = f'[{{"id": "one", "input": 1}}, {bad}, {{"id": "two", "input": {{"id": [2]}}}}]' if whole else bad
    records = [emulator.submit(0, job_id=name) for name in (("one", "bad", "two") if whole else ("bad",))]
    emulator.faults.add("job-take", Fault(body=body, hang_up_after="after"))
    async with serving(sdk, echo):
        for record in records:
            await emulator.wait(record)
    outputs = {record.id: record.output for record in records}
    assert outputs == ({"one": {"echo": 1}, "bad": None, "two": {"echo": {"id": [2]}}} if whole else {"bad": None})
    (bad_record,) = [record for record in records if record.id == "bad"]
    assert bad_record.error.startswith("invalid input: the job cannot be read: it is nested too deeply")


@pytest.mark.parametrize("job_id", ["a/b?c=d&isStream=true#e", "50%", "a b\r\nX: y", "käse", "x" * 3000])
async def test_odd_ids_are_answered(sdk: Sdk, emulator: Emulator, job_id: str):
    async with serving(sdk, echo, result_timeout_s=1.0):
        record = await emulator.wait(emulator.submit({"x": 1}, job_id=job_id))
    assert record.output == {"echo": {"x": 1}}
    assert not emulator.rejected


@pytest.mark.parametrize("job_id", [".", "..", ""])
async def test_an_id_that_is_another_path_is_told(sdk: Sdk, emulator: Emulator, capsys, job_id: str):
    emulator.faults.add("job-take", Fault(body=f'[{{"id": "{job_id}", "input": 1}}]'))
    async with serving(sdk, echo, result_timeout_s=1.0):
        await emulator.wait(emulator.submit({"x": 1}))
    said = capsys.readouterr().out
    assert "RunPod sent a job without an id, which nobody can answer" in said
    assert "sending a result failed" not in said


async def test_too_many_requests_pauses(sdk: Sdk, emulator: Emulator, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("handler.job_loop._BUSY_PAUSE_S", 0.2)
    emulator.faults.add("job-take", Fault(status=429))
    async with serving(sdk, echo):
        record = await emulator.wait(emulator.submit({"x": 1}))
    assert record.status == "COMPLETED"
    assert record.queue_ms >= 150


@pytest.mark.parametrize("body", [b"", b"not json", b"[1, 2]", b'[{"input": 1}]', b'"text"', b'{"input": 1}'])
async def test_garbage_instead_of_a_job_does_no_harm(
    sdk: Sdk, emulator: Emulator, body: bytes, capsys: pytest.CaptureFixture[str]
):
    emulator.faults.add("job-take", Fault(status=200, body=body), times=2)
    async with serving(sdk, echo):
        record = await emulator.wait(emulator.submit({"x": 1}))
    assert record.status == "COMPLETED"
    said = capsys.readouterr().out
    assert "AttributeError" not in said
    assert ("taking a job failed (ValueError: RunPod's reply to a take is not JSON" in said) is (body == b"not json")


@pytest.mark.parametrize("job_id", ["1", '"running"'], ids=["no id", "a job that runs"])
async def test_replies_without_a_job_to_run_are_asked_for_less_and_less(
    sdk: Sdk, emulator: Emulator, capsys: pytest.CaptureFixture[str], job_id: str
):
    release = asyncio.Event()
    emulator.submit({}, job_id="running")
    async with serving(sdk, lambda job: release.wait()):
        while not sdk.progress.get_job_count():
            await asyncio.sleep(0.01)
        emulator.faults.add("job-take", Fault(body=f'[{{"id": {job_id}, "input": 1}}]'), times=None)
        emulator.submit("another, which ends the poll that waits")
        await asyncio.sleep(0.5)
        release.set()
    assert 2 < emulator.faults.struck["job-take"] < 15
    assert ("sent a job again that is running" if job_id == '"running"' else "without an id") in capsys.readouterr().out


@pytest.mark.parametrize("concurrency", [1, 4])
async def test_a_job_without_input_is_answered(sdk: Sdk, emulator: Emulator, concurrency: int):
    record = emulator.submit({"x": 1})
    body = f'{{"id": "{record.id}"}}' if concurrency == 1 else f'[{{"id": "{record.id}"}}]'
    emulator.faults.add("job-take", Fault(status=200, body=body, hang_up_after="after"))
    async with serving(sdk, echo, concurrency):
        await emulator.wait(record)
    assert (record.status, record.error) == ("FAILED", "invalid input: the job has no `input`")


async def test_a_byte_order_mark_costs_no_job(sdk: Sdk, emulator: Emulator):
    record = emulator.submit({"x": 1})
    body = f'\ufeff[{{"id": "{record.id}", "input": 1}}]'.encode()
    emulator.faults.add("job-take", Fault(status=200, body=body, hang_up_after="after"))
    async with serving(sdk, echo):
        assert (await emulator.wait(record)).output == {"echo": 1}


@pytest.mark.parametrize("concurrency", [1, 4])
async def test_a_reply_that_is_not_utf8_is_read_as_far_as_it_is(sdk: Sdk, emulator: Emulator, concurrency: int):
    odd, plain = emulator.submit({"x": 1}), emulator.submit({"x": 2})
    jobs = f'{{"id": "{odd.id}", "input": "\xff"}}'
    if concurrency > 1:
        jobs = f'[{jobs}, {{"id": "{plain.id}", "input": 2}}]'
    emulator.faults.add("job-take", Fault(status=200, body=jobs.encode("latin-1"), hang_up_after="after"))
    async with serving(sdk, echo, concurrency):
        assert (await emulator.wait(odd)).output == {"echo": "\ufffd"}
        await emulator.wait(plain)


async def test_many_jobs_run_at_once_but_no_more_than_allowed(sdk: Sdk, emulator: Emulator):
    running, most = 0, 0

    async def handler(job: dict[str, Any]) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return job["input"]

    records = [emulator.submit({"n": index}) for index in range(50)]
    async with serving(sdk, handler, concurrency=8):
        for record in records:
            await emulator.wait(record)
    assert most == 8
    assert [record.output["n"] for record in records] == list(range(50))
    assert all(answered_once(record) for record in records)


async def test_a_busy_worker_makes_no_pause(sdk: Sdk, emulator: Emulator, monkeypatch: pytest.MonkeyPatch):
    """Polls that bring jobs at once are none that the platform does not hold."""
    pauses: list[float] = []

    async def pause(self: JobLoop, seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(JobLoop, "_pause", pause)
    records = [emulator.submit({"n": index}) for index in range(20)]
    async with serving(sdk, echo, 2):
        for record in records:
            await emulator.wait(record)
    assert pauses == []


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_jobs_whose_results_are_being_sent_make_room_for_as_many_others_and_no_more(
    sdk: Sdk, emulator: Emulator, concurrency: int
):
    async def handler(job: dict[str, Any]) -> Any:
        await asyncio.sleep(0.02)
        return job["input"]

    records = [emulator.submit({"n": index}) for index in range(3 * concurrency)]
    emulator.faults.add("job-done", Fault(status=500), times=None)
    async with serving(sdk, handler, concurrency):
        while sum(record.taken is not None for record in records) < 2 * concurrency:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert sum(record.taken is not None for record in records) == 2 * concurrency
        emulator.faults.clear()
        for record in records:
            await emulator.wait(record, 5)


async def test_the_first_take_is_told_once(sdk: Sdk, emulator: Emulator):
    told: list[int] = []
    async with serving(sdk, echo, on_first_take=lambda: told.append(emulator.waiting_polls)):
        for index in range(3):
            await emulator.wait(emulator.submit({"n": index}))
    assert told == [0]


class Job(dict[str, Any]):
    """Whose end can be seen."""


async def test_a_job_that_is_answered_is_held_by_nobody_while_the_next_poll_waits(sdk: Sdk, emulator: Emulator):
    polls: list[int] = []
    taken: list[weakref.ref[Job]] = []

    async def get_job(session: Any, count: int) -> list[Job]:
        polls.append(count)
        jobs = [Job(job) for job in await sdk.get_job(session, count) or ()]
        taken.extend(map(weakref.ref, jobs))
        return jobs

    async with serving(replace(sdk, get_job=get_job), echo):
        await emulator.wait(emulator.submit("x"))
        await until(lambda: not sdk.progress.get_job_count())
        await asyncio.sleep(0.01)
        assert [one() for one in taken] == [None]
        assert polls == [4, 4]


async def test_a_job_is_with_the_handler_before_the_next_poll_is_written(sdk: Sdk, emulator: Emulator):
    seen, at = [], []
    polled = asyncio.Event()

    async def get_job(*args: Any) -> Any:
        seen.append("poll")
        at.append(time.monotonic())
        if len(seen) > 1:
            polled.set()
        return await sdk.get_job(*args)

    async def handler(job: dict[str, Any]) -> Any:
        seen.append("handler")
        at.append(time.monotonic())
        return {}

    async with serving(replace(sdk, get_job=get_job), handler):
        await emulator.wait(emulator.submit({}))
        await asyncio.wait_for(polled.wait(), 5)
    assert seen[:3] == ["poll", "handler", "poll"]
    assert at[2] - at[1] < 0.9


async def test_a_job_handed_out_twice_at_once_is_answered_once(
    sdk: Sdk, emulator: Emulator, capsys: pytest.CaptureFixture[str]
):
    handed_out = asyncio.Event()

    async def handler(job: dict[str, Any]) -> Any:
        await handed_out.wait()
        return 1

    record = emulator.submit({"x": 1})
    async with serving(sdk, handler):
        while record.taken is None:
            await asyncio.sleep(0.01)
        emulator.faults.add("job-take", Fault(status=200, body=f'[{{"id": "{record.id}", "input": 1}}]'))
        emulator.submit({"y": 1})
        await until(lambda: "RunPod sent a job again that is running" in capsys.readouterr().out)
        handed_out.set()
        await emulator.wait(record)
    assert answered_once(record)


@pytest.mark.parametrize(
    ("ends_after_s", "drain_timeout_s", "posted"),
    [(0.0, 20.0, {"output": "again"}), (0.5, 20.0, {"output": "again"}), (30.0, 0.0, SHUTTING_DOWN)],
    ids=["before the worker stops", "while it stops", "when its time is over"],
)
async def test_a_job_that_is_tried_again_while_its_first_attempt_stops_is_answered(
    sdk: Sdk, emulator: Emulator, ends_after_s: float, drain_timeout_s: float, posted: dict[str, Any]
):
    """RunPod's /retry keeps the id, and a handler may take its time to stop."""
    stopping, handed_out, seen = asyncio.Event(), asyncio.Event(), []

    async def handler(job: dict[str, Any]) -> Any:
        seen.append(job["input"])
        if seen == ["first"]:
            try:
                await asyncio.sleep(30)
            finally:
                stopping.set()
                await handed_out.wait()
                await asyncio.sleep(ends_after_s)
        await asyncio.sleep(0.1)
        return job["input"]

    async with serving(sdk, handler, drain_timeout_s=drain_timeout_s):
        record = emulator.submit("first")
        while record.taken is None:
            await asyncio.sleep(0.01)
        emulator.cancel(record)
        await asyncio.wait_for(stopping.wait(), 10)
        emulator.faults.add("job-take", Fault(body=f'[{{"id": "{record.id}", "input": "again"}}]'))
        emulator.submit("another, which ends the poll that waits")
        while emulator.faults.pending("job-take"):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # the reply is on its way
        handed_out.set()
        if not ends_after_s:
            while "again" not in seen:
                await asyncio.sleep(0.01)
    assert [post.body for post in record.answers] == [posted]


async def test_a_cancelled_job_is_stopped_and_nothing_is_posted(
    sdk: Sdk, emulator: Emulator, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    cancelled = asyncio.Event()

    async def handler(job: dict[str, Any]) -> Any:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with serving(sdk, handler):
        record = emulator.submit({"x": 1})
        while record.taken is None:
            await asyncio.sleep(0.01)
        emulator.cancel(record)
        await asyncio.wait_for(cancelled.wait(), 10)
    assert record.status == "CANCELLED"
    assert record.posts == []
    out = capsys.readouterr().out
    assert f"INFO  | {record.id} | stopped by the platform" in out
    assert "ERROR" not in out
    gc.collect()  # a task that failed and that nobody looks at is told by asyncio
    assert not caplog.records


async def test_a_cancelled_stream_is_closed(sdk: Sdk, emulator: Emulator):
    """Or the engine would work on, for nobody."""
    closed = asyncio.Event()

    async def handler(job: dict[str, Any]) -> AsyncIterator[Any]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    emulator.faults.choose = lambda route, request: Fault(delay_s=20) if route == "job-stream" else None
    async with serving(sdk, handler):
        record = emulator.submit({})
        while not emulator.faults.struck["job-stream"]:
            await asyncio.sleep(0.01)
        emulator.cancel(record)
        await asyncio.wait_for(closed.wait(), 3)


# Results


async def test_jobs_are_counted_by_what_runpod_got(sdk: Sdk, emulator: Emulator):
    """Before it has that: who sees the last answer finds it counted. Not so what asks for that, or was stopped."""
    stopped = asyncio.Event()

    async def handler(job: dict[str, Any]) -> Any:
        if job["input"] == "late":
            try:
                await asyncio.sleep(30)
            finally:
                stopped.set()
        return {"error": "no"} if job["input"] == "error" else 1

    async with serving(sdk, lambda job: each(1, 2) if job["input"] == "parts" else handler(job), 1) as loop:
        for payload in (1, "error", {"health": True}, "parts"):
            await emulator.wait(emulator.submit(payload))
        assert loop.counts.report() == {"jobs_done": 2, "jobs_failed": 1}
        emulator.faults.add("job-take", Fault(body='[{"id": "none"}]', hang_up_after="after"))
        emulator.submit(1, job_id="none")
        await emulator.wait("none")
        emulator.faults.add("job-stream", Fault(status=413))
        await emulator.wait(emulator.submit("parts"))
        assert loop.counts.report() == {"jobs_done": 2, "jobs_failed": 3}
        emulator.faults.add("job-done", Fault(status=413))
        assert (await emulator.wait(emulator.submit(1))).error is not None
        late = emulator.submit("late")
        while late.taken is None:
            await asyncio.sleep(0.01)
        emulator.cancel(late)
        await asyncio.wait_for(stopped.wait(), 10)
        assert loop.counts.report() == {"jobs_done": 2, "jobs_failed": 4}
    async with serving(sdk, handler, job_timeout_s=0.05) as loop:
        await emulator.wait(emulator.submit("late"))
        assert loop.counts.report() == {"jobs_done": 0, "jobs_failed": 1}


async def test_a_stream_without_an_address_fails_at_once(sdk: Sdk, emulator: Emulator):
    """What the SDK puts in the place of RUNPOD_WEBHOOK_POST_STREAM where that is missing."""

    async with serving(replace(sdk, job_stream_url="JOB_STREAM_URL"), lambda job: each(1)):
        record = await emulator.wait(emulator.submit({}), 5)
    assert "a part of the stream (0.0 MB) did not arrive" in record.error


async def test_results_carry_their_own_request_id(sdk: Sdk, emulator: Emulator):
    seen: dict[str, str] = {}

    def look(route: str, request: Any) -> None:
        if route == "job-done":
            seen[request.match_info.get("job_id", request.path.rpartition("/")[2])] = request.headers["X-Request-ID"]

    emulator.faults.choose = look
    records = [emulator.submit({"n": index}) for index in range(20)]
    async with serving(sdk, echo, concurrency=20):
        for record in records:
            await emulator.wait(record)
    assert seen == {record.id: record.id for record in records}


# Stopping


async def test_sigterm_while_idle_takes_no_further_job(sdk: Sdk, emulator: Emulator):
    loop = JobLoop(sdk, bodies(echo), concurrency=4)
    task = asyncio.create_task(loop.run())
    while not emulator.waiting_polls:
        await asyncio.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(task, 10)
    record = emulator.submit({"x": 1})
    await asyncio.sleep(0.1)
    assert record.status == "IN_QUEUE"


@pytest.mark.parametrize("concurrency", [1, 4])
async def test_a_job_handed_over_in_the_instant_of_sigterm_is_answered(sdk: Sdk, emulator: Emulator, concurrency: int):
    """However the two fall together, a job is either still in the queue or answered."""
    outcomes = []
    for attempt in range(8):
        loop = JobLoop(sdk, bodies(echo), concurrency=concurrency)
        task = asyncio.create_task(loop.run())
        while not emulator.waiting_polls:
            await asyncio.sleep(0.001)
        record = emulator.submit({"n": attempt})
        for _ in range(attempt):
            await asyncio.sleep(0)
        loop.stop()
        await asyncio.wait_for(task, 10)
        outcomes.append(record.status)
        assert record.status in ("IN_QUEUE", "COMPLETED")
        emulator.cancel(record)
    assert "COMPLETED" in outcomes


class SlowLine:
    """Forwards TCP, and holds back the second half of the first reply that brings a job."""

    def __init__(self, target: str, seconds: float) -> None:
        self._host, self._port = target.removeprefix("http://").split(":")
        self._seconds = seconds
        self.half_sent = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self._host, self._port)
        await asyncio.gather(self._pump(reader, back), self._pump(there, writer))

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            if b'"input"' in data and not self.half_sent.is_set():
                sink.write(data[: -len(data) // 4])
                self.half_sent.set()
                await asyncio.sleep(self._seconds)
                data = data[-len(data) // 4 :]
            sink.write(data)
        sink.close()


async def test_a_job_that_is_on_its_way_when_the_worker_stops_is_answered(
    sdk: Sdk, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
):
    """A batch of megabytes takes longer than the worker waits for a reply to begin."""
    from runpod.serverless.modules import rp_job

    line = SlowLine(emulator.url, 1.8)
    server = await asyncio.start_server(line, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    monkeypatch.setattr(rp_job, "JOB_GET_URL", rp_job.JOB_GET_URL.replace(emulator.url, url))
    record = emulator.submit({"x": 1})
    async with serving(sdk, echo) as loop:
        await line.half_sent.wait()
        loop.stop()
    server.close()
    assert record.output == {"echo": {"x": 1}}


async def test_sigterm_while_busy_finishes_what_runs(sdk: Sdk, emulator: Emulator):
    async def slow(job: dict[str, Any]) -> Any:
        await asyncio.sleep(0.3)
        return job["input"]

    records = [emulator.submit({"n": index}) for index in range(4)]
    loop = JobLoop(sdk, bodies(slow), concurrency=2)
    task = asyncio.create_task(loop.run())
    while sum(record.taken is not None for record in records) < 2:
        await asyncio.sleep(0.01)
    loop.stop()
    await asyncio.wait_for(task, 10)
    assert sorted(record.status for record in records) == ["COMPLETED", "COMPLETED", "IN_QUEUE", "IN_QUEUE"]


@pytest.mark.parametrize(("drain_timeout_s", "concurrency"), [(0.0, 4), (0.2, 1)], ids=["polling", "full"])
async def test_what_does_not_finish_in_time_is_answered_with_a_retry(
    sdk: Sdk,
    emulator: Emulator,
    capsys: pytest.CaptureFixture[str],
    drain_timeout_s: float,
    concurrency: int,
):
    async def endless(job: dict[str, Any]) -> Any:
        await asyncio.sleep(60)

    async with serving(sdk, endless, concurrency, drain_timeout_s=drain_timeout_s):
        record = emulator.submit({"x": 1})
        while record.taken is None:
            await asyncio.sleep(0.01)
    assert [post.body for post in record.answers] == [SHUTTING_DOWN]
    assert "INFO  | stopping; 1 jobs still run" in capsys.readouterr().out


async def test_what_is_given_up_may_clean_up_while_others_end(sdk: Sdk, emulator: Emulator):
    cleaned_up = []

    async def handler(job: dict[str, Any]) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(job["input"])
            cleaned_up.append(job["input"])

    async with serving(sdk, handler, drain_timeout_s=0.0):
        records = [emulator.submit(seconds) for seconds in (0, 0.3)]
        while sdk.progress.get_job_count() < 2:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0)
    assert cleaned_up == [0, 0.3]
    assert [record.answers[0].body for record in records] == [SHUTTING_DOWN] * 2


async def test_a_result_that_is_being_sent_when_the_time_is_over_still_arrives(sdk: Sdk, emulator: Emulator):
    emulator.faults.add("job-done", Fault(status=500), times=2)
    async with serving(sdk, echo, drain_timeout_s=0.0):
        record = emulator.submit({"x": 1})
        while emulator.faults.pending("job-done") == 2:
            await asyncio.sleep(0.01)
    assert record.status == "COMPLETED"


async def test_a_result_that_nobody_takes_does_not_keep_the_worker(
    sdk: Sdk, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("handler.job_loop._LAST_WORDS_S", 0.1)
    monkeypatch.setattr("handler.protocol.transport._SETTLE_S", 0.05)
    emulator.faults.add("job-done", Fault(status=500), times=None)
    record = emulator.submit({"x": 1})
    loop = JobLoop(sdk, bodies(echo), concurrency=1, drain_timeout_s=0.0)
    task = asyncio.create_task(loop.run())
    while not emulator.faults.struck["job-done"]:
        await asyncio.sleep(0.01)
    loop.stop()
    await asyncio.wait_for(task, 10)
    assert f"ERROR | {record.id} | the worker ends before RunPod has taken the result" in capsys.readouterr().out
    for left in asyncio.all_tasks():  # as asyncio's Runner does
        if left.get_name() == record.id:
            left.cancel()


# Progress


async def test_progress_arrives_before_the_result(sdk: Sdk, emulator: Emulator):
    """The stock SDK posts progress beside the result, which it may then overtake: the job would run on for ever."""
    loop: JobLoop

    async def handler(job: dict[str, Any]) -> str:
        loop.report(job["id"], "half")
        await asyncio.sleep(0.05)
        return "done"

    emulator.faults.add("job-done", Fault(delay_s=0.3), 1)  # longer than the job takes
    async with serving(sdk, handler) as loop:
        record = await emulator.wait(emulator.submit({}))
    assert (record.status, record.output, record.progress) == ("COMPLETED", "done", ["half"])
    assert answered_once(record)


async def test_progress_is_not_piled_up(sdk: Sdk, emulator: Emulator):
    loop: JobLoop

    async def handler(job: dict[str, Any]) -> str:
        loop.report(job["id"], 0)
        await asyncio.sleep(0.05)  # it is on its way, and takes longer
        for step in range(1, 20):
            loop.report(job["id"], step)
        while len(emulator.jobs[job["id"]].progress) < 2:
            await asyncio.sleep(0.01)
        return "done"

    emulator.faults.add("job-done", Fault(delay_s=0.3), 1)
    async with serving(sdk, handler) as loop:
        record = await emulator.wait(emulator.submit({}))
    assert record.progress == [0, 19]


async def test_progress_is_told_as_often_as_there_is_some_and_not_beside_the_result(sdk: Sdk, emulator: Emulator):
    loop: JobLoop

    async def handler(job: dict[str, Any]) -> str:
        for step in range(3):
            loop.report(job["id"], step)
            while len(emulator.jobs[job["id"]].progress) <= step:
                await asyncio.sleep(0.01)
        emulator.faults.add("job-done", Fault(delay_s=0.2))
        loop.report(job["id"], "on its way")
        await asyncio.sleep(0.05)
        loop.report(job["id"], "overtaken by the result")
        return "done"

    async with serving(sdk, handler) as loop:
        record = await emulator.wait(emulator.submit({}))
    assert (record.progress, record.output) == ([0, 1, 2, "on its way"], "done")
    assert not any(post.is_stream for post in record.posts)


async def test_progress_of_a_job_that_is_over_is_dropped(sdk: Sdk, emulator: Emulator):
    posts = []
    emulator.faults.choose = lambda route, request: posts.append(route)
    async with serving(sdk, echo) as loop:
        record = await emulator.wait(emulator.submit({}))
        loop.report(record.id, "late")
        await asyncio.sleep(0.1)
    assert posts.count("job-done") == 1


async def test_a_result_is_sent_though_its_progress_was_refused(sdk: Sdk, emulator: Emulator):
    loop: JobLoop

    async def handler(job: dict[str, Any]) -> str:
        loop.report(job["id"], "half")
        await asyncio.sleep(0.05)
        return "done"

    emulator.faults.add("job-done", Fault(status=500, hang_up_after="before"), 1)
    async with serving(sdk, handler) as loop:
        record = await emulator.wait(emulator.submit({}))
    assert (record.status, record.output, record.progress) == ("COMPLETED", "done", [])


@pytest.mark.parametrize(
    ("payload", "does"), [({"stream": True}, True), ({"stream": 1}, False), ({}, False), ([], False), (None, False)]
)
def test_an_option_is_asked_for_with_true(payload: Any, does: bool):
    assert asks({"id": "1", "input": payload}, "stream") is does
    assert not asks({"id": "1", "stream": True}, "stream")


async def test_a_poll_for_stop_signals_that_is_held_for_long_is_none(sdk: Sdk, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("handler.protocol.transport._POLL_TIMEOUT_S", 0.05)

    async def held(session: Any) -> None:
        await asyncio.Event().wait()

    async def late(session: Any) -> None:
        raise TimeoutError("of the connection")

    with closing(Poll(replace(sdk, get_stop_signals=held))) as poll:
        assert await poll.stop_signals() is None
    late_poll = closing(Poll(replace(sdk, get_stop_signals=late)))
    with late_poll as poll, pytest.raises(TimeoutError, match="of the connection"):
        await poll.stop_signals()


async def test_a_poll_for_stop_signals_that_ends_as_it_is_given_up_does_not_go_on(sdk: Sdk):
    """Else a worker that is told to stop as the platform goes away asks for stop signals until it is killed."""
    given_up = asyncio.Event()

    async def ends_now(session: Any) -> list[str]:
        if not given_up.is_set():
            given_up.set()
            following.cancel()
        return []

    async def follow() -> None:
        while True:
            await poll.stop_signals()
            await asyncio.sleep(0.01)

    poll = Poll(replace(sdk, get_stop_signals=ends_now))
    following = asyncio.create_task(follow())
    try:
        await asyncio.wait({following}, timeout=1)
        assert following.cancelled()
    finally:
        following.cancel()
        poll.close()
