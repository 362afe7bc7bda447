"""The lock that workers of one volume take turns by, whoever made it."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.files.turns import turn
from tests.processes import as_another_user


@pytest.fixture
def volume() -> Iterator[Path]:
    """A folder that everybody may write to."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


def take(path: Path) -> bool:
    with turn(path, time.monotonic(), lambda: None, RuntimeError("late")) as is_held:
        return is_held


def test_the_lock_of_another_user_is_taken_as_ones_own(volume: Path):
    """A pod is root, and the worker of the image is not."""
    path = volume / ".lock"
    mask = os.umask(0o077)
    try:
        assert take(path)
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666
    path.chmod(0o444)  # as earlier versions made it
    assert as_another_user(lambda: take(path)) is True
    with turn(path, time.monotonic(), lambda: None, RuntimeError()):
        assert repr(as_another_user(lambda: take(path))) == "RuntimeError('late')"
    path.chmod(0)
    assert as_another_user(lambda: take(path)) is False  # none that it could hold


def test_where_no_lock_can_be_made_that_is_said(volume: Path):
    volume.chmod(0o555)
    assert isinstance(as_another_user(lambda: take(volume / ".lock")), PermissionError)


def test_a_link_is_no_lock(volume: Path):
    """Else root would give everybody a file that somebody has pointed it to."""
    (volume / "file").touch(0o600)
    (volume / ".lock").symlink_to("file")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        take(volume / ".lock")
    assert (volume / "file").stat().st_mode & 0o777 == 0o600
