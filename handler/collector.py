"""Python's collector of cycles, kept from what a large body becomes, which has none."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Sized
from typing import Any, TypeVar

T = TypeVar("T", bound=Sized)
LARGE = 1 << 16
"""Characters or bytes; nobody would notice the collector in less."""
MANY = 50_000
"""Lists and objects of a body, which the collector takes milliseconds for; MAX_ITEMS items make fewer."""
_MOST = 10_000_000  # of them that may be kept from it, most of a gigabyte, before it looks at all there is
_GROWTH = 4  # and so many times what it has found there: to walk through a list takes twice as long as to make it
_PAUSE_S = 1.0


class _Kept:
    """Lists and objects of bodies that the collector has not seen, and how many may be before it looks again."""

    count = 0
    most = _MOST


def loaded(load: Callable[[T], Any], raw: T) -> Any:
    """What `load` makes of `raw`, which has no cycles, so that whoever looks for them finds none.

    Of 9 MB that are small lists the collector takes nine tenths of the time: it walks through all that there is again
    whenever there is a quarter more of it. Were it only held up meanwhile, it would do so several times with what is
    allocated next. So many objects are frozen; their references free them as ever.
    """
    if len(raw) < LARGE or not gc.isenabled():
        return load(raw)
    if _Kept.count > _Kept.most:
        _look_at_all()
    gc.disable()
    before = gc.get_count()[0]
    try:
        return load(raw)
    finally:
        if (made := gc.get_count()[0] - before) > MANY:
            gc.freeze()
            _Kept.count += made
        gc.enable()


def look_when_idle(is_idle: Callable[[], bool]) -> None:
    """To be called on the event loop where the last job has ended: a cycle may hold what was kept from the collector.

    `is_idle` is asked after a pause; whoever holds a job then calls this again when that has ended.
    """
    if _Kept.count:
        asyncio.get_running_loop().call_later(_PAUSE_S, _look_if, is_idle)


def _look_if(is_idle: Callable[[], bool]) -> None:
    if _Kept.count and is_idle():
        _look_at_all()


def _look_at_all() -> None:
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    _Kept.count, _Kept.most = 0, max(_MOST, _GROWTH * gc.get_freeze_count())
