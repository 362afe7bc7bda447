"""The folder that a bundle is written to: temporary, beside its destination, renamed at the end.

So a bundle is whole or absent, whatever ends the writer.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from engine.bundle import CHECKSUM, MANIFEST, is_newer
from engine.errors import BundleError
from export.command import interrupts


@contextmanager
def new_bundle_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` when the block ends without an error, else disappears.

    Fill it, then call `write_manifest`. Folders that killed runs left behind are removed. Raises BundleError when
    `out` is there and not empty, before the block or behind it, or where nothing can be renamed to it.
    """
    finish_exchange(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BundleError(f"{out} exists and is not empty; name another folder or remove it first")
    place = _place_of(out)
    with _partial_folder(place) as folder:
        yield folder
        if not (folder / CHECKSUM).is_file():
            raise BundleError("the bundle has no manifest")  # a programming error of the export
        try:
            os.rename(folder, place)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise BundleError(f"{out} was filled by another run meanwhile; name another folder") from error


@contextmanager
def changed_bundle_folder(path: Path) -> Iterator[Path]:
    """A copy of the bundle at `path` that takes its place when the block ends without an error, else disappears.

    Files are linked, not copied: replace them, never write into them. Call `write_manifest` at the end; the manifest
    alone is a copy. Its folders can be written to meanwhile, whether the bundle's can or not. Raises BundleError where
    another has changed the bundle meanwhile, for that would be lost, where nothing can be renamed to it, or as
    `refuse_newer` does.
    """
    place = _place_of(path)
    refuse_newer(path)
    with _partial_folder(place) as folder:
        shutil.copytree(place, folder, copy_function=_link, dirs_exist_ok=True)
        modes = _make_writable(folder)
        for name in (MANIFEST, CHECKSUM):
            content = (folder / name).read_bytes()
            (folder / name).unlink()
            (folder / name).write_bytes(content)
        before = (folder / CHECKSUM).read_bytes()
        yield folder
        if _read(place / CHECKSUM) != before:
            raise BundleError(f"{path} was changed by another run meanwhile; do it again")
        for copied, mode in modes.items():
            with suppress(FileNotFoundError):
                copied.chmod(mode)
        _exchange(folder, place)


def finish_exchange(path: Path) -> None:
    """Put a changed bundle in its place where its run was killed between the two renames of `_exchange`."""
    if path.exists():
        return
    place = _place_of(path)
    for aside in sorted(place.parent.glob(f".{escape(place.name)}.partial-*{_ASIDE}")):
        new = aside.with_name(aside.name.removesuffix(_ASIDE))
        if new.is_dir() and not place.exists():
            os.rename(new, place)
            _remove(aside)


def refuse_newer(path: Path) -> None:
    """Raise BundleError where the bundle at `path` may say more than would be left of it."""
    if is_newer(path):
        raise BundleError(f"{path} was made by a newer version, and what that added would be lost; update this one")


def _place_of(path: Path) -> Path:
    """What a folder can be renamed to: where `path` points, for a link is to stay one. Raises BundleError.

    What has no name of its own, as `.` and `..`, gets the one that it is known by in the folder above.
    """
    place = Path(os.path.realpath(path)) if path.is_symlink() or path.name in ("", os.pardir) else path
    if is_mount_point(place):
        raise BundleError(
            f"{path} is where a volume is mounted, and a bundle is a folder in it; name {path / 'bundle'}"
        )
    return place


def is_mount_point(path: Path) -> bool:
    """Whether something is mounted at `path`; os.path.ismount does not see folders of the same disk, as Docker does."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return os.path.ismount(path)
    real = os.path.realpath(path).replace("\\", "\\134").replace(" ", "\\040")
    return any(mount.split(" ")[4] == real for mount in mounts)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _link(source: str, target: str) -> None:
    try:
        if os.path.islink(source):
            os.symlink(os.path.realpath(source), target)
        else:
            os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


def _make_writable(folder: Path) -> dict[Path, int]:
    """Let the owner write to `folder` and those below; the modes that were changed, of the innermost folders first."""
    modes: dict[Path, int] = {}

    def change(path: Path) -> None:
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode) and mode & stat.S_IRWXU != stat.S_IRWXU:
            with suppress(OSError):  # of another owner, or on a file system without modes
                path.chmod(stat.S_IMODE(mode) | stat.S_IRWXU)
                modes[path] = stat.S_IMODE(mode)

    change(folder)
    for above, names, _ in os.walk(folder):  # each is listed after those above it were changed
        for name in names:
            change(Path(above) / name)
    return dict(reversed(modes.items()))


def _remove(folder: Path) -> None:
    """As much of it as can be."""
    with suppress(OSError):
        _make_writable(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _exchange(new: Path, old: Path) -> None:
    """Swap two folders, in one step where the kernel can: a reader finds one or the other. Remove what was `old`."""
    from ctypes import CDLL

    exchange = getattr(CDLL(None), "renameat2", None)  # glibc 2.28
    if exchange and exchange(_HERE, os.fsencode(new), _HERE, os.fsencode(old), _RENAME_EXCHANGE) == 0:
        _remove(new)
        return
    aside = new.with_name(f"{new.name}{_ASIDE}")
    try:
        os.rename(old, aside)
        os.rename(new, old)
    except BaseException:  # an interrupt as well, which may come in between
        if aside.exists() and not old.exists():
            os.rename(aside, old)
        raise
    _remove(aside)


_ASIDE = "-old"
_HERE, _RENAME_EXCHANGE = -100, 2  # AT_FDCWD of fcntl.h, RENAME_EXCHANGE of linux/fs.h


@contextmanager
def _partial_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out`, gone at the end unless it was renamed; those of killed runs are removed.

    So are the folders above that it made, where the block fails and nothing else is in them.

    Its owner holds a lock on it, which the kernel lets go of however the process ends. The process id in its name says
    less: in containers every run has the same one.
    """
    above = [folder for folder in out.parents if not folder.exists()]  # the innermost first
    prefix = f".{out.name}.partial-"
    # Named before it is made: an interrupt that comes in between still knows what to remove.
    folder = out.parent / f"{prefix}{os.getpid()}-{os.urandom(4).hex()}"
    lock = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for other in out.parent.iterdir():
            if other.name.startswith(prefix):
                _remove_left_over(other, other.name.removeprefix(prefix).partition("-")[0])
        lock = _locked_folder(folder)
        yield folder
    except BaseException:
        with interrupts.held():
            _remove(folder)
            for made in above:
                with suppress(OSError):
                    made.rmdir()
        raise
    finally:
        if lock is not None:
            os.close(lock)


def _locked_folder(folder: Path) -> int:
    """Make `folder`, and return the descriptor that holds the lock on it."""
    while True:
        folder.mkdir(mode=0o755)  # the image runs as another user
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        with suppress(OSError):  # without locks the process id in its name protects it
            _lock(descriptor)
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)  # another run took it for a left-over before it was locked


def _remove_left_over(folder: Path, owner: str) -> None:
    """Remove `folder` unless the process that made it lives; `owner` is its id, for file systems without locks."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # gone meanwhile, or not ours to open
        return
    try:
        _lock(descriptor)
        is_dead = True
    except BlockingIOError:
        is_dead = False
    except OSError:
        is_dead = not owner.isdecimal() or not Path(f"/proc/{owner}").exists()
    if is_dead:
        _remove(folder)
    os.close(descriptor)


def _lock(descriptor: int) -> None:
    import fcntl

    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
