"""One attempt at a job, and whether another has to follow it. Rule: no HTTP, no schedule.

RunPod hands a job out again under its id: when somebody calls /retry, or when it takes the worker for dead. Posts and
stop signals name that id alone, and a signal may come late or never. So two things are held on to. A job has its answer
when a post was taken that began after the last hand-out. And a signal counts for the earliest hand-out that has none
yet. In doubt a job runs once more: RunPod takes no second answer, but who gets none waits for ever.
"""

from __future__ import annotations

import asyncio
from typing import Any

from handler.log import log


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
        self._posted_after = 0

    @property
    def is_stopped(self) -> bool:
        """Whether its answer is not wanted: what follows, if anything, has one of its own."""
        return self._stops >= self._number

    def hand_out_again(self, job: dict[str, Any]) -> None:
        """`job` has the same id."""
        self._hand_outs += 1
        self.again = job

    def stop(self) -> bool:
        """Take a stop signal, and end the answering if that is meant. Whether it was news."""
        if self._stops >= self._hand_outs:
            return False
        self._stops += 1
        if self._stops < self._number:
            log("INFO", "goes on: the stop signal may have been for it as it was handed out before", self.job_id)
        elif self._stops == self._number and self.answer is not None:
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
