"""`BUNDLE=path python -m handler`: boot, then the job loop.

Off RunPod (no RUNPOD_WEBHOOK_GET_JOB) the SDK's own local modes answer: `--test_input '{"input": ...}'`, a
test_input.json in the working directory, or `--rp_serve_api`.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from handler.timeline import Timeline

if TYPE_CHECKING:
    from handler.boot import Worker


def main() -> int:
    """Serve until told to stop. Returns the exit code: 0 after a clean stop, 1 when the worker cannot start."""
    timeline = Timeline()
    from engine.config import Settings
    from engine.errors import WorkerFault
    from handler.boot import boot
    from handler.log import log

    try:
        settings = Settings.from_environ(os.environ)
        stock = settings.worker_loop == "sdk" or _is_local()
        worker = boot(settings, timeline, with_sdk=not stock)
    except WorkerFault as error:
        log("ERROR", f"cannot start: {error}")
        return 1
    log("INFO", f"engine {worker.choice.engine}: {worker.choice.reason}")
    if stock:
        from handler.sdk import start_stock

        _log_ready(worker)
        start_stock(worker.handler.handle, settings.max_concurrency)
    else:
        import asyncio

        asyncio.run(_serve(worker))
    worker.batcher.close()
    return 0


def _is_local() -> bool:
    return "RUNPOD_WEBHOOK_GET_JOB" not in os.environ or any(
        arg.startswith(("--test_input", "--rp_serve_api")) for arg in sys.argv
    )


async def _serve(worker: Worker) -> None:
    from handler.job_loop import JobLoop

    settings = worker.settings
    assert worker.sdk is not None
    heartbeats = []
    sdk = worker.sdk

    def first_take() -> None:
        # The poll is on its way. The ping process starts only now: its imports would share our cores.
        from handler.heartbeat import Heartbeat

        worker.timeline.mark("first take")
        heartbeats.append(Heartbeat(os.environ))
        sdk.progress.set_mirror(heartbeats[0])
        _log_ready(worker)

    loop = JobLoop(
        sdk,
        worker.handler.handle,
        concurrency_modifier=lambda current: settings.max_concurrency,
        drain_timeout_s=settings.drain_timeout_s,
        result_timeout_s=settings.result_timeout_s,
        debug=settings.debug,
        on_first_take=first_take,
    )
    try:
        await loop.run()
    finally:
        for heartbeat in heartbeats:
            heartbeat.stop()


def _log_ready(worker: Worker) -> None:
    from handler.log import log

    log("INFO", "ready", boot_ms=worker.timeline.stages, engine=worker.choice.engine)


if __name__ == "__main__":
    sys.exit(main())
