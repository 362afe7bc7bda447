"""Scripted and random faults on the worker's routes.

Here lives what a fault is and which request it strikes; worker_routes.py carries it out.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from aiohttp import web

ROUTES = ("job-take", "job-done", "job-stream", "job-stop", "ping")  # job-take-batch counts as job-take


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with one request.

    `hang_up` closes the TCP connection without a reply; otherwise a `status` or a `body` (then 200) replaces the reply.
    With neither, the request is only slowed down by `delay_s` seconds.

    `hang_up_after` says on which side of the request's processing this happens. "before": nothing was recorded and no
    job was handed out. "after": the answer was recorded, or the jobs are handed over and in progress, but the worker
    is not told. `delay_s` elapses on the same side.
    """

    status: int | None = None
    body: bytes | str | None = None
    content_type: str = "application/json"
    delay_s: float = 0.0
    hang_up: bool = False
    hang_up_after: Literal["before", "after"] = "before"


Chooser = Callable[[str, web.Request], Fault | None]


class Faults:
    """The faults to come.

    `choose(route, request)`, if set, is asked for every request that no scripted fault strikes on arrival.
    """

    def __init__(self) -> None:
        self.choose: Chooser | None = None
        self.struck: Counter[str] = Counter()  # by route, scripted and chosen
        self._scripted: dict[str, list[Fault]] = {route: [] for route in ROUTES}
        self._always: dict[str, Fault] = {}

    def add(self, route: str, fault: Fault, times: int | None = 1) -> None:
        """Strike the next `times` requests on `route` (None: all until `clear`). Raises ValueError for another route.

        An "after" fault waits for a request that is answered 200, so a poll that finds no job doesn't use it up; it can
        strike a poll that was already waiting when the fault was added.
        """
        if route not in ROUTES:
            raise ValueError(f"no route {route!r} to inject a fault on; there are {', '.join(ROUTES)}")
        if times is None:
            self._always[route] = fault
        else:
            self._scripted[route] += [fault] * times

    def clear(self) -> None:
        """Forget all faults, the chooser too."""
        self.choose = None
        self._always.clear()
        for scripted in self._scripted.values():
            scripted.clear()

    def pending(self, route: str) -> int:
        """How many scripted faults have not struck yet."""
        return len(self._scripted[route])

    def on_arrival(self, route: str, request: web.Request) -> Fault | None:
        """The fault for a request that just came in: a scripted "before" one, or a chosen one of either kind."""
        fault = self._pop(route, "before")
        if fault is None and self.choose is not None:
            fault = self.choose(route, request)
        self.struck[route] += fault is not None
        return fault

    def on_reply(self, route: str) -> Fault | None:
        """The scripted "after" fault for a request that is about to be answered 200."""
        fault = self._pop(route, "after")
        self.struck[route] += fault is not None
        return fault

    def _pop(self, route: str, side: str) -> Fault | None:
        scripted = self._scripted[route]
        for index, fault in enumerate(scripted):
            if fault.hang_up_after == side:
                return scripted.pop(index)
        always = self._always.get(route)
        return always if always is not None and always.hang_up_after == side else None
