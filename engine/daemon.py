"""Work in a thread that keeps nothing alive: what it calls takes no timeout. Rule: imports next to nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def in_daemon(work: Callable[[], T], name: str) -> Future[T]:
    """What `work` will have returned or raised; not to be cancelled. Raises RuntimeError where there is no thread."""
    found: Future[T] = Future()
    found.set_running_or_notify_cancel()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            found.set_exception(error)
        else:
            found.set_result(result)

    threading.Thread(target=run, name=name, daemon=True).start()
    return found
