"""Entities that several windows of a long text find: each is listed once."""

from __future__ import annotations

from typing import Any

import pytest

from engine.text.entities import merge_windows


def entity(start: int, end: int, score: float = 0.5) -> dict[str, Any]:
    return {"entity_group": "LOC", "score": score, "word": "x", "start": start, "end": end}


@pytest.mark.parametrize(
    ("found", "listed"),
    [
        # transformers 4.57 compares the first entity with itself, and lists it twice where it has no width
        ([entity(0, 0), entity(0, 4)], [entity(0, 0), entity(0, 4)]),
        # ... and once for each window that found it
        ([entity(2, 2), entity(5, 5, 0.4), entity(5, 5, 0.6)], [entity(2, 2), entity(5, 5, 0.6)]),
        ([entity(0, 4), entity(4, 4), entity(2, 4, 0.9)], [entity(0, 4), entity(4, 4)]),
        ([entity(0, 4, 0.4), entity(0, 4, 0.6), entity(4, 6)], [entity(0, 4, 0.6), entity(4, 6)]),
    ],
)
def test_each_is_listed_once(found: list[dict[str, Any]], listed: list[dict[str, Any]]):
    assert merge_windows(found) == listed
