"""What the command lines have in common: errors are refusals, a misspelt option is told, ~ is a home everywhere."""

from __future__ import annotations

import argparse
import os
import re
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
        self.add_argument("bundle", type=file_path, metavar="BUNDLE", help="folder of the bundle")

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
