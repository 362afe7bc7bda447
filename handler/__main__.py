"""`BUNDLE=path python -m handler`: two processes, one with the engine, one with the job loop.

Off RunPod (no RUNPOD_WEBHOOK_GET_JOB) the SDK's own local modes answer, in one process: `--test_input JSON`, a
test_input.json in the working directory, or `--rp_serve_api`. So does WORKER_LOOP=sdk. With WORKER_LOOP=http the other
process listens instead (handler/web/front.py).
"""

from __future__ import annotations

from handler.processes import signals

if __name__ == "__main__":  # before what takes longer is imported
    signals.end_at_once()
    from handler.startup.frugal import import_less

    import_less()

import errno
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from engine.errors import WorkerFault
from handler.log import log
from handler.processes import output
from handler.processes.fork import fork, wait_for
from handler.startup.beside import Beside
from handler.startup.timeline import Timeline

if TYPE_CHECKING:
    from engine.config import Settings

_LAST_WORDS_S = 5.0
# While it imports: the engine's process has more to do before it is ready. On two CPUs 5 instead of 0 was a twentieth
# of a boot; 8, 12 and 19 are no different from 5.
_NICENESS = 8
_SIGNAL_HINTS: dict[int, str] = {
    signal.SIGKILL: "; the machine, or the container, may be out of memory",
    signal.SIGBUS: "; a file that is mapped, such as the bundle's weights, was cut or cannot be read",
}
_OF_OUTPUT = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # that of a local job
_OF_OUR_LOOP = ("DRAIN_TIMEOUT_S", "RESULT_TIMEOUT_S")
_CONNECTIONS = 1 << 14  # of a load-balancing worker, whose clients keep theirs open when they have their answers
_STOP_S = 2.0  # for the engine's process to end after its last job
_CLEAN_UP_S = 5.0  # for it to remove what it has fetched so far


def main() -> int:
    """Serve until told to stop. The exit code: 0 after a clean stop, 1 when it cannot start or go on.

    A signal before the job loop or the SDK listens ends the process in handler/processes/signals.py.
    """
    timeline = Timeline()
    signals.end_at_once()
    gc.disable()  # until all is in place: to walk through what is being imported takes a twentieth of the imports
    _open_standard_files()
    try:
        _check_arguments()
        return _serve_stock(timeline) if _is_stock() else _serve(timeline)
    except WorkerFault as error:
        log("ERROR", f"cannot start: {error}")
        return 1


def _check_arguments() -> None:
    on_runpod = "RUNPOD_WEBHOOK_GET_JOB" in os.environ or signals.IS_REALTIME or _loop() == "http"
    if on_runpod and len(sys.argv) == 1:
        return  # argparse costs milliseconds
    from handler.arguments import check

    check(sys.argv[1:], on_runpod=on_runpod)


def _settings() -> Settings:
    from engine.config import Settings
    from handler.processes.limits import allow_files
    from handler.protocol import sdk_environ
    from handler.startup.misspelt import misspelt

    settings = Settings.from_environ(os.environ)
    sdk_environ.settle(os.environ)
    allow_files(settings.max_concurrency, _CONNECTIONS if settings.worker_loop == "http" else 0)
    for name, meant in misspelt(os.environ):
        log("WARN", f"{name} is no setting and changes nothing; did you mean {meant}?")
    return settings


def _open_standard_files() -> None:
    """Where one was closed: else a socket gets its number, and the engine reads what a library prints."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number


def _loop() -> str:
    return os.environ.get("WORKER_LOOP", "").strip().lower()


def _is_local() -> bool:
    return any(arg.startswith(("--test_input", "--rp_serve_api")) for arg in sys.argv)


def _is_stock() -> bool:
    return _is_local() or _loop() == "sdk" or ("RUNPOD_WEBHOOK_GET_JOB" not in os.environ and _loop() != "http")


def _serve_stock(timeline: Timeline) -> int:
    from handler.boot import boot
    from handler.health import mark_ready
    from handler.protocol import sdk_environ
    from handler.protocol.sdk import start_stock

    if signals.IS_SERVER:  # else a reader that has ended, such as `| head`, ends this process as well
        output.install()
    settings = _settings()
    if "RUNPOD_WEBHOOK_GET_JOB" in os.environ and not (_is_local() or signals.IS_REALTIME):
        sdk_environ.check_addresses(os.environ)
    idle = [name for name in _OF_OUR_LOOP if os.environ.get(name, "").strip()]
    if settings.worker_loop == "sdk" and idle:
        log("WARN", f"{' and '.join(idle)}: of no effect with WORKER_LOOP=sdk, whose loop has limits of its own")
    worker = boot(settings, timeline, on_loops=False)  # the SDK's one tells the jobs should the engine hang
    from handler.stock import Watch, answers  # not earlier: a boot imports numpy in its own way

    log("INFO", "ready", engine=worker.choice.engine, reason=worker.choice.reason, boot_ms=timeline.stages)
    worker.batcher.on_lost = _exit_soon
    watch = Watch(settings.engine_timeout_s, _exit_soon)
    watch.start(worker.batcher)
    gc.enable()
    mark_ready()
    try:
        start_stock(answers(worker.handler, settings, worker.counts, watch), settings.max_concurrency)
    except OSError as error:
        if error.errno not in _OF_OUTPUT:
            raise
        log("ERROR", f"cannot go on: {error}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what is still to be flushed
        if isinstance(error, BrokenPipeError):  # whoever read what the SDK prints has ended, such as `| head`
            return 128 + signal.SIGINT
        print(f"cannot go on: the output cannot be written ({error.strerror}); send it elsewhere", file=sys.stderr)
        return 1
    finally:
        signals.ignore()  # the end is a clean one: while the interpreter ends, a second one would kill it
    worker.batcher.close()
    return 0


def _exit_soon(sentence: str) -> None:
    """End the process once the SDK has had time to post the errors of the jobs that ran: it cannot be told to stop."""
    import multiprocessing

    log("ERROR", f"{sentence}; the worker exits")
    time.sleep(_LAST_WORDS_S)
    for child in multiprocessing.active_children():  # the SDK's heartbeat would go on telling that all is well
        child.kill()
    os._exit(1)


def _serve(timeline: Timeline) -> int:
    output.install()
    pid = 0
    end: socket.socket

    def stop_before_ready(signum: int, frame: object) -> NoReturn:
        # Nothing is raised here: while modules load, an exception may end up in a callback that swallows it.
        try:
            if pid:  # it holds no job yet, and perhaps half a bundle, which it removes
                with suppress(OSError):  # it has ended by itself
                    os.kill(pid, signal.SIGTERM)
                    end.shutdown(socket.SHUT_RDWR)  # should it be ready in this very instant
                wait_for(pid, _CLEAN_UP_S)
            output.Patient(1).write(b"told to stop before the first job\n")
        finally:
            os._exit(130 if signum == signal.SIGINT else 0)  # that one is a terminal's

    # Until the job loop listens: as process 1 of a container, a worker without a handler never hears of it.
    for number in signals.ending_signals():
        signal.signal(number, stop_before_ready)
    settings = _settings()
    # Held back until `pid` is known: whoever stops this process then also ends the other one.
    signals.hold()
    # Whatever is imported before the fork is imported by one core, and after it by two.
    try:
        pid, end = fork(lambda end: _serve_engine(end, settings, timeline))
    except OSError as error:
        raise WorkerFault(f"there is no second process to be had for the engine ({error.strerror})") from error
    try:
        signals.release()
        with timeline.stage("front imports" if settings.worker_loop == "http" else "SDK import"):
            serve = Beside(_import_front, niceness=_NICENESS).result()
        return serve(settings, timeline, end)
    finally:
        signals.ignore()  # a second one would leave the other process behind
        end.close()
        status = wait_for(pid, _STOP_S)
        if os.WIFSIGNALED(status):
            by = os.WTERMSIG(status)
            log("ERROR", f"the engine's process was ended by signal {by}{_SIGNAL_HINTS.get(by, '')}")


def _import_front() -> Callable[[Settings, Timeline, socket.socket], int]:
    if _loop() == "http":
        from handler.startup.frugal import import_no_client

        import_no_client()
        from handler.web.front import serve_web

        return serve_web
    from handler.protocol import sdk, sdk_environ

    sdk_environ.check_addresses(os.environ)
    loaded = sdk.load()
    from handler.front import serve_jobs

    return partial(serve_jobs, loaded)


def _serve_engine(end: socket.socket, settings: Settings, timeline: Timeline) -> None:
    signals.end_plainly()  # until there is a job to finish
    signals.release()
    from handler.processes import engine_process

    engine_process.serve(end, settings, timeline)


if __name__ == "__main__":
    sys.exit(main())
