"""Comparing replies: everything equal, numbers nearly."""

from __future__ import annotations

from typing import Any

import pytest


def assert_same(ours: Any, theirs: Any, tolerance: float = 1e-4, where: str = "reply") -> None:
    """Fail where `ours` and `theirs` differ: keys, order, strings and whole numbers exactly, scores by `tolerance`."""
    if isinstance(theirs, dict):
        assert isinstance(ours, dict), where
        assert set(ours) == set(theirs), where
        for key, value in theirs.items():
            assert_same(ours[key], value, tolerance, f"{where}.{key}")
    elif isinstance(theirs, list | tuple):
        assert isinstance(ours, list | tuple), where
        assert len(ours) == len(theirs), where
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(one, other, tolerance, f"{where}[{index}]")
    elif isinstance(theirs, float) or type(theirs).__name__.startswith("float"):
        assert ours == pytest.approx(float(theirs), abs=tolerance), where
    else:
        assert ours == theirs, where
