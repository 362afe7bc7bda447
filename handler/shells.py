"""Packages that are importable at once, and whose `__init__` runs when somebody asks for what it defines.

Rule: imports next to nothing, for it is there to save imports. importlib.util.LazyLoader would not do: in Python 3.11
it loads a package as soon as something below it is imported.
"""

from __future__ import annotations

import importlib
import sys
import threading
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any

_running: set[str] = set()
_lock = threading.RLock()
"""Whoever asks for a name while another thread runs `__init__` waits for it."""


class Shell(ModuleType):
    """A package without what its `__init__` defines; once that has run it is an ordinary module."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        submodule = f"{self.__name__}.{name}"
        if hasattr(self, "__path__") and PathFinder.find_spec(submodule, self.__path__):
            return importlib.import_module(submodule)
        self._run_init()
        return getattr(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """A setting, such as `runpod.api_key`, is set after `__init__` has given it its default."""
        is_new = name not in self.__dict__ and not name.startswith("__") and not isinstance(value, ModuleType)
        if is_new and self.__name__ not in _running:
            self._run_init()
        ModuleType.__setattr__(self, name, value)

    def _run_init(self) -> None:
        """Raises AttributeError where `__init__` itself asks for what it has not defined yet."""
        with _lock:
            if self.__class__ is not Shell:  # another thread was first
                return
            if self.__name__ in _running:
                raise AttributeError(f"{self.__name__} is being imported")
            assert self.__spec__ is not None and self.__spec__.loader is not None
            _running.add(self.__name__)
            try:
                self.__spec__.loader.exec_module(self)
            finally:
                _running.discard(self.__name__)
                self.__class__ = ModuleType  # type: ignore[assignment]


def enter(name: str) -> bool:
    """Put a shell in the place of the package `name`, unless it is imported already. False where there is none."""
    if name in sys.modules:
        return True
    parent, _, child = name.rpartition(".")
    spec = PathFinder.find_spec(name, _path_of(parent) if parent else None)
    if spec is None or spec.submodule_search_locations is None:
        return False
    shell = Shell(name)
    shell.__spec__, shell.__loader__, shell.__file__ = spec, spec.loader, spec.origin
    shell.__path__ = list(spec.submodule_search_locations)
    shell.__package__ = name
    sys.modules[name] = shell
    if parent in sys.modules:
        setattr(sys.modules[parent], child, shell)
    return True


def _path_of(package: str) -> list[str]:
    """Where its modules lie; it need not be imported."""
    if package in sys.modules:
        return list(getattr(sys.modules[package], "__path__", ()))
    spec = PathFinder.find_spec(package)
    return list(spec.submodule_search_locations or ()) if spec is not None else []
