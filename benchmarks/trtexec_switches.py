"""trtexec's useful switches, under its names and with its meaning, for `latency` and `throughput`.

    --warmUp MS        run for so long before anything counts
    --duration S       measure for at least so long, and
    --iterations N     at least so many runs
    --percentile P,P   what is reported beside the median
    --useCudaGraph, --noCudaGraph, --noDataTransfers, --useSpinWait, --streams N (trtexec: --infStreams)
                       how a TensorRT engine is run; other engines have nothing of the kind, and refuse them by name
    --exportTimes FILE every single time, as JSON

The defaults differ where the worker does: it always replays a CUDA graph, and CUDA spins while it waits for the GPU, as
it does for trtexec with --useSpinWait alone; so here both are the default. None of those for TensorRT has run on a GPU
yet.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import arguments
from benchmarks.measure import write_json

_GPU_ENGINE = "tensorrt"


@dataclass(frozen=True)
class Switches:
    """How long is measured and how an engine is run; what trtexec's help says of each."""

    warm_up_ms: float = 200.0
    duration_s: float = 3.0
    iterations: int = 10
    percentiles: tuple[float, ...] = (90.0, 95.0, 99.0)
    cuda_graph: bool = True
    data_transfers: bool = True
    streams: int = 1
    export_times: Path | None = None

    @property
    def limits(self) -> dict[str, float]:
        """What a process that measures is asked with."""
        return {"warm_up_ms": self.warm_up_ms, "duration_s": self.duration_s, "iterations": self.iterations}

    @property
    def engine(self) -> dict[str, Any]:
        """How our engine is to be run."""
        return {"cuda_graph": self.cuda_graph, "streams": self.streams}

    @property
    def metrics(self) -> dict[str, float]:
        """Name of a metric -> percentile, the median first."""
        return {f"p{percent:g}_ms": percent for percent in dict.fromkeys((50.0, *self.percentiles))}

    def as_options(self) -> dict[str, Any]:
        """For the options of a results file."""
        found = asdict(self)
        del found["export_times"]
        return {**found, "percentiles": list(self.percentiles)}


def add_switches(parser: argparse.ArgumentParser, *, duration_s: float) -> None:
    """Declare the switches."""
    group = parser.add_argument_group("as trtexec has them")
    group.add_argument(
        "--warmUp",
        type=arguments.not_negative,
        default=200.0,
        metavar="MS",
        help="before each figure (default: %(default)g)",
    )
    group.add_argument(
        "--duration",
        type=arguments.not_negative,
        default=duration_s,
        metavar="S",
        help="at least (default: %(default)g)",
    )
    group.add_argument(
        "--iterations", type=arguments.count, default=10, metavar="N", help="at least (default: %(default)s)"
    )
    group.add_argument(
        "--percentile",
        type=arguments.percentages,
        default=(90.0, 95.0, 99.0),
        metavar="P,P",
        help="(default: 90,95,99)",
    )
    graph = group.add_mutually_exclusive_group()
    graph.add_argument(
        "--useCudaGraph", action="store_true", help="replay a CUDA graph, as the worker does (default: on)"
    )
    graph.add_argument("--noCudaGraph", action="store_true", help="queue copies and kernels one by one")
    group.add_argument("--noDataTransfers", action="store_true", help="the run alone, its inputs on the device already")
    group.add_argument(
        "--useSpinWait", action="store_true", help="spin while the GPU runs, as the worker does (default: on)"
    )
    group.add_argument(
        "--streams", type=arguments.count, default=1, metavar="N", help="so many engines at once (default: %(default)s)"
    )
    group.add_argument(
        "--exportTimes", type=arguments.new_file, metavar="FILE", help="write every single time to it, as JSON"
    )


def switches_of(args: argparse.Namespace, engine: str) -> Switches:
    """The switches, for `engine`. Raises ValueError that names those which have no meaning for it."""
    if engine != _GPU_ENGINE:
        given = [name for name in ("useCudaGraph", "noDataTransfers", "useSpinWait") if getattr(args, name)]
        given += ["streams"] * (args.streams > 1)
        if given:
            named = ", ".join(f"--{name}" for name in given)
            raise ValueError(f"{named}: no meaning for {engine}, leave it out or take --engine {_GPU_ENGINE}")
    return Switches(
        warm_up_ms=args.warmUp,
        duration_s=args.duration,
        iterations=args.iterations,
        percentiles=args.percentile,
        cuda_graph=not args.noCudaGraph,
        data_transfers=not args.noDataTransfers,
        streams=args.streams,
        export_times=args.exportTimes,
    )


def notes(args: argparse.Namespace, engine: str) -> list[str]:
    """What is given and changes nothing, a sentence each."""
    if engine != _GPU_ENGINE and args.noCudaGraph:
        return [f"--noCudaGraph changes nothing: {engine} has no CUDA graph"]
    return []


def export_times(path: Path, times: Iterable[tuple[str, str, Sequence[float]]]) -> None:
    """Write every time of every target and point to `path`; the time under trtexec's name, latencyMs."""
    rows = [{"target": target, "point": point, "latencyMs": ms} for target, point, took in times for ms in took]
    write_json(path, rows)
