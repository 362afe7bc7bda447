"""Why a folder is no bundle, and what to do. Loaded only then: a worker that boots has one."""

from __future__ import annotations

import shlex
from pathlib import Path

from engine.bundle import MANIFEST, VOLUME


def no_bundle(path: Path) -> str:
    """A sentence for `path`, which has no manifest. Raises OSError where it cannot be looked at."""
    try:
        path.absolute()
    except FileNotFoundError:
        return f"{path} is relative to a working directory that was deleted; start in another, or name the whole path"
    if path.is_file():
        return f"{path} is a file, and a bundle is a folder; name the folder that holds {MANIFEST}"
    if path.is_relative_to(VOLUME) and not VOLUME.exists():
        return f"{path} is not a bundle (there is no {VOLUME}); attach the network volume to the endpoint"
    what = f"no {MANIFEST}" if path.exists() else "no such folder"
    # What is there already is not overwritten by an export.
    out = "bundle" if path.is_dir() and any(path.iterdir()) else shlex.quote(str(path))
    is_like_a_repository = len(path.parts) == 2 and not path.is_absolute() and not path.parent.exists()
    other = ", or set BUNDLE_REPO where that is a repository of the Hub which holds one" if is_like_a_repository else ""
    return f"{path} is not a bundle ({what}); make one with `python -m export MODEL --out {out}`{other}"
