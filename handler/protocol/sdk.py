"""RunPod's SDK, imported for its protocol alone. Rule: the only file that knows where things lie inside the SDK.

`import runpod` runs a second of sleep (py-cpuinfo measures the clock) and loads an SSH client, a GraphQL client and a
command line. A worker needs four of its modules. So its packages are entered through shells: their `__init__` runs
only when somebody asks for a name that it defines, which a fork's `import runpod; runpod.Endpoint` still can. What
those four modules import and a worker does not call is not loaded either: tomlkit (writes credentials), requests (until
the heartbeat pings with it) and aiohttp (connections.py and http1.py are the worker's HTTP).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

from engine.errors import ConfigError
from engine.fetching import authorities
from handler.log import log
from handler.processes import signals
from handler.protocol import trust
from handler.protocol.http1 import StatusError
from handler.startup import shells

TESTED_VERSION = "1.12.0"
_UVICORN_DID_NOT_START = 3  # the code that it exits with
_PR_SET_PDEATHSIG = 1

_SHELLS = (
    "runpod",
    "runpod.serverless",
    "runpod.serverless.utils",
    "runpod.cli",
    "runpod.cli.groups",
    "runpod.cli.groups.config",
    "tomlkit",
)


def _enter_through_shells() -> None:
    if "runpod" in sys.modules:  # somebody imported it before us: nothing left to save
        return
    if importlib.util.find_spec("runpod") is None:
        raise ConfigError("the RunPod SDK is not installed; install requirements/cpu.txt or requirements/all.txt")
    for name in _SHELLS:
        if not shells.enter(name):
            return  # the SDK's layout changed: import the rest of it in the ordinary way
    _tell_version()


def _tell_version() -> None:
    """Put `runpod.version` in place: it would have importlib.metadata read its number with the parser of e-mails.

    That is a fifth of the SDK's import.
    """
    version = shells.version_of("runpod")
    if version is not None:
        module = sys.modules["runpod.version"] = ModuleType("runpod.version")
        module.__version__ = version  # type: ignore[attr-defined]


class _StandIn:
    """A class of a library that is not loaded: what is called is the real one."""

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        """An object of the real class."""
        return getattr(importlib.import_module(cls.__module__), cls.__name__)(*arguments, **options)


def _module(name: str, classes: dict[str, type] | None = None, *callables: str) -> ModuleType:
    module = ModuleType(name)
    for one in callables:
        setattr(module, one, type(one, (_StandIn,), {"__module__": name}))
    for one, found in (classes or {}).items():
        setattr(module, one, found)
    return module


def _stand_ins() -> dict[str, ModuleType]:
    """What the SDK's modules take from libraries, by library: to derive from, to catch, and to call one day."""
    # As in aiohttp, where JSON that cannot be read is a ValueError: what is caught as a ContentTypeError has `content`.
    caught = {"ClientError": OSError, "ContentTypeError": StatusError, "ClientResponseError": StatusError}
    return {
        "aiohttp": _module("aiohttp", caught, "ClientSession", "ClientTimeout", "TCPConnector"),
        "aiohttp_retry": _module("aiohttp_retry", {}, "FibonacciRetry", "RetryClient"),
        "requests": _module("requests", {"Session": object}),
    }


@contextmanager
def _without(*libraries: str) -> Iterator[None]:
    """Modules of the SDK that are imported meanwhile do not load `libraries`; those that are loaded they get."""
    put = {name: module for name, module in _stand_ins().items() if name in libraries and name not in sys.modules}
    sys.modules.update(put)
    try:
        yield
    finally:
        for name in put:
            del sys.modules[name]


def _load_http_client() -> ModuleType:
    """runpod.http_client without requests; its SyncClientSession is made when it is first asked for."""
    name = "runpod.http_client"
    if name in sys.modules:
        return sys.modules[name]
    client = importlib.import_module(name)
    if client.requests.__spec__ is None:  # the stand-in
        del client.requests, client.SyncClientSession
        client.__class__ = shells.Shell
    return client


def without_sleep() -> None:
    """Give `cpuinfo` a stand-in: only the SDK's debugger uses it, to show the processor's name."""
    if "cpuinfo" not in sys.modules:
        stand_in = ModuleType("cpuinfo")
        stand_in.get_cpu_info = lambda: {"brand_raw": "unknown"}  # type: ignore[attr-defined]
        sys.modules["cpuinfo"] = stand_in


@dataclass(frozen=True)
class Sdk:
    """The SDK's protocol functions that the job loop calls."""

    get_job: Any
    """async (session, count) -> list of jobs or None; raises TooManyRequests, what the session raises, Exception."""
    get_stop_signals: Any
    """async (session) -> list of job ids."""
    too_many_requests: type[Exception]
    auth_header: Any
    """() -> headers of every request."""
    progress: Any
    """The set of running job ids; what it is told, a mirror passes on to the heartbeat."""
    job_take_url: str
    """Of a take; a batch's is beside it."""
    job_done_url: str
    """With $ID for the job's id."""
    job_stream_url: str


def load() -> Sdk:
    """Import the protocol modules. Raises ConfigError when the SDK has moved what this worker calls."""
    without_sleep()
    _enter_through_shells()
    try:
        with _without("aiohttp", "aiohttp_retry", "requests"):
            # By name, and untyped: the SDK ships no types.
            http_client = _load_http_client()
            rp_job = importlib.import_module("runpod.serverless.modules.rp_job")
            rp_http = importlib.import_module("runpod.serverless.modules.rp_http")
            worker_state = importlib.import_module("runpod.serverless.modules.worker_state")
        return Sdk(
            get_job=rp_job.get_job,
            get_stop_signals=rp_job.get_stop_signals,
            too_many_requests=rp_job.TooManyRequests,  # what get_job raises; http_client may have been run anew since
            auth_header=http_client.get_auth_header,
            progress=worker_state.JobsProgress(),
            job_take_url=rp_job.JOB_GET_URL,
            job_done_url=rp_http.JOB_DONE_URL,
            job_stream_url=rp_http.JOB_STREAM_URL,
        )
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"this RunPod SDK is not the one that was tested ({TESTED_VERSION}): {error}; "
            f"install runpod=={TESTED_VERSION} or set WORKER_LOOP=sdk"
        ) from error


def heartbeat() -> Any:
    """The SDK's Heartbeat, whose pings go the way that jobs take."""
    with _without("aiohttp"):
        found = importlib.import_module("runpod.serverless.modules.rp_ping").Heartbeat
    if "make" not in vars(found):
        found.make = found.__init__
        found.__init__ = _make_heartbeat
    return found


def _make_heartbeat(self: Any, *arguments: Any, **options: Any) -> None:
    self.make(*arguments, **options)
    _take_the_way_of_jobs(self._session)


def _take_the_way_of_jobs(session: Any) -> Any:
    """`session`, of requests, without rules of its own; pings that are lost to them cost a worker its jobs.

    It would ask the environment for a proxy, for REQUESTS_CA_BUNDLE and for ~/.netrc, trust certifi's authorities
    instead of those of engine/fetching/authorities.py, and sleep for as long as a Retry-After says.
    """
    session.trust_env = False
    for adapter in session.adapters.values():
        adapter.max_retries = adapter.max_retries.new(respect_retry_after_header=False)
    if os.environ.get("RUNPOD_WEBHOOK_PING", "").startswith("https://"):
        adapter = session.get_adapter("https://")
        adapter.poolmanager.connection_pool_kw["ssl_context"] = authorities.client_context()
        adapter.cert_verify = lambda *_: None  # it would add certifi's to that context, which verifies by itself
    return session


def report_unhealthy(check: str, reason: str) -> None:
    """Tell RunPod that this worker is to be replaced, as the SDK does for a failed fitness check. Best effort."""
    try:
        client: Any = importlib.import_module("runpod.http_client")
        fitness = importlib.import_module("runpod.serverless.modules.rp_fitness")
        make = client.SyncClientSession
        client.SyncClientSession = lambda: _take_the_way_of_jobs(make())
        try:
            fitness._report_unhealthy(check, reason)
        finally:
            client.SyncClientSession = make
    except Exception as error:  # the worker exits all the same, and RunPod sees that too
        log("WARN", f"reporting the worker as unhealthy failed: {type(error).__name__}: {error}")


def start_stock(handler: Any, max_concurrency: int) -> None:
    """The stock loop, local test modes included. Returns or exits as the SDK decides."""
    without_sleep()
    with trust.at_once():
        runpod = importlib.import_module("runpod")
    _salvage_what_cannot_be_read(importlib.import_module("aiohttp").ClientResponse)
    pings = heartbeat()
    pings.process_loop = staticmethod(partial(_ping_until_we_end, getattr(pings, "process_loop", None)))
    if signals.IS_SERVER:
        _check_shared_memory()
    else:  # the SDK's own would end with code 0 a job that has no answer, and the interpreter under a running engine
        runpod.serverless._signal_handler = signal.getsignal(signal.SIGINT)
    os.register_at_fork(after_in_child=signals.end_plainly)  # the process that it pings from is stopped by a signal
    try:
        runpod.serverless.start({"handler": handler, "concurrency_modifier": lambda current: max_concurrency})
    except SystemExit as end:
        if end.code != _UVICORN_DID_NOT_START:
            raise
        raise ConfigError(
            "the RunPod SDK's server cannot listen, as its line above says; see --rp_api_host and --rp_api_port, or "
            "RUNPOD_REALTIME_PORT"
        ) from None


def _ping_until_we_end(process_loop: Any, *arguments: Any) -> None:
    """In the process that the SDK pings from: alone it would go on telling that the worker is there."""
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # when the thread ends that forked us: the main one
    process_loop(*arguments)


def _check_shared_memory() -> None:
    """Raise ConfigError where the SDK would not get what it shares with the process that it pings from."""
    try:
        importlib.import_module("runpod.serverless.modules.worker_state").PingJobMirror()
    except OSError as error:
        raise ConfigError(
            f"the RunPod SDK's own loop and server need shared memory, and /dev/shm has none ({error.strerror}); give "
            "the container some (docker run --shm-size 64m), or leave out WORKER_LOOP=sdk"
        ) from error


def _salvage_what_cannot_be_read(response: Any) -> None:
    """Let the SDK find the jobs in a reply that it, or Python's JSON reader, refuses, as transport.py does."""
    import asyncio

    from handler.protocol.take_body import salvage

    read_json = response.json

    async def salvaged(self: Any, **options: Any) -> Any:
        try:
            found = await read_json(self, **options)
        except (ValueError, RecursionError):
            return await asyncio.to_thread(salvage, await self.read())
        # It refuses a lone job without input, and passes on one in a list, which stock.py then answers.
        return [found] if isinstance(found, dict) and "id" in found and "input" not in found else found

    response.json = salvaged
