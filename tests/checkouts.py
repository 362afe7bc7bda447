"""A copy of this checkout."""

from __future__ import annotations

import shutil
from pathlib import Path


def copy_checkout(to: Path, root: Path = Path()) -> Path:
    """Copy what lies in `root` to `to`, which may be there, without what .gitignore names.

    That holds for what is committed all the same, as bundle/ may be; and it needs no git, which a source archive lacks.
    """
    lines = (line.partition("#")[0].strip() for line in (root / ".gitignore").read_text().splitlines())
    ignored = shutil.ignore_patterns(".git", *(line.strip("/") for line in lines if line))
    return Path(shutil.copytree(root, to, ignore=ignored, dirs_exist_ok=True))
