"""Virtual environments of peers whose packages do not go with ours: made on demand, kept below build/peers/."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.exported import BUILD
from benchmarks.measure import say

_STAMP = "pins.sha256"


def python_of(name: str, *, pins: Path | None = None, root: Path = BUILD / "peers") -> Path:
    """The interpreter of the peer `name`, its environment made by uv from requirements/peers-NAME.txt if need be.

    Absolute, for a worker may run elsewhere. Raises RuntimeError, with uv's last words, when it cannot be made.
    """
    pins = pins or Path("requirements") / f"peers-{name}.txt"
    if not pins.is_file():
        raise RuntimeError(f"there is no {pins}")
    digest = hashlib.sha256(pins.read_bytes()).hexdigest()
    folder = root / name
    python = (folder / "bin" / "python").absolute()  # not resolved: the link tells the interpreter where it lives
    stamp = folder / _STAMP
    if stamp.is_file() and stamp.read_text() == digest:
        return python
    say(f"{folder}: packages of {pins} (the first time this takes minutes)")
    stamp.unlink(missing_ok=True)  # until the last package is in: an environment is whole or made again
    _uv("venv", "--allow-existing", "--python", sys.executable, str(folder))
    _uv("pip", "sync", "--python", str(python), str(pins))  # what is there already stays, what is not pinned goes
    stamp.write_text(digest)
    return python


def versions(python: Path, packages: Sequence[str]) -> dict[str, str]:
    """The versions of `packages` in the environment of `python`. Raises RuntimeError when one is not there."""
    script = "import json, sys; from importlib.metadata import version; "
    script += "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
    done = subprocess.run([str(python), "-c", script, *packages], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{python} lacks one of {', '.join(packages)}: {done.stderr.strip()[-200:]}")
    found: dict[str, str] = json.loads(done.stdout)
    return found


def with_torch(environment: Mapping[str, Any], python: str | None) -> dict[str, Any]:
    """A results file's environment with the version of the PyTorch that `python` has, where it has one."""
    try:
        found = versions(Path(python), ("torch",)) if python else {}
    except (RuntimeError, OSError):
        found = {}
    return {**environment, "versions": {**environment["versions"], **found}}


def _places() -> tuple[list[str], dict[str, str]]:
    """Where uv is to look for packages, as options and variables: as the Makefile has it, which reads pip's settings.

    Raises RuntimeError.
    """
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--silent", "--no-print-directory", f"PYTHON={sys.executable}", "uv-places"]
    try:
        said = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(f"make does not say where packages are ({error}); run this where the Makefile is") from error
    option, *variables = said.splitlines()
    return option.split(), dict(line.split("=", 1) for line in variables)


def _uv(*arguments: str) -> None:
    beside = Path(sys.executable).parent / "uv"
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is None:
        raise RuntimeError("uv is not installed; run `make setup`")
    no_index, env = _places()
    command = [uv, "--quiet", *arguments, *(no_index if arguments[0] == "pip" else [])]
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"`uv {arguments[0]}` failed: {done.stderr.strip()[-500:]}")
