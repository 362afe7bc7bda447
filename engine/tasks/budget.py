"""What the rows of all jobs, and their outputs, hold at once: MAX_ROW_BYTES bounds one job, and there are many.

Rules: a job that no other is in the way of gets all that it may have; others wait, and whoever has waited longest is
next; small ones pass.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Self

from engine.errors import Overloaded
from engine.probe import memory_limit

_SMALL = 0.01  # of the budget
_ALL_SMALL = 0.1  # of the budget, and beside it


class Budget:
    """At most `most` bytes for all jobs of a process, of which each takes a `Share`.

    Beside it small ones that it has no room for get a tenth of it, so that they wait for no large one. The methods are
    called with `lock` held.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.waiting: list[Share] = []
        """Those that hold nothing and want more than there is; whoever has waited longest is first."""
        self.lock = threading.Lock()
        self._large = self._small = 0

    @property
    def held(self) -> int:
        """Bytes that are held in all."""
        return self._large + self._small

    def take(self, share: Share, size: int, expected: int = 0, *, is_next: bool) -> bool:
        """Whether `share`, that may come to `expected`, holds `size` bytes in all from now on; else it holds none.

        `is_next` says that nobody has waited longer, so that it may have what is free.
        """
        self.give_back(share)
        if is_next and (not self._large or self._large + size <= self.most):
            self._large += size
            share.size, share.is_small = size, False
        elif max(size, expected) <= self.most * _SMALL and self._small + size <= self.most * _ALL_SMALL:
            self._small += size
            share.size, share.is_small = size, True
        else:
            share.size = 0
            return False
        return True

    def give_back(self, share: Share) -> None:
        """What `share` holds is free from now on."""
        if share.is_small:
            self._small -= share.size
        else:
            self._large -= share.size

    def let_in(self) -> None:
        """Give those that wait what they want, as far as it is free."""
        for share in list(self.waiting):
            if self.take(share, share.wanted, is_next=share is self.waiting[0]):
                self.waiting.remove(share)
                share.wake()


OF_PROCESS = Budget(memory_limit() // 2)
"""The other half is for what jobs are before they are rows and after that, the engine, and Python."""


class Share:
    """What one job, or one part of a stream, holds of a budget while it is entered; otherwise nothing is counted."""

    def __init__(self) -> None:
        self.size = 0
        """Bytes; after the job those that it held."""
        self.is_small = False
        """Whether they are beside the budget."""
        self.wanted = 0
        """Bytes that were refused."""
        self.is_refused = False
        """Whether `reach` has raised, and `turn` was not awaited since."""
        self._budget = OF_PROCESS
        self._is_open = False
        self._turn: asyncio.Future[None] | None = None

    def __enter__(self) -> Self:
        assert not self._is_open, "it is one job's alone"
        self.size = self.wanted = 0
        self.is_small, self._is_open = False, True
        return self

    def __exit__(self, *_: object) -> None:
        budget = self._budget
        with budget.lock:
            self._is_open = False
            budget.give_back(self)
            if self in budget.waiting:
                budget.waiting.remove(self)
            budget.let_in()

    def reach(self, size: int, expected: int = 0) -> None:
        """Hold `size` bytes in all, of a job that may come to `expected`.

        Raises Overloaded where other jobs hold so much that these do not fit, or have waited longer. Then it holds
        nothing, and `turn` tells when to make the rows again. A thread of a job that has ended is not told: there is
        nobody who would give back what it asks for.
        """
        budget = self._budget
        with budget.lock:
            if not self._is_open or size <= self.size:
                return
            has_begun = self.size > 0 and not self.is_small
            if budget.take(self, size, expected, is_next=has_begun or not budget.waiting):
                return
            self.is_refused = True
            budget.waiting.insert(0 if self.wanted else len(budget.waiting), self)  # it has waited, and was told less
            self.wanted = max(size, expected)
            budget.let_in()
        raise Overloaded("the rows of other jobs hold the memory that this one needs; send it later, or split it")

    async def turn(self) -> None:
        """Wait until what was refused is there, and held."""
        with self._budget.lock:
            self.is_refused = False
            if self not in self._budget.waiting:
                return
            self._turn = asyncio.get_running_loop().create_future()
        await self._turn

    def wake(self) -> None:
        """What was refused is there; called in any thread, with the budget's lock held."""
        if self._turn is not None:
            with suppress(RuntimeError):  # the loop is closed, and with it whoever waited
                self._turn.get_loop().call_soon_threadsafe(_done, self._turn)


def _done(turn: asyncio.Future[None]) -> None:
    if not turn.done():  # cancelled
        turn.set_result(None)
