"""What is wrong with the installed packages, where an import fails: one is missing, or of another version.

Rule: imports nothing that is not Python's own.
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

PINS = Path(__file__).parents[1] / "requirements" / "export.txt"
INSTALL = "pip install -r requirements/export.txt"
_BROUGHT_BY = {"PIL": "pillow", "google": "protobuf", "optimum": "optimum-onnx", "yaml": "pyyaml"}
"""Module -> its package, where that has another name. optimum itself comes with optimum-onnx."""
_PIN = re.compile(r"^([\w.-]+)==(\S+)(.*)$", re.MULTILINE)
_OURS = "(pyproject.toml)"  # ends the line of what the project itself names


def lacking(error: ImportError) -> str:
    """The sentence for an import that failed for want of a package of the export; empty where it is not for that."""
    module, _, inner = (error.name or "").partition(".")
    package = _BROUGHT_BY.get(module, re.sub(r"[-_.]+", "-", module).lower())
    is_pinned = any(package == name for name, _, _ in _pins())
    if isinstance(error, ModuleNotFoundError) and is_pinned and not (inner and installed_version(package)):
        return f"the package {package} is not installed; {INSTALL}"
    others = other_versions()
    return f"{others}; {INSTALL} ({error})" if others else ""


def other_versions() -> str:
    """Which of the packages that the project names are installed in other versions than it was tested with, in words.

    Empty where none is.
    """
    pinned = {name: version for name, version, why in _pins() if why.endswith(_OURS)}
    installed = {name: version for name in pinned if (version := installed_version(name)) is not None}
    return ", ".join(
        f"{name} is {version}, not {pinned[name]}"
        for name, version in installed.items()
        if version.partition("+")[0] != pinned[name]  # torch 2.13.0+cpu is a build of 2.13.0
    )


def _pins() -> list[tuple[str, str, str]]:
    """Name, version and reason of everything in requirements/export.txt; nothing in a copy without that file."""
    try:
        return _PIN.findall(PINS.read_text(encoding="utf-8"))
    except OSError:
        return []


def installed_version(package: str) -> str | None:
    """The version of an installed package; None for one that is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
