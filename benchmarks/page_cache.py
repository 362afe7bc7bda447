"""Making files cold: what a start then reads comes from the disk, as after a reboot.

Pages that a running process has mapped stay: this interpreter's own, and libraries that it loaded. So whoever measures
a cold start must not import what the worker imports. A virtual machine's host may keep the disk's content all the same.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path

_DROP = Path("/proc/sys/vm/drop_caches")
_CODE = (".so", ".pyc")


def way_to_drop(bundle: Path) -> tuple[Callable[[], None], str]:
    """What makes the bundle and the installed packages cold, and a sentence that says which way it is."""
    if os.geteuid() == 0 and os.access(_DROP, os.W_OK):
        return _drop_all, f"cold: the machine's whole page cache is dropped ({_DROP})"
    found = list(_files(bundle))
    return lambda: _forget(found), f"cold: {len(found)} files of the bundle and of Python's packages are evicted"


def _drop_all() -> None:
    os.sync()  # dirty pages are not dropped
    _DROP.write_text("3")  # page cache, directory entries and inodes: proc_sys_vm(5)


def _files(bundle: Path) -> Iterable[Path]:
    yield from (path for path in bundle.rglob("*") if path.is_file())
    folders = {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}
    for folder in folders:
        yield from (path for path in Path(folder).rglob("*") if path.name.endswith(_CODE) or ".so." in path.name)


def _forget(files: Iterable[Path]) -> None:
    """Ask the kernel to drop the pages of `files`; best effort, as the call itself is."""
    for path in files:
        try:
            handle = os.open(path, os.O_RDONLY)
        except OSError:
            continue
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
