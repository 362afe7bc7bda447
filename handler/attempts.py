"""One attempt at a job, and whether another has to follow it. Rule: no HTTP, no schedule.

RunPod hands a job out again under its id: when somebody calls /retry, or when it takes the worker for dead. Posts and
stop signals name that id alone, and a signal may come late or never. So two things are held on to. A job has its answer
when a post was taken that began after the last hand-out. And a signal that may be a late one, for the poll that brought
it or the last hand-out has just begun, counts for the earliest hand-out that has none yet. In doubt a job runs once
more: RunPod takes no second answer, but who gets none waits for ever.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from typing import Any

from handler.log import log

_LATE_S = 5.0
_MOST_KEPT = 20_000  # some MB: while nobody answers about stop signals, or holds the poll open for long


class Attempt:
    """The running of a job, and the way of its answer to RunPod; it answers for all of the job's hand-outs.

    `number` is that of the hand-out that it began with, and `stops` says how many signals there were before.
    """

    def __init__(self, job_id: str, number: int = 1, stops: int = 0) -> None:
        self.job_id = job_id
        self.task: asyncio.Task[None]
        """To the end of it."""
        self.answer: asyncio.Task[bytes] | None = None
        """While there is none yet."""
        self.again: dict[str, Any] | None = None
        """The job as it was handed out last, if that was since this began."""
        self.has_streamed = False
        self.has_hole = False
        """Whether RunPod did not take a part of its stream."""
        self.is_taken = False
        """Whether RunPod has taken what was posted last."""
        self._number = self._hand_outs = number
        self._stops = stops
        self._handed_at = time.monotonic()
        self._posted_after = 0

    @property
    def is_stopped(self) -> bool:
        """Whether its answer is not wanted: what follows, if anything, has one of its own."""
        return self._stops >= self._number

    def hand_out_again(self, job: dict[str, Any]) -> None:
        """`job` has the same id."""
        self._hand_outs += 1
        self._handed_at = time.monotonic()
        self.again = job

    def stop(self, asked_at: float = float("-inf")) -> bool:
        """Take a stop signal, and end the answering if that is meant. Whether it was news.

        `asked_at` is when the poll that brought it began: one that waited would have brought an old signal at once.
        """
        before = self._stops
        if before >= self._hand_outs:
            return False
        may_be_late = time.monotonic() - max(asked_at, self._handed_at) < _LATE_S
        self._stops = before + 1 if may_be_late else self._hand_outs
        if not self.is_stopped:
            log("INFO", "goes on: the stop signal may have been for it as it was handed out before", self.job_id)
        elif before < self._number and self.answer is not None:
            self.answer.cancel()
        return True

    def may_post(self, is_substitute: bool) -> bool:
        """Whether a post may begin now. An error in the place of an answer may not where there can be a better one."""
        if (is_substitute or self.has_hole) and (self.is_stopped or self._hand_outs > self._number):
            return False
        self._posted_after = self._hand_outs
        return True

    def following(self) -> Attempt | None:
        """The attempt that has to follow this one, which has ended, with the job `again`."""
        settled = max(self._stops, self._posted_after if self.is_taken else 0)
        if self.again is None or settled >= self._hand_outs:
            return None
        return Attempt(self.job_id, self._hand_outs, self._stops)


class Ended:
    """Remembers what has ended: its job may be handed out again before an old signal for it comes.

    Until a poll for signals was answered that began well behind its end, however long such polls fail or hang: that
    one brought the signal, if there was any. The price: a signal for such a job that comes in its first seconds, and is
    no old one, may not stop it.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[float, int, int]] = OrderedDict()  # a dict gets slow at its emptied front
        """By id, those that ended first before the others."""

    def add(self, attempt: Attempt) -> None:
        """`attempt` has ended, and none follows."""
        self._kept.pop(attempt.job_id, None)
        self._kept[attempt.job_id] = (time.monotonic(), attempt._hand_outs, attempt._stops)
        if len(self._kept) > _MOST_KEPT:
            self._kept.popitem(last=False)

    def answered(self, asked_at: float) -> None:
        """RunPod has answered a poll for stop signals that began at `asked_at`, on the clock time.monotonic."""
        while self._kept and self._kept[first := next(iter(self._kept))][0] + _LATE_S < asked_at:
            del self._kept[first]

    def attempt_at(self, job_id: str) -> Attempt:
        """A new one, at a job that is handed out while no attempt at it is under way."""
        if (kept := self._kept.get(job_id)) is None:
            return Attempt(job_id)
        return Attempt(job_id, kept[1] + 1, kept[2])
