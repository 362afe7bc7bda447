"""A file that a user gets is whole or absent: written under another name, and renamed at the end."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, content: bytes, *, mode: int = 0o666, replaces: bool = True) -> None:
    """Write `content` to `path`, which whatever ends this finds whole or as it was; `mode` is less the umask.

    Raises OSError, which names `path`: FileExistsError where it is there and `replaces` is false.
    """
    # Of another name than anybody expects, who could have made it before, to read what is written.
    new = path.parent / f".{os.urandom(8).hex()}.new"
    try:
        if not replaces and os.path.lexists(path):
            raise FileExistsError
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
        if replaces:
            new.replace(path)
        else:
            _name(new, path)
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise
    finally:
        new.unlink(missing_ok=True)


def _name(new: Path, path: Path) -> None:
    """Give `new` the name `path`, which nobody has meanwhile."""
    try:
        os.link(new, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if os.path.lexists(path):
            raise FileExistsError from None
        new.rename(path)
