"""What the command lines have in common: errors are refusals, a misspelt option is told, ~ is a home everywhere."""

from __future__ import annotations

import argparse
import os
import re
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

from export.errors import Refused

_ALIKE = 0.7


class Parser(argparse.ArgumentParser):
    """Raises Refused instead of printing and ending the program."""

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
