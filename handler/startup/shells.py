"""Modules that are importable at once, and whose code runs when somebody asks for what it defines.

Rule: imports next to nothing, for it is there to save imports. importlib.util.LazyLoader would not do: in Python 3.11
it loads a package as soon as something below it is imported.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import threading
from contextlib import ExitStack
from importlib import _bootstrap
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

_untied: list[str] = []
"""Shells below packages that were not imported yet."""
_running: dict[str, int] = {}
"""The thread that runs each shell's code."""


class Shell(ModuleType):
    """A module without what its code defines, a package's `__init__`; once that has run it is an ordinary one."""

    def __getattribute__(self, name: str) -> Any:
        """Of what a shell has by itself, these two are the code's: `vars`, `dir` and `import *` read the first."""
        if name in ("__dict__", "__doc__") and not _runs_here(self):
            _run(self)
        return ModuleType.__getattribute__(self, name)

    def __getattr__(self, name: str) -> Any:
        if name == "__path__":  # Python's import asks for it; all else that it asks for `enter` has set
            raise AttributeError(name)
        submodule = f"{self.__name__}.{name}"
        if not name.startswith("__") and hasattr(self, "__path__") and PathFinder.find_spec(submodule, self.__path__):
            return importlib.import_module(submodule)
        _run(self)
        return getattr(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """A setting, such as `runpod.api_key`, is set after the code has given it its default."""
        is_code = not name.startswith("__") and not isinstance(value, ModuleType)
        if is_code and not _runs_here(self) and name not in ModuleType.__getattribute__(self, "__dict__"):
            _run(self)
        ModuleType.__setattr__(self, name, value)


def _runs_here(shell: ModuleType) -> bool:
    """Whether it is the code of `shell` that asks, or what it calls."""
    return _running.get(shell.__name__) == threading.get_ident()


def _run(shell: ModuleType) -> None:
    """Let the code of `shell` run. Raises AttributeError where it itself asks for what it has not defined yet.

    No method: whoever waits here finds that it is a shell no longer. Whoever asks while another thread runs it waits,
    on the lock that an import of this module takes. Any other would know nothing of the locks of modules that each of
    the two threads is importing, and may be held by one that waits for the other; Python's tell when nobody could go
    on.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(_bootstrap._ModuleLockManager(shell.__name__))  # type: ignore[attr-defined]
        except _bootstrap._DeadlockError as error:  # type: ignore[attr-defined]
            raise AttributeError(f"{shell.__name__} is being imported by a thread that waits for this one") from error
        if shell.__class__ is not Shell:  # another thread was first
            return
        if shell.__name__ in _running:
            raise AttributeError(f"{shell.__name__} is being imported")
        assert shell.__spec__ is not None and shell.__spec__.loader is not None
        _running[shell.__name__] = threading.get_ident()
        try:
            shell.__spec__.loader.exec_module(shell)
        finally:
            del _running[shell.__name__]
            shell.__class__ = ModuleType  # type: ignore[assignment]


def enter(name: str) -> bool:
    """Put a shell in the place of a module in Python, unless it is imported already. False where there is none."""
    if name in sys.modules:
        return True
    spec = _spec_of(name)
    if spec is None or not isinstance(spec.loader, SourceFileLoader):
        return False
    shell = Shell(name)
    shell.__spec__, shell.__loader__, shell.__file__, shell.__cached__ = spec, spec.loader, spec.origin, spec.cached
    if spec.submodule_search_locations is not None:
        shell.__path__ = list(spec.submodule_search_locations)
    shell.__package__ = spec.parent
    sys.modules[name] = shell
    if "." in name:
        _untied.append(name)
        tie()
    return True


def tie() -> None:
    """Make shells what imported modules are, attributes of their packages; again once those are imported as well."""
    for name in list(_untied):
        parent, _, child = name.rpartition(".")
        if parent in sys.modules and name in sys.modules:
            setattr(sys.modules[parent], child, sys.modules[name])
            _untied.remove(name)


def _spec_of(name: str) -> ModuleSpec | None:
    """Where a module lies; its packages need not be imported."""
    parent, *_ = name.rpartition(".")
    if not parent:
        return PathFinder.find_spec(name)
    package = sys.modules.get(parent)
    if package is not None:
        return PathFinder.find_spec(name, getattr(package, "__path__", ()))
    spec = _spec_of(parent)
    return PathFinder.find_spec(name, spec.submodule_search_locations or ()) if spec is not None else None


def version_of(name: str) -> str | None:
    """The version of an imported package, from the name of the folder beside it; None where that is not plain.

    importlib.metadata would read it with the parser of e-mails.
    """
    pattern = re.compile(rf"{re.escape(name)}-(.+)\.dist-info")
    beside = os.listdir(os.path.dirname(sys.modules[name].__path__[0]))
    found = [match[1] for one in beside if (match := pattern.fullmatch(one))]
    return found[0] if len(found) == 1 else None
