"""A changed bundle where the kernel cannot swap two folders or none may be written to, and the locks on new ones."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.bundle import open_bundle, write_manifest
from engine.errors import BundleError
from export import bundle_folder
from export.__main__ import main
from export.command import interrupts
from tests.processes import killed


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


@pytest.mark.parametrize("then", ["new", "plan", "plan on RunPod"])
def test_what_is_killed_between_them_is_finished_by_the_next_run(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch, then: str
):
    rename = os.rename

    def killing(source: Path, target: Path) -> None:
        rename(source, target)
        os.kill(os.getpid(), signal.SIGKILL)

    def change() -> None:
        with bundle_folder.changed_bundle_folder(small_bundle) as folder:
            (folder / "more").touch()
            write_manifest(folder, open_bundle(folder).manifest)
            monkeypatch.setattr(os, "rename", killing)

    monkeypatch.delenv("RUNPOD_API_KEY", raising=False)
    monkeypatch.setattr("runpod.api_key", None)  # so that nothing is asked
    with monkeypatch.context() as patched:
        patched.setattr(ctypes, "CDLL", lambda name: object())
        killed(change)
    assert not small_bundle.exists()
    if then == "new":
        sentence = "exists and is not empty"
        with pytest.raises(BundleError, match=sentence), bundle_folder.new_bundle_folder(small_bundle):
            pytest.fail("the work was begun")
    else:
        pods = ["--on-runpod", "NVIDIA L4", "--image", "x"] if then == "plan on RunPod" else []
        assert main(["plan", str(small_bundle), "--lengths", "64", *pods]) == 2
    assert "more" in open_bundle(small_bundle).manifest.files
    assert list(small_bundle.parent.iterdir()) == [small_bundle]


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


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_no_signal_keeps_the_folder_from_being_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
):
    """Neither the impatient's second one nor the first one behind an error."""
    rmtree = shutil.rmtree

    def interrupted(folder: Path, ignore_errors: bool) -> None:
        signal.raise_signal(signal.SIGINT)
        rmtree(folder, ignore_errors)

    monkeypatch.setattr(interrupts, "_came", False)
    monkeypatch.setattr(shutil, "rmtree", interrupted)
    before = signal.signal(signal.SIGINT, interrupts._interrupt)
    try:
        with pytest.raises(error), bundle_folder.new_bundle_folder(tmp_path / "out"):
            raise error
    finally:
        signal.signal(signal.SIGINT, before)
    assert interrupts.came()
    assert list(tmp_path.iterdir()) == []


def test_locks_are_let_go_of(tmp_path: Path):
    (tmp_path / ".out.partial-1-dead").mkdir()
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(RuntimeError), bundle_folder.new_bundle_folder(tmp_path / "out"):
        raise RuntimeError
    assert set(os.listdir("/proc/self/fd")) <= before
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def read_only(small_bundle: Path) -> Iterator[Path]:
    """As `chmod -R a-w` leaves a bundle, for root as for everybody: its capability to pass over that is put aside."""
    for path in (small_bundle, *small_bundle.rglob("*")):
        path.chmod(path.stat().st_mode & 0o555)
    libc = ctypes.CDLL(None)
    who, held = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()  # of linux/capability.h, for this thread
    assert libc.capget(who, held) == 0
    effective = held[0]
    held[0] &= ~(1 << 1)  # CAP_DAC_OVERRIDE
    assert libc.capset(who, held) == 0
    assert not os.access(small_bundle, os.W_OK, effective_ids=True)
    yield small_bundle
    held[0] = effective
    assert libc.capset(who, held) == 0


@pytest.mark.parametrize("in_one_step", [True, False])
def test_a_bundle_that_may_not_be_written_to_is_changed_and_stays_so(
    read_only: Path, monkeypatch: pytest.MonkeyPatch, in_one_step: bool
):
    if not in_one_step:
        monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    with bundle_folder.changed_bundle_folder(read_only) as folder:
        (folder / "graphs/model/new.plan").write_text("plan")
        (folder / "graphs/model/fp32.onnx").rename(folder / "graphs/fp32.onnx")
        write_manifest(folder, open_bundle(folder).manifest)
    bundle = open_bundle(read_only)
    bundle.verify()
    assert {"graphs/fp32.onnx", "graphs/model/new.plan"} < set(bundle.manifest.files)
    folders = [read_only, read_only / "graphs", read_only / "graphs/model"]
    assert [path.stat().st_mode & 0o777 for path in folders] == [0o555] * 3
    assert list(read_only.parent.iterdir()) == [read_only]


def test_nor_does_a_change_of_it_that_fails_leave_anything_behind(read_only: Path):
    with pytest.raises(RuntimeError), bundle_folder.changed_bundle_folder(read_only):
        raise RuntimeError
    open_bundle(read_only).verify()
    assert list(read_only.parent.iterdir()) == [read_only]


def test_what_a_killed_run_left_of_one_is_removed(read_only: Path):
    killed = read_only.parent / f".{read_only.name}.partial-1-dead"
    read_only.rename(killed)
    with bundle_folder._partial_folder(read_only):
        assert not killed.exists()


def test_a_bundle_is_changed_where_a_file_system_has_no_links(small_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with bundle_folder.changed_bundle_folder(small_bundle) as folder:
        (folder / "more").touch()
        write_manifest(folder, open_bundle(folder).manifest)
    open_bundle(small_bundle).verify()
