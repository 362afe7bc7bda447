"""What the command lines have in common: errors are refusals, a misspelt option is told, ~ is a home everywhere."""

from __future__ import annotations

import argparse
import errno
import os
import re
import stat
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from export.errors import Refused

_ALIKE = 0.7


class Parser(argparse.ArgumentParser):
    """Takes options by their whole names only, and raises Refused instead of printing and ending the program."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def add_bundle(self) -> None:
        """The argument BUNDLE."""
        self.add_argument("bundle", type=_bundle_path, metavar="BUNDLE", help="folder of the bundle")

    def add_json(self) -> None:
        """The option --json, which export/__main__.py looks for before anything is parsed."""
        self.add_argument("--json", action="store_true", help="one JSON object on stdout, everything else on stderr")

    def error(self, message: str) -> NoReturn:
        """Refuse, and say which option may have been meant."""
        unknown = re.findall(r" (--[\w-]+)", message) if message.startswith("unrecognized arguments") else ()
        known = [name for one in self._actions if one.help != argparse.SUPPRESS for name in one.option_strings]
        near = get_close_matches(unknown[0], known, 1, _ALIKE) if unknown else ()
        meant = f"did you mean {near[0]}? " if near else ""
        raise Refused(f"{message}; {meant}see {self.prog} --help")


def file_path(text: str) -> Path:
    """The path that an option names; a shell leaves the ~ of --out=~/bundle to the program."""
    return Path(os.path.expanduser(text))


def check_utf8(name: str, place: Any) -> None:
    """Raise Refused for a path of other bytes than UTF-8's: libraries in C++ take none, and no recipe can hold it."""
    try:
        str(place).encode()
    except UnicodeEncodeError:
        shown = str(place).encode(errors="backslashreplace").decode()
        raise Refused(f"{name} {shown} is not UTF-8; rename it, or name another") from None


def _bundle_path(text: str) -> Path:
    """In full where this runs in it: when a changed bundle takes its place, nothing relative leads there any more."""
    path = file_path(text)
    place = Path(os.path.realpath(path))
    return place if Path.cwd().is_relative_to(place) else path


def check_file(path: Path, most_mb: int) -> None:
    """Raise OSError for a file that cannot be read, or may have no end, or keep one waiting for its beginning."""
    found = path.stat()
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device; write its content to a file")
    if found.st_size > most_mb * 10**6:
        raise OSError(errno.EFBIG, f"it has more than {most_mb} MB")
    path.open("rb").close()


def read_file(path: Path, most_mb: int) -> str:
    """The text of a file that a user names. Raises as `check_file`, and UnicodeDecodeError where it is not UTF-8."""
    check_file(path, most_mb)
    return path.read_text(encoding="utf-8")
