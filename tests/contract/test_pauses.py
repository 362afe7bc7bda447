"""How long the job loop waits before it asks again, and after what. Its pauses are written down, and not slept."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from handler import job_loop
from handler.job_loop import JobLoop
from handler.protocol import sdk as sdk_module
from tests.loops import bodies


class Busy(Exception):
    """In the place of the SDK's, for status 429."""


def script(loop: Callable[[], JobLoop], outcomes: list[Any]) -> Callable[..., Any]:
    """A function of the SDK's that returns or raises each of `outcomes` in turn, and then stops the loop."""

    async def ask(*_: Any) -> Any:
        if not outcomes:
            loop().stop()
            await asyncio.Event().wait()
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome() if callable(outcome) else outcome

    return ask


async def test_a_take_that_fails_is_tried_again_ever_later_up_to_5_s(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pauses: list[float] = []

    async def pause(self: JobLoop, seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(JobLoop, "_pause", pause)
    lost = OSError("nobody there")
    outcomes = [*[lost] * 7, Busy(), lost, [], lost, lost, Busy(), [], lost]
    sdk = replace(sdk_module.load(), get_job=script(lambda: loop, outcomes), too_many_requests=Busy)
    loop = JobLoop(sdk, bodies(lambda job: None), concurrency=1)
    await asyncio.wait_for(loop.run(), 5)
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0, 0.1, 0.2, 5.0, 0.1]
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "WARN  | taking a job failed (OSError: nobody there); trying again in 0.1 s"
    assert len(told) == 11  # none of those that the platform wants


@pytest.mark.parametrize(
    ("asked", "beside", "expected"),
    [
        ("get_job", "get_stop_signals", [0.1, 0.2, 0.4, 0.1, 0.2, 0.1, 0.1]),
        ("get_stop_signals", "get_job", [1.0, 2.0, 4.0, 1.0, 2.0, 1.0, 1.0]),
    ],
)
async def test_a_poll_that_was_held_before_it_failed_is_asked_again_soon(
    monkeypatch: pytest.MonkeyPatch, asked: str, beside: str, expected: list[float]
):
    """As by a proxy that ends what is idle for a minute."""
    pauses: list[float] = []
    now = [0.0]

    async def pause(seconds: float) -> None:
        if seconds > job_loop._FIRST_SIGNALS_S:
            pauses.append(seconds)

    async def hold(*_: Any) -> Any:
        await asyncio.Event().wait()

    def cut_off(seconds: float) -> Callable[[], Any]:
        def fail() -> Any:
            now[0] += seconds
            raise OSError("it has ended")

        return fail

    monkeypatch.setattr(JobLoop, "_pause", lambda self, seconds: pause(seconds))
    monkeypatch.setattr(job_loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(job_loop, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": pause}))
    outcomes = [cut_off(seconds) for seconds in (0.0, 4.9, 0.0, 5.1, 0.0, 5.1, 60.0)]
    asks: dict[str, Any] = {asked: script(lambda: loop, outcomes), beside: hold}
    loop = JobLoop(replace(sdk_module.load(), **asks), bodies(lambda job: None), concurrency=1)
    await asyncio.wait_for(loop.run(), 5)
    assert pauses == expected


async def test_a_worker_that_stops_waits_for_no_pause(monkeypatch: pytest.MonkeyPatch):
    paused = asyncio.Event()

    async def fail(session: Any, count: int) -> None:
        paused.set()
        raise OSError("nobody there")

    monkeypatch.setattr(job_loop, "_FIRST_PAUSE_S", 60.0)
    sdk = replace(sdk_module.load(), get_job=fail)
    loop = JobLoop(sdk, bodies(lambda job: None), concurrency=1)
    running = asyncio.create_task(loop.run())
    await paused.wait()
    loop.stop()
    await asyncio.wait_for(running, 5)


async def test_a_worker_that_stops_gives_jobs_20_s_and_results_another_5_s(monkeypatch: pytest.MonkeyPatch):
    limits: list[float] = []

    def timeout(seconds: float) -> asyncio.Timeout:
        limits.append(seconds)
        return asyncio.timeout(seconds)

    monkeypatch.setattr(job_loop, "asyncio", SimpleNamespace(**{**vars(asyncio), "timeout": timeout}))
    sdk = replace(sdk_module.load(), get_job=script(lambda: loop, []))
    loop = JobLoop(sdk, bodies(lambda job: None), concurrency=1)
    await asyncio.wait_for(loop.run(), 5)
    assert limits == [20.0, 5.0]


async def test_polls_that_nobody_holds_are_asked_ever_later_up_to_half_a_second(monkeypatch: pytest.MonkeyPatch):
    pauses: list[float] = []

    async def pause(self: JobLoop, seconds: float) -> None:
        pauses.append(round(seconds, 9))

    now = [0.0]

    def held() -> list[Any]:
        now[0] += 0.03  # longer than a reply that was ready takes
        return []

    monkeypatch.setattr(JobLoop, "_pause", pause)
    monkeypatch.setattr(job_loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    outcomes = [*[[]] * 4, held, *[[]] * 15]
    sdk = replace(sdk_module.load(), get_job=script(lambda: loop, outcomes))
    loop = JobLoop(sdk, bodies(lambda job: None), concurrency=1)
    await asyncio.wait_for(loop.run(), 5)
    assert pauses == [0.05, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.5, 0.5, 0.5]


async def test_stop_signals_are_asked_for_behind_the_first_take_and_later_where_that_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    async def hold(*_: Any) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(job_loop, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": pause}))
    lost = OSError("nobody there")
    outcomes = [Busy(), lost, [], [], ["unknown"], *[lost] * 6, ["unknown"], Busy(), lost, [{}, 1], lost, []]
    signals = script(lambda: loop, outcomes)
    sdk = replace(sdk_module.load(), get_job=hold, get_stop_signals=signals, too_many_requests=Busy)
    loop = JobLoop(sdk, bodies(lambda job: None), concurrency=1)
    await asyncio.wait_for(loop.run(), 5)
    assert pauses == [0.05, 5.0, 1.0, 1, 1, 1, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0, 1, 5.0, 1.0, 1, 1.0, 1]
    assert capsys.readouterr().out.count("asking for stop signals failed (OSError: nobody there)") == 9
