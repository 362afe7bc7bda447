"""`BUNDLE=path python -m handler`: two processes, one with the engine, one with the job loop.

Off RunPod (no RUNPOD_WEBHOOK_GET_JOB) the SDK's own local modes answer, in one process: `--test_input JSON`, a
test_input.json in the working directory, or `--rp_serve_api`. So does WORKER_LOOP=sdk.
"""

from __future__ import annotations

import os
import sys

from engine.config import Settings
from engine.errors import WorkerFault
from handler.log import log
from handler.timeline import Timeline

_STOP_S = 2.0  # for the engine's process to end after its last job


def main() -> int:
    """Serve until told to stop. The exit code: 0 after a clean stop, 1 when the worker cannot start or go on."""
    timeline = Timeline()
    try:
        settings = Settings.from_environ(os.environ)
        if settings.worker_loop == "sdk" or _is_local():
            return _serve_stock(settings, timeline)
        return _serve(settings, timeline)
    except WorkerFault as error:
        log("ERROR", f"cannot start: {error}")
        return 1


def _is_local() -> bool:
    return "RUNPOD_WEBHOOK_GET_JOB" not in os.environ or any(
        arg.startswith(("--test_input", "--rp_serve_api")) for arg in sys.argv
    )


def _serve_stock(settings: Settings, timeline: Timeline) -> int:
    from handler.boot import boot
    from handler.sdk import start_stock

    worker = boot(settings, timeline)
    log("INFO", "ready", engine=worker.choice.engine, reason=worker.choice.reason, boot_ms=timeline.stages)
    start_stock(worker.handler.handle, settings.max_concurrency)
    worker.batcher.close()
    return 0


def _serve(settings: Settings, timeline: Timeline) -> int:
    from handler import engine_process

    pid, end = engine_process.fork(lambda end: engine_process.serve(end, settings, timeline))
    try:
        # From here on both processes load their libraries side by side.
        with timeline.stage("SDK import"):
            from handler import sdk

            loaded = sdk.load()
            from handler.front import serve_jobs
        return serve_jobs(settings, timeline, loaded, end)
    finally:
        end.close()
        engine_process.wait_for(pid, _STOP_S)


if __name__ == "__main__":
    sys.exit(main())
