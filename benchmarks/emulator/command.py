"""`python -m benchmarks emulator`: serve an endpoint until SIGINT or SIGTERM, one line per job that ends."""

import argparse
import asyncio
import shlex
import signal
import sys

from .records import JobRecord
from .server import Emulator

_KEPT_JOBS = 10_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=_port, default=8008, help="port, 0 for any free one (default: %(default)s)")


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to 65535")
    return int(text)


def main(args: argparse.Namespace) -> int:
    """Serve. Returns 0 after SIGINT or SIGTERM, 1 if the port can't be had."""
    try:
        asyncio.run(_serve(args))
    except OSError as error:
        print(f"can't listen on {args.host}:{args.port}: {error.strerror}; choose another --port", file=sys.stderr)
        return 1
    return 0


async def _serve(args: argparse.Namespace) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    async with Emulator(
        host=args.host,
        port=args.port,
        keep_finished=_KEPT_JOBS,
        on_end=_print_job,
    ) as emulator:
        print(_introduction(emulator), flush=True)
        await stopping.wait()


def _introduction(emulator: Emulator) -> str:
    env = {**emulator.worker_env(), "RUNPOD_LOG_LEVEL": "INFO"}  # who starts it by hand wants to see it ready
    exports = [f"export {name}={shlex.quote(value)}" for name, value in env.items()]
    base = f"{emulator.endpoint_url_base}/{emulator.endpoint_id}"
    return "\n".join(
        [
            "# a worker needs, before it starts:",
            *exports,
            "# the SDK's client needs:",
            f"export RUNPOD_ENDPOINT_BASE_URL={shlex.quote(emulator.endpoint_url_base)}",
            "# a job:",
            f"curl -s {shlex.quote(f'{base}/runsync')} -H {shlex.quote(f'Authorization: Bearer {emulator.api_key}')} "
            "-H 'Content-Type: application/json' -d '{\"input\": {\"health\": true}}'",
            "# id, status, ms in the queue, ms at the worker:",
        ]
    )


def _print_job(record: JobRecord) -> None:
    print(f"{record.id}  {record.status}  {record.queue_ms:.1f}  {record.run_ms:.1f}", flush=True)
