"""How jobs ended, for the health reply. Rule: imports nothing; it lives where the final body of a job is known."""

from __future__ import annotations


class Counts:
    """Of all jobs but those that ask for health, and those that were taken back."""

    def __init__(self) -> None:
        self.done = self.failed = 0

    def ended(self, failed: bool) -> None:
        """One more has an answer, which may be an error."""
        self.done += not failed
        self.failed += failed

    def was_taken_back(self, failed: bool) -> None:
        """One of those that ended, as told, is tried again."""
        self.done -= not failed
        self.failed -= failed

    def was_lost(self) -> None:
        """One of those done has not reached who asked for it."""
        self.done -= 1
        self.failed += 1

    def report(self) -> dict[str, int]:
        """As the health reply names them."""
        return {"jobs_done": self.done, "jobs_failed": self.failed}
