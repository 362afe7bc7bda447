"""Python's collector of cycles, held up while a large body becomes objects."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sized
from typing import Any, TypeVar

T = TypeVar("T", bound=Sized)
LARGE = 1 << 16
"""Characters or bytes; nobody would notice the collector in less."""


def loaded(load: Callable[[T], Any], raw: T) -> Any:
    """What `load` makes of `raw`, which has no cycles, so that whoever looks for them finds none.

    Of 9 MB that are small lists the collector takes nine tenths of the time: it walks through all that there is again
    whenever there is a quarter more of it.
    """
    if len(raw) < LARGE or not gc.isenabled():
        return load(raw)
    gc.disable()
    try:
        return load(raw)
    finally:
        gc.enable()
