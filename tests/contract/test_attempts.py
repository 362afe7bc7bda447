"""Jobs that are handed out again, or stopped, while an attempt at them is under way: step by step, in every order.

The job loop, its attempts and what decides about posts are the worker's own; RunPod's side is this file's.
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from handler.attempts import Attempt, Ended
from handler.job_loop import JobLoop
from handler.protocol import sdk as sdk_module
from handler.protocol.transport import Results
from tests.loops import bodies

OK, REFUSED, BAD, LOST = 200, 401, 400, 500
Replies = asyncio.Future[int]


class Platform:
    """Hands out the job `j`, and learns of nothing but by steps of the test."""

    def __init__(self) -> None:
        self.handed: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.stops: asyncio.Queue[list[str]] = asyncio.Queue()
        self.stops_reply: Any = None
        """What the stops came with, where that matters."""
        self.runs: list[asyncio.Future[Any]] = []
        self.posts: list[tuple[Any, Replies]] = []
        """Bodies, and what decides about each."""
        self.loop: JobLoop

    async def get_job(self, session: object, count: int) -> list[Any]:
        return [await self.handed.get()]

    async def get_stop_signals(self, session: Any) -> list[str]:
        found = await self.stops.get()
        session.reply = self.stops_reply
        return found

    async def handle(self, job: dict[str, Any]) -> Any:
        self.runs.append(asyncio.get_running_loop().create_future())
        return await self.runs[-1]

    async def post_once(self, url: str, body: bytes, headers: str, limit_s: float) -> int:
        self.posts.append((json.loads(body), asyncio.get_running_loop().create_future()))
        return await self.posts[-1][1]

    # Steps

    async def hand_out(self) -> None:
        self.handed.put_nowait({"id": "j", "input": 1})
        await settled()

    async def stop(self, *job_ids: str) -> None:
        self.stops.put_nowait(list(job_ids) or ["j"])
        await settled()

    async def end(self, output: Any = "right") -> None:
        """Let the handler return."""
        self.runs[-1].set_result(output)
        await settled()

    async def reply(self, *statuses: int) -> None:
        for status in statuses:
            self.posts[-1][1].set_result(status)
            await settled()

    @property
    def said(self) -> list[Any]:
        return [body.get("output", body) for body, _ in self.posts]


async def settled() -> None:
    for _ in range(12):
        await asyncio.sleep(0)


@asynccontextmanager
async def serving(
    handler: Callable[[dict[str, Any]], Any] | None = None, concurrency: int = 2, **options: Any
) -> AsyncIterator[Platform]:
    platform = Platform()
    with pytest.MonkeyPatch.context() as patch:
        for name in (
            "protocol.transport._FIRST_PAUSE_S",
            "protocol.transport._REFUSED_PAUSE_S",
            "job_loop._FIRST_SIGNALS_S",
        ):
            patch.setattr(f"handler.{name}", 0.0)
        patch.setattr("handler.job_loop._QUICK_POLLS", 1000)  # here they bring what is handed out again
        patch.setattr(Results, "_post_once", lambda self, *arguments: platform.post_once(*arguments))
        patch.setattr(Results, "open_ahead", lambda self: None)
        loaded = sdk_module.load()
        loaded.progress.clear()
        sdk = replace(loaded, get_job=platform.get_job, get_stop_signals=platform.get_stop_signals)
        handler = handler or platform.handle
        platform.loop = JobLoop(sdk, bodies(handler), concurrency=concurrency, **options)
        running = asyncio.create_task(platform.loop.run())
        await settled()
        yield platform
        platform.loop.stop()
        await asyncio.wait_for(running, 5)
        assert not loaded.progress.get_job_count()


async def test_a_job_that_is_handed_out_again_is_answered_by_the_attempt_that_runs():
    async with serving() as platform:
        for _ in range(3):
            await platform.hand_out()
        await platform.end()
        await platform.reply(LOST, OK)
        assert (len(platform.runs), platform.said) == (1, ["right"] * 2)
        assert platform.loop.counts.report() == {"jobs_done": 1, "jobs_failed": 0}


async def test_a_stop_signal_that_comes_behind_the_retry_costs_no_answer():
    async with serving() as platform:
        await platform.hand_out()
        await platform.hand_out()
        await platform.stop()
        assert [run.cancelled() for run in platform.runs] == [True, False]
        await platform.end()
        await platform.reply(OK)
        assert (len(platform.runs), platform.said) == (2, ["right"])
        assert platform.loop.counts.report() == {"jobs_done": 1, "jobs_failed": 0}


async def test_a_poll_for_stop_signals_that_brings_no_answer_is_not_the_last():
    """A gateway's page instead of RunPod's words, which the SDK takes for no signals."""
    async with serving() as platform:
        await platform.hand_out()
        platform.stops_reply = SimpleNamespace(status=200, was_read=True, unreadable="it begins with <html>")
        platform.stops.put_nowait([])
        await platform.stop()
        async with asyncio.timeout(10):
            await asyncio.wait(platform.runs)
        assert platform.runs[0].cancelled()
        assert platform.said == []


@pytest.mark.parametrize("signal", ["none", "before", "after"])
async def test_a_job_that_is_handed_out_again_while_its_answer_is_on_its_way_is_answered_anew(signal: str):
    """Whether RunPod had handed it out before it had the answer, nobody knows."""
    async with serving() as platform:
        await platform.hand_out()
        await platform.end("of the first")
        if signal == "before":
            await platform.stop()
        await platform.hand_out()
        if signal == "after":
            await platform.stop()
        await platform.reply(OK)
        await platform.end()
        await platform.reply(OK)
        assert platform.said == ["of the first", "right"]


async def test_an_answer_that_is_sent_again_after_the_second_hand_out_is_that_ones():
    async with serving() as platform:
        await platform.hand_out()
        await platform.end()
        await platform.stop()
        await platform.hand_out()
        await platform.reply(LOST, OK)
        assert (len(platform.runs), platform.said) == (1, ["right"] * 2)


@pytest.mark.parametrize("statuses", [[REFUSED] * 3, [BAD] * 3, [413]], ids=str)
@pytest.mark.parametrize("is_stopped", [False, True])
async def test_a_refused_answer_of_the_first_attempt_is_not_that_of_the_second(statuses: list[int], is_stopped: bool):
    """Nor is an error that would stand for it."""
    async with serving() as platform:
        await platform.hand_out()
        await platform.end("of the first")
        await platform.hand_out()
        if is_stopped:
            await platform.stop()
        await platform.reply(*statuses)
        assert platform.said == ["of the first"] * len(statuses)
        await platform.end()
        await platform.reply(OK)
        assert platform.said[len(statuses) :] == ["right"]
        assert platform.loop.counts.report() == {"jobs_done": 1, "jobs_failed": 0}


async def test_a_substitute_is_not_repeated_once_the_job_is_handed_out_again():
    async with serving() as platform:
        await platform.hand_out()
        await platform.end("of the first")
        await platform.reply(413)
        assert "RunPod refused the result" in platform.said[-1]["error"]
        await platform.hand_out()
        await platform.reply(LOST)
        await platform.end()
        await platform.reply(OK)
        assert len(platform.said) == 3
        assert platform.said[-1] == "right"


async def test_nothing_stands_for_the_refused_answer_of_a_job_that_was_stopped():
    async with serving() as platform:
        await platform.hand_out()
        await platform.end()
        await platform.stop()
        await platform.reply(413)
        assert platform.said == ["right"]


async def test_a_stream_that_breaks_off_as_its_job_is_stopped_fails_no_other_attempt():
    """RunPod refuses its parts, and the signal is late."""
    parts = iter([["of the first"], ["right"]])

    async def handler(job: dict[str, Any]) -> AsyncIterator[str]:
        for part in next(parts):
            yield part

    async with serving(handler) as platform:
        await platform.hand_out()
        await platform.hand_out()
        await platform.reply(413)
        await platform.reply(OK, OK)
        assert platform.said == ["of the first", "right", ["right"]]


async def test_a_stream_whose_parts_were_taken_is_the_answer_though_its_job_is_handed_out_again():
    goes_on, seen = asyncio.Event(), []

    async def handler(job: dict[str, Any]) -> AsyncIterator[str]:
        seen.append(job)
        yield "a"
        yield "b"  # with which the first one is posted
        await goes_on.wait()

    async with serving(handler) as platform:
        await platform.hand_out()
        await platform.reply(OK)
        await platform.hand_out()
        goes_on.set()
        await settled()
        await platform.reply(OK, OK)
        assert platform.said == ["a", "b", ["a", "b"]]
    assert len(seen) == 1


async def test_the_last_of_several_hand_outs_counts_and_each_may_be_stopped():
    async with serving() as platform:
        await platform.hand_out()
        await platform.hand_out()
        await platform.stop()  # the first one, and the second attempt begins
        await platform.hand_out()
        await platform.stop()
        assert [run.cancelled() for run in platform.runs] == [True, True, False]
        await platform.stop()
        assert [run.cancelled() for run in platform.runs] == [True, True, True]
        assert platform.said == []
        await platform.hand_out()  # and nothing is left of it
        await platform.end()
        await platform.reply(OK)
        assert platform.said == ["right"]


@pytest.mark.parametrize("stops", [0, 1, 2, 3])
async def test_what_is_stopped_before_it_began_does_not_begin(stops: int):
    """While the first attempt, which was stopped, still ends; a signal that is repeated is about no other."""
    ending, ended = asyncio.Event(), asyncio.Event()
    seen = []

    async def handler(job: dict[str, Any]) -> str:
        seen.append(job)
        if len(seen) == 1:
            try:
                await asyncio.sleep(60)
            finally:
                ending.set()
                await ended.wait()
        return "right"

    async with serving(handler) as platform:
        await platform.hand_out()
        await platform.stop("j", "j")
        assert ending.is_set()
        await platform.hand_out()
        await platform.hand_out()
        for _ in range(stops):
            await platform.stop()
        ended.set()
        await settled()
        if stops < 2:
            await platform.reply(OK)
        assert platform.said == ["right"] * (stops < 2)


async def test_a_handler_that_goes_on_though_it_was_stopped_posts_nothing():
    async def handler(job: dict[str, Any]) -> Any:
        try:
            return await platform.handle(job)
        except asyncio.CancelledError:
            return {"error": "I was cancelled"}

    async with serving(handler) as platform:
        await platform.hand_out()
        await platform.hand_out()
        await platform.stop()
        await platform.end()
        await platform.reply(OK)
        assert platform.said == ["right"]


async def test_jobs_to_be_run_again_take_no_more_room_than_there_is():
    """The one whose answer is being sent would else be the second of the engine's."""
    async with serving(concurrency=1) as platform:
        await platform.hand_out()
        await platform.end("of the first")
        await platform.hand_out()
        platform.handed.put_nowait({"id": "other", "input": 1})
        await settled()
        await platform.reply(OK)
        assert len(platform.runs) == 2
        await platform.end()
        assert len(platform.runs) == 3
        await platform.reply(OK)
        await platform.end("other's")
        await platform.reply(OK)
    assert platform.said == ["of the first", "right", "other's"]


async def test_nor_where_they_were_handed_out_again_before_there_was_an_answer():
    async with serving() as platform:
        await platform.hand_out()
        await platform.hand_out()
        await platform.end("of the first")
        for name in ("second", "third"):
            platform.handed.put_nowait({"id": name, "input": 1})
        await settled()
        assert len(platform.runs) == 2
        await platform.reply(OK)
        assert len(platform.runs) == 3
        for run in platform.runs[1:]:
            run.set_result(1)
        await settled()
        for _, verdict in platform.posts[1:]:
            verdict.set_result(OK)


async def test_a_signal_that_is_later_than_the_end_of_its_attempt_costs_no_answer(capsys: pytest.CaptureFixture[str]):
    async with serving() as platform:
        await platform.hand_out()
        await platform.end("of the first")
        await platform.hand_out()
        await platform.reply(OK)
        await platform.stop()
        assert not platform.runs[1].cancelled()
        assert "INFO  | j | goes on: the stop signal may have been for it" in capsys.readouterr().out
        await platform.stop()
        assert platform.runs[1].cancelled()
    assert platform.said == ["of the first"]


@pytest.mark.parametrize("late", [True, False], ids=["late", "in time"])
@pytest.mark.parametrize("is_waiting", [True, False], ids=["while it is on its way", "after it has ended"])
async def test_a_signal_for_a_job_that_is_run_again_counts_unless_it_may_be_an_old_one(
    monkeypatch: pytest.MonkeyPatch, late: bool, is_waiting: bool
):
    """One that comes long after the hand-out, by a poll that was open all the time, is about that, and all before."""
    async with serving() as platform:
        await platform.hand_out()
        await platform.end("of the first")
        if not is_waiting:
            await platform.reply(OK)
        await platform.hand_out()
        if is_waiting:
            await platform.reply(OK)
        if not late:
            monkeypatch.setattr("handler.attempts._LATE_S", 0.0)
        await platform.stop()
        assert platform.runs[1].cancelled() != late
        if late:
            await platform.end()
            await platform.reply(OK)
    assert platform.said == ["of the first", "right"][: 1 + late]


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of the attempts and of the job loop, to be set."""
    now = [0.0]
    for module in ("attempts", "job_loop"):
        monkeypatch.setattr(f"handler.{module}.time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


@pytest.mark.parametrize(
    ("handed_at", "asked_at", "runs_again"),
    [(0.0, 0.0, False), (0.0, 4.0, True), (4.0, 0.0, True), (4.0, 4.0, True)],
)
def test_a_signal_may_be_an_old_one_for_5_s_after_its_poll_began_or_the_job_was_handed_out(
    now: list[float], handed_at: float, asked_at: float, runs_again: bool
):
    now[0] = -10.0
    attempt = Attempt("j")
    now[0] = handed_at
    attempt.hand_out_again({"id": "j"})
    now[0] = 6.0
    assert attempt.stop(asked_at)
    assert attempt.is_stopped
    assert (attempt.following() is not None) == runs_again


async def test_a_signal_is_as_old_as_the_poll_that_brings_it(now: list[float]):
    async with serving(concurrency=3) as platform:
        await platform.hand_out()
        platform.handed.put_nowait({"id": "other", "input": 1})
        await settled()
        await platform.hand_out()
        now[0] = 10.0
        await platform.stop("other")  # by a poll that began at 0; the next begins now
        await platform.stop()
        assert [run.cancelled() for run in platform.runs] == [True, True, False]
        await platform.hand_out()
        now[0] = 20.0
        await platform.stop()  # by a poll that waited for 10 s
        assert [run.cancelled() for run in platform.runs] == [True, True, True]
    assert platform.said == []


@pytest.mark.parametrize("answered", [False, True])
async def test_a_late_signal_costs_no_answer_however_long_signals_were_not_heard_of(now: list[float], answered: bool):
    """Where a poll in between was answered, it would have brought an old one."""
    async with serving() as platform:
        await platform.hand_out()
        await platform.end("of the first")
        await platform.reply(OK)
        now[0] = 60.0
        if answered:
            platform.loop._ended.answered(now[0])
        await platform.hand_out()
        await platform.stop()  # by the poll that began at 0
        assert platform.runs[1].cancelled() == answered
        if not answered:
            await platform.end()
            await platform.reply(OK)
    assert platform.said == ["of the first", "right"][: 2 - answered]


@pytest.mark.parametrize("says", ["nothing", "none", "an error"])
async def test_what_ended_is_remembered_until_a_later_poll_is_answered(now: list[float], says: str):
    """One that nobody answers is given up, which says nothing."""

    async def stop_signals() -> list[str] | None:
        if says == "an error":
            raise OSError
        return None if says == "nothing" else []

    async with serving() as platform:
        await platform.hand_out()
        await platform.end()
        await platform.reply(OK)
        now[0] = 6.0
        platform.loop._poll.stop_signals = stop_signals  # type: ignore[method-assign]  # what RunPod says
        following = asyncio.create_task(platform.loop._follow_stop_signals())
        await settled()
        assert list(platform.loop._ended._kept) == ([] if says == "none" else ["j"])
        following.cancel()


@pytest.mark.parametrize("drain_timeout_s", [5.0, 0.0])
async def test_a_job_that_is_to_run_again_does_so_while_the_worker_stops(drain_timeout_s: float):
    """Or is told to retry, when the time for that is over."""
    async with serving(drain_timeout_s=drain_timeout_s) as platform:
        await platform.hand_out()
        await platform.end("of the first")
        await platform.hand_out()
        platform.loop.stop()
        await settled()
        await platform.reply(REFUSED, REFUSED, REFUSED)
        if drain_timeout_s:
            await platform.end()
        else:
            await settled()
        await platform.reply(OK)
    told = "right" if drain_timeout_s else {"error": "overloaded, please retry: the worker is shutting down"}
    assert platform.said[3:] == [told]


async def test_a_job_that_is_to_run_again_is_known_to_the_heartbeat_all_the_time(monkeypatch: pytest.MonkeyPatch):
    async with serving() as platform:
        told: list[str | None] = []
        monkeypatch.setattr(
            sdk_module.load().progress, "_mirror", type("Mirror", (), {"set": staticmethod(told.append)})
        )
        await platform.hand_out()
        await platform.hand_out()
        await platform.stop()
        await platform.end()
        await platform.reply(OK)
        assert set(told[:-1]) == {"j"}
        assert told[-1] is None


async def test_a_worker_that_ends_before_an_answer_is_taken_begins_no_other_attempt(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("handler.job_loop._LAST_WORDS_S", 0.01)
    async with serving(drain_timeout_s=0.0) as platform:
        await platform.hand_out()
        await platform.end()
        await platform.hand_out()
        platform.loop.stop()
        await asyncio.sleep(0.05)
        await platform.reply(REFUSED, REFUSED, REFUSED)
        assert len(platform.runs) == 1


# Every order


class Chance(Platform):
    """What RunPod may do with a job: each step is drawn. It takes an answer to a job that it has handed out."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.draw = random.Random(seed)
        self.state = "queued"
        self.signals = 0
        """Stop signals that are on their way."""
        self.answers: list[Any] = []
        self.judged = 0

    def steps(self) -> list[Callable[[], Awaitable[None]]]:
        found: list[Callable[[], Awaitable[None]]] = []
        running = any(not run.done() for run in self.runs)
        found += [self.give] * (self.state == "queued")
        found += [self.cancel] * (self.state == "in progress")
        found += [self.retry] * (self.state == "cancelled") + [self.requeue] * (self.state == "in progress")
        found += [self.tell] * (self.signals > 0) + [self.end_one] * 2 * running
        found += [self.judge] * 2 * (self.judged < len(self.posts)) + [self.hear] * (
            self.judged == len(self.posts) > 0 and not self.posts[-1][1].done()
        )
        return found

    async def give(self) -> None:
        self.state = "in progress"
        await self.hand_out()

    async def cancel(self) -> None:
        self.state, self.signals = "cancelled", self.signals + 1

    async def retry(self) -> None:
        self.state = "queued"

    requeue = retry

    async def tell(self) -> None:
        self.signals -= 1
        await self.stop()

    async def judge(self) -> None:
        """The post arrives at RunPod."""
        self.verdict = self.draw.choice((OK, OK, LOST) if self.state == "in progress" else (OK, LOST, REFUSED, BAD))
        if self.verdict == OK and self.state == "in progress":
            self.state = "over"
            self.answers.append(self.posts[-1][0])
        self.judged = len(self.posts)

    async def hear(self) -> None:
        """Its reply arrives at the worker."""
        await self.reply(self.verdict)

    async def end_one(self) -> None:
        next(run for run in self.runs if not run.done()).set_result("right")
        await settled()


async def test_whatever_comes_when_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch):
    for seed in range(200):
        chance = Chance(seed)
        monkeypatch.setattr("tests.contract.test_attempts.Platform", lambda made=chance: made)
        async with serving():
            for _ in range(chance.draw.randrange(4, 30)):
                if steps := chance.steps():
                    await chance.draw.choice(steps)()
            calm = [chance.cancel, chance.retry, chance.requeue]
            while steps := [step for step in chance.steps() if step not in calm]:
                await chance.draw.choice(steps)()
            assert chance.state in ("over", "cancelled"), seed
            assert chance.answers in ([], [{"output": "right"}]), seed


def test_a_signal_is_news_once_for_each_hand_out():
    attempt = Attempt("j")
    assert [attempt.stop(), attempt.stop()] == [True, False]
    attempt.hand_out_again({"id": "j"})
    assert [attempt.stop(), attempt.stop()] == [True, False]
    assert attempt.following() is None


def test_what_ended_is_forgotten_when_a_poll_that_began_5_s_later_was_answered(
    now: list[float], monkeypatch: pytest.MonkeyPatch
):
    ended = Ended()
    for now[0], name in enumerate(("a", "b", "a", "c")):
        ended.add(Attempt(name))
    ended.answered(6.0)
    assert list(ended._kept) == ["b", "a", "c"]
    ended.answered(6.5)
    assert list(ended._kept) == ["a", "c"]
    monkeypatch.setattr("handler.attempts._MOST_KEPT", 2)
    ended.add(Attempt("d"))
    assert list(ended._kept) == ["c", "d"]
    ended.answered(100.0)
    assert list(ended._kept) == []
