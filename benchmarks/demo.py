"""`make demo`: real weights, the real client, the real protocol; only the endpoint is emulated."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import arguments
from benchmarks.emulator import EmulatorThread
from benchmarks.exported import BUILD, exported
from benchmarks.weights import minilm_folder
from benchmarks.worker_process import WorkerProcess
from handler.protocol import sdk

RELATED = (
    ("A man is playing a guitar.", "Someone plays music on a string instrument."),
    ("How do I reset my password?", "I forgot my login and need a new one."),
    ("The stock market fell sharply today.", "Shares dropped a lot this afternoon."),
)
UNRELATED = (
    ("A man is playing a guitar.", "The stock market fell sharply today."),
    ("How do I reset my password?", "A recipe for lemon cake with poppy seeds."),
    ("The cat sleeps on the sofa.", "Quarterly revenue grew by eight percent."),
)
_TIMED_JOBS = 100
_MOMENTS = ("ready", "first take")  # counted from the process start; the others are durations


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--out", type=arguments.bundle_to_make, help=f"the bundle (default: {BUILD / 'demo' / 'bundle'})"
    )
    parser.add_argument("--tensorrt", action="store_true", help="build a plan for this GPU and serve from it alone")


def main(args: argparse.Namespace) -> int:
    """Returns 1 when a related pair of sentences does not come out above every unrelated one. Raises RuntimeError."""
    print("1. export sentence-transformers/all-MiniLM-L6-v2")
    folder = args.out or BUILD / ("demo-tensorrt" if args.tensorrt else "demo") / "bundle"
    bundle = exported(minilm_folder(), folder, *(["--plan"] if args.tensorrt else []))
    return _serve(bundle, {"ENGINE": "tensorrt"} if args.tensorrt else {})


def _serve(bundle: Path, env: Mapping[str, str]) -> int:
    print("\n2. boot the worker against an emulated endpoint")
    with EmulatorThread() as emulator, tempfile.TemporaryFile("w+") as log:
        try:
            with WorkerProcess.ours(emulator, bundle, env=env, log=log) as worker:
                print(f"   process start to first job request: {worker.first_take_s * 1e3:.0f} ms")
                endpoint = _client(emulator)
                health = endpoint.run_sync({"health": True})
                if env:
                    print(f"   {health['engine']}: {health['reason']}")
                _print_timeline(health["boot_ms"])
                right = _print_similarities(endpoint)
                _print_latency(endpoint)
                print("\n5. SIGTERM")
                seconds = worker.stop()
        except RuntimeError:
            log.seek(0)
            print(log.read(), file=sys.stderr)
            raise
    if seconds is None or worker.process.returncode:
        raise RuntimeError("the worker did not stop cleanly")
    print(f"   stopped after {seconds * 1e3:.0f} ms with exit code {worker.process.returncode}")
    return 0 if right else 1


def _client(emulator: EmulatorThread) -> Any:
    """RunPod's own client, pointed at the emulator."""
    sdk.without_sleep()
    import runpod

    runpod.endpoint_url_base = emulator.endpoint_url_base
    return runpod.Endpoint(emulator.endpoint_id, api_key=emulator.api_key)


def _print_timeline(boot_ms: dict[str, float]) -> None:
    print("   of which, in ms (some stages run side by side):")
    print("   " + ", ".join(f"{stage} {ms:.0f}" for stage, ms in boot_ms.items() if stage not in _MOMENTS))


def _print_similarities(endpoint: Any) -> bool:
    print("\n3. similarity of sentence pairs")
    scores = {
        kind: [_similarity(endpoint, *pair) for pair in pairs]
        for kind, pairs in (("related", RELATED), ("unrelated", UNRELATED))
    }
    for kind, pairs in (("related", RELATED), ("unrelated", UNRELATED)):
        for score, (first, second) in zip(scores[kind], pairs, strict=True):
            print(f"   {score:5.2f}  {kind:<9}  {first}  |  {second}")
    right = min(scores["related"]) > max(scores["unrelated"])
    print(f"   {'every related pair is above every unrelated one' if right else 'WRONG ORDER'}")
    return right


def _similarity(endpoint: Any, first: str, second: str) -> float:
    a, b = endpoint.run_sync({"texts": [first, second]})["embeddings"]
    return sum(x * y for x, y in zip(a, b, strict=True))


def _print_latency(endpoint: Any) -> None:
    times = []
    for index in range(_TIMED_JOBS):
        begin = time.perf_counter()
        endpoint.run_sync({"text": f"A sentence with a number, {index}, to embed."})
        times.append((time.perf_counter() - begin) * 1e3)
    times.sort()
    print(f"\n4. latency of {_TIMED_JOBS} jobs, one after the other, client to client")
    print(
        f"   p50 {statistics.median(times):.1f} ms, p90 {times[int(0.9 * len(times))]:.1f} ms, max {times[-1]:.1f} ms"
    )
