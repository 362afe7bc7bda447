"""What runs in the process that talks to RunPod is tested on its event loop."""

import asyncio
import signal
from collections.abc import Callable, Iterator, Mapping

import pytest
import uvloop

from handler.processes.signals import ending_signals

_OF_THE_FRONT = (
    "test_connections.py",
    "test_http1.py",
    "test_job_loop.py",
    "test_names.py",
    "test_pauses.py",
    "test_transport.py",
)


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The event loops that each test of this folder runs on."""
    return {"uvloop": uvloop.new_event_loop} if item.path.name in _OF_THE_FRONT else {"asyncio": asyncio.new_event_loop}


@pytest.fixture(autouse=True)
def _signals_as_they_were() -> Iterator[None]:
    """A job loop listens to signals until its process ends, and uvloop, unlike asyncio, leaves that as it is."""
    before = {number: signal.getsignal(number) for number in ending_signals()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
