"""Fixtures that several folders of tests share."""

from __future__ import annotations

import os
import shutil
import signal
from importlib.util import find_spec
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may wait for a model hub

from engine.probe import cpu_quota
from tests.bundles import write_small_bundle

if find_spec("hypothesis"):  # tests on a GPU need none
    from hypothesis import HealthCheck, settings

    # How long examples take says how busy the machine is. They are the same in every run, so that what makes one red is
    # the change; `pytest --hypothesis-profile search` looks for others.
    settings.register_profile("same", suppress_health_check=[HealthCheck.too_slow], deadline=None, derandomize=True)
    settings.register_profile("search", settings.get_profile("same"), derandomize=False, max_examples=1000)
    settings.load_profile("same")

_MOST_PROCESSES = 8  # each may hold torch and a model, 2 GB


@pytest.hookimpl(optionalhook=True)  # tests on a GPU need no xdist
def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` means: not the host's cores, of which a container may have few.

    One more than those, as for two fifths of their time the tests wait: for processes, timeouts, long polls.
    """
    return min(cpu_quota() + 1, _MOST_PROCESSES)


def pytest_configure() -> None:
    """A shell starts what runs in the background with SIGINT ignored, which every process of a test would inherit."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what must run alone, in a process that has others beside it."""
    if hasattr(config, "workerinput"):
        items[:] = [item for item in items if item.get_closest_marker("alone") is None]


@pytest.fixture(scope="session")
def _small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_bundle(tmp_path_factory.mktemp("small") / "bundle")


@pytest.fixture
def small_bundle(_small_bundle: Path, tmp_path: Path) -> Path:
    """A whole bundle in a few KB: a real tokenizer and a one-node ONNX graph, made without torch."""
    return Path(shutil.copytree(_small_bundle, tmp_path / "small-bundle"))
