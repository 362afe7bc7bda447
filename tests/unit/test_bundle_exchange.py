"""A changed bundle where the kernel cannot swap two folders, and the locks on new ones."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from engine import bundle_folder


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A new and an old folder, on what has no renameat2: an old libc, and as good as a file system that refuses it."""
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    return tmp_path / "new", tmp_path / "old"


def test_two_renames_where_one_step_cannot_be(folders: tuple[Path, Path]):
    new, old = folders
    bundle_folder._exchange(new, old)
    assert (old / "file").read_text() == "new"
    assert [path.name for path in old.parent.iterdir()] == ["old"]


def test_what_is_interrupted_between_them_is_as_before(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch):
    new, old = folders
    rename, calls = os.rename, []

    def interrupted(source: Path, target: Path) -> None:
        calls.append((source, target))
        if len(calls) == 2:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bundle_folder._exchange(new, old)
    assert (old / "file").read_text() == "old"
    assert sorted(path.name for path in old.parent.iterdir()) == ["new", "old"]


def test_a_new_folder_that_another_run_took_for_a_left_over_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    lock, locked = bundle_folder._lock, []

    def too_late(descriptor: int) -> None:
        locked.append(descriptor)
        if len(locked) == 1:
            (tmp_path / "new").rmdir()
        lock(descriptor)

    monkeypatch.setattr(bundle_folder, "_lock", too_late)
    descriptor = bundle_folder._locked_folder(tmp_path / "new")
    assert len(locked) == 2
    assert os.path.samestat(os.fstat(descriptor), os.stat(tmp_path / "new"))
    os.close(descriptor)


def test_locks_are_let_go_of(tmp_path: Path):
    (tmp_path / ".out.partial-1-dead").mkdir()
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(RuntimeError), bundle_folder.new_bundle_folder(tmp_path / "out"):
        raise RuntimeError
    assert set(os.listdir("/proc/self/fd")) <= before
    assert list(tmp_path.iterdir()) == []
