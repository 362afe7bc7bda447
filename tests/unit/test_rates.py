"""Which int8 is chosen by speed, on a machine where turns take longer than they should."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

import export.precision.ladder_cpu
import export.precision.rates
from export.precision.ladder_cpu import _verdict
from export.precision.rates import best


@pytest.fixture(autouse=True)
def usual_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/e2e sets another one for its whole session, which may be this one."""
    monkeypatch.setattr(export.precision.ladder_cpu, "_STATIC_WORTH", 1.2)


QUIET = (100.0, 200.0, 300.0)
"""Rows/s of fp32, dynamic and static int8: the last is to be chosen."""
BUSY = [(90.0, 200.0, 160.0), (100.0, 120.0, 210.0), (60.0, 180.0, 190.0), (100.0, 130.0, 200.0)]
"""What turns may find meanwhile; the best of each says that static int8 is hardly faster."""


@pytest.mark.parametrize(
    ("found", "turns"),
    [
        ([QUIET] * 4, 4),
        ([*BUSY, QUIET, *BUSY, *BUSY], 12),  # their order differs between turns
        (
            [(100.0, 101.0, 300.0), (100.0, 110.0, 290.0), (100.0, 99.0, 300.0), QUIET],
            4,
        ),  # of what is chosen it does not
    ],
)
def test_turns_are_added_where_they_disagree(found: Sequence[Sequence[float]], turns: int):
    left = [(1.0, 1.0, 1.0), *found]  # the first one counts for nothing
    speeds = best(lambda: left.pop(0), _verdict("auto"))
    assert len(found) - len(left) == turns
    assert _verdict("auto")(speeds) == (True, True)


def test_after_some_seconds_none_is_added(monkeypatch: pytest.MonkeyPatch):
    for limit in ("_SECONDS", "_MOST_SECONDS"):
        monkeypatch.setattr(export.precision.rates, limit, 0.0)
    left = [QUIET, *BUSY]
    best(lambda: left.pop(0), lambda speeds: speeds)
    assert len(left) == 2


@pytest.mark.parametrize(("asked", "verdict"), [("auto", (False, False)), ("int8", (False, True))])
def test_what_fp32_does_is_of_no_matter_where_int8_was_asked_for(asked: str, verdict: tuple[bool, bool]):
    assert _verdict(asked)((100.0, 101.0, 90.0)) == verdict
