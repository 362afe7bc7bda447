"""Modules whose code runs when it is needed: once, whoever asks, and however many at a time."""

import importlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from handler.startup import frugal, shells

INIT = """
import time
from . import below
began = globals().get("began", 0) + 1
time.sleep(0.05)
setting = "default"
assert not hasattr(__import__("shelled"), "never")
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    folder = tmp_path / "shelled"
    folder.mkdir()
    (folder / "__init__.py").write_text(INIT)
    (folder / "below.py").write_text("value = 7\n")
    (folder / "beside.py").write_text("from .below import value\nfrom . import beside\ndouble = 2 * value\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "shelled"
    for name in ("shelled", "shelled.below", "shelled.beside"):
        sys.modules.pop(name, None)


def test_what_lies_below_is_imported_without_it(package: str):
    assert shells.enter(package)
    assert importlib.import_module("shelled.below").value == 7
    assert sys.modules[package].below.value == 7
    assert isinstance(sys.modules[package], shells.Shell)


def test_it_runs_once_for_all_who_ask_at_the_same_time(package: str):
    shells.enter(package)
    module, found = sys.modules[package], []
    threads = [threading.Thread(target=lambda: found.append((module.setting, module.began))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [("default", 1)] * 8
    assert not isinstance(module, shells.Shell)
    with pytest.raises(AttributeError, match="never"):
        _ = module.never


WAITING = """
import threading
began, go_on = threading.Event(), threading.Event()
def wait():
    began.set()
    assert go_on.wait(60)
"""


@pytest.fixture
def crossing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], list[object]]]:
    """Two threads: one imports `slow`, which asks the shell `needs` for `name`; the other asks the shell `asked`.

    That imports `slow` as well, which goes on when both have begun.
    """
    for name, text in {
        "waits": WAITING,
        "asked": "import waits\nvalue = 1\nwaits.go_on.set()\nimport slow\nlate = 2\n",
        "other": "value = 3\n",
    }.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))

    def cross(needs: str, name: str) -> list[object]:
        (tmp_path / "slow.py").write_text(f"import waits\nwaits.wait()\nfrom {needs} import {name} as found\n")
        assert shells.enter("asked")
        assert shells.enter("other")
        waits = importlib.import_module("waits")
        found: list[object] = ["it still waits"] * 2

        def run(number: int, ask: Callable[[], object]) -> None:
            try:
                found[number] = ask()
            except Exception as error:
                found[number] = error

        asks = (lambda: importlib.import_module("slow").found, lambda: sys.modules["asked"].late)
        threads = [threading.Thread(target=run, args=each, daemon=True) for each in enumerate(asks)]
        threads[0].start()
        assert waits.began.wait(60)
        threads[1].start()
        for thread in threads:
            thread.join(60)
        return found

    yield cross
    for name in ("waits", "slow", "asked", "other"):
        sys.modules.pop(name, None)


def test_a_thread_that_is_waited_for_may_ask_another_shell(crossing: Callable[[str, str], list[object]]):
    """As the first heartbeat and the report of an unhealthy worker do: each imports what the other one imports."""
    assert crossing("other", "value") == [3, 2]


def test_threads_that_ask_for_each_other_do_not_wait_for_ever(crossing: Callable[[str, str], list[object]]):
    """As where two ordinary modules import each other: one finds what is there by then, or an error."""
    assert "it still waits" not in crossing("asked", "late")


def test_a_setting_outlives_its_default(package: str):
    shells.enter(package)
    # A module of this test's own, of which no type checker knows.
    sys.modules[package].setting = "mine"  # type: ignore[attr-defined]
    assert (sys.modules[package].setting, sys.modules[package].began) == ("mine", 1)


def test_a_module_that_is_no_package(package: str):
    assert shells.enter("shelled.beside")  # before the package it is in is
    imported = importlib.import_module("shelled.beside")
    assert isinstance(imported, shells.Shell)
    assert not hasattr(imported, "__path__")
    assert (imported.double, type(imported).__name__) == (14, "module")
    shells.tie()
    assert sys.modules[package].beside is imported


@pytest.mark.parametrize(
    "ask",
    [
        "from {} import *; found = sorted(name for name in dir() if name[0] != '_')",
        "import {0}; found = sorted(dir({0}))",
        "import {0}; found = sorted(vars({0}))",
        "import {0}; found = {0}.__doc__",
        "import {0}; found = getattr({0}, '__all__', None), getattr({0}, '__version__', None)",
    ],
)
def test_who_asks_for_all_of_a_module_gets_what_a_process_without_shells_gets(ask: str):
    """numpy.random's names are matplotlib.pylab's: a worker alone would not have found them."""
    names = (*frugal._STANDARD, *frugal._SELDOM_USED, *frugal._FOR_TLS)
    runs = [
        f"import {name}\nspace = {{}}\nexec({ask.format(name)!r}, space)\nprint({name!r}, space['found'])"
        for name in names
    ]
    shells_first = """if True:
        from handler.startup.frugal import be_frugal, import_less
        import_less()
        be_frugal()
        import numpy, asyncio, handler.startup.shells
        handler.startup.shells.tie()  # as the boot does
    """
    said = []
    for first in ("import numpy, asyncio", shells_first):
        code = "\n".join((first, *runs))
        said.append(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True))
    assert said[0].stdout == said[1].stdout, said[1].stderr
    assert len(said[0].stdout.splitlines()) >= len(names), said[0].stderr


def test_what_the_import_asks_for_runs_nothing(package: str):
    shells.enter("shelled.beside")
    imported = importlib.import_module("shelled.beside")
    assert [imported.__name__, imported.__package__] == ["shelled.beside", package]
    assert not hasattr(imported, "__path__")
    assert imported.__spec__ is not None
    assert imported.__cached__ == imported.__spec__.cached
    assert str(imported.__file__) in repr(imported)
    assert isinstance(imported, shells.Shell)


def test_what_is_imported_or_not_there_gets_none(package: str, monkeypatch: pytest.MonkeyPatch):
    module = importlib.import_module(package)
    assert shells.enter(package)
    assert sys.modules[package] is module
    monkeypatch.delitem(sys.modules, "_lsprof", raising=False)
    assert not shells.enter("_lsprof")  # not written in Python
    assert not shells.enter("shelled.below.none")
    assert not shells.enter("no_such_package")
    assert not shells.enter("no_such_package.random")


def test_numpy_works_whole_without_the_packages_that_nobody_asked_for():
    code = """if True:
        from handler.startup.frugal import be_frugal
        be_frugal()
        import sys
        import engine.backends.onnxruntime, tokenizers
        import numpy as np
        names = ("random", "ma", "polynomial", "fft")
        print(*[type(sys.modules["numpy." + name]).__name__ for name in names])
        from numpy.random import Generator
        import numpy.ma.core
        print(np.random.default_rng(0).integers(9), np.ma.array([1, 2], mask=[0, 1]).sum(), np.fft.rfft([1, 2])[0].real)
        print(np.polynomial.Polynomial([1, 2])(2), *[type(sys.modules["numpy." + name]).__name__ for name in names])
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["Shell"] * 4 + ["7", "1", "3.0", "5.0"] + ["module"] * 4, done.stderr
