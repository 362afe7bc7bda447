"""What runs in the process that talks to RunPod is tested on its event loop."""

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

_OF_THE_FRONT = ("test_connections.py", "test_http1.py", "test_job_loop.py", "test_transport.py")


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The event loops that each test of this folder runs on."""
    return {"uvloop": uvloop.new_event_loop} if item.path.name in _OF_THE_FRONT else {"asyncio": asyncio.new_event_loop}
