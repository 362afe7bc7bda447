"""Engines alone, each in a process of its own, at the same shapes in turn: what `latency` and `throughput` share."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.bert_graph import Shape
from benchmarks.engine_times import Took
from benchmarks.floor_files import files
from benchmarks.measure import say
from benchmarks.targets.pipe import PipeProcess
from benchmarks.trtexec_switches import Switches
from engine.bucket import Bucket
from engine.bundle import open_bundle
from engine.probe import cpu_quota

_TARGETS = Path(__file__).parent / "targets"

_ASK_TORCH = "import torch; print(torch.__version__, torch.cuda.is_available())"
_ASK_S = 120.0

Command = Sequence[str]


@dataclass(frozen=True)
class Asked:
    """A target at every shape: the process that is asked, and how."""

    target: str
    process: str
    """Name of its command."""
    how: str = "copies"


@dataclass
class Found:
    """What each round took, by target and point, None where it failed; and why, by target and point."""

    took: dict[tuple[str, str], list[Took | None]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def times(self) -> Iterator[tuple[str, str, Sequence[float]]]:
        """Target, point, and every time in ms."""
        for (target, point), rounds in self.took.items():
            yield target, point, [ms for one in rounds if one is not None for ms in one.ms]


def point_of(bucket: Bucket) -> str:
    """As points of results files have it."""
    return f"batch {bucket.batch}, {bucket.length} tokens"


def ours(bundle: Path, engine: str, precision: str, shapes: Iterable[Bucket], switches: Switches) -> Command:
    """Our engine; see engines.prepare."""
    found = list(shapes)
    asked = {
        "bundle": str(bundle),
        "engine": engine,
        "precision": precision,
        "batches": sorted({bucket.batch for bucket in found}),
        "lengths": sorted({bucket.length for bucket in found}),
        **switches.engine,
    }
    return [sys.executable, "-m", "benchmarks.targets.engine_alone", json.dumps(asked)]


def floor(bundle: Path) -> Command:
    """ONNX Runtime alone, on the CPU, in fp32 whatever else the bundle has."""
    opened = open_bundle(bundle)
    found = files(replace(opened, manifest=replace(opened.manifest, precision="fp32")))
    script = str(_TARGETS / "onnxruntime_alone.py")
    return [sys.executable, script, str(found.graph), str(int(found.fused)), str(cpu_quota())]


def torch(
    python: str, shape: Shape, modes: Sequence[str], engine: str, precisions: Sequence[str]
) -> dict[str, Command]:
    """A BERT encoder of this shape in PyTorch, by name: in every mode and in every precision beside which it runs.

    On the CPU in fp32 alone. Not in int8, which PyTorch has no layers of its own for on a GPU; that is told.
    """
    on_cpu = engine == "onnxruntime-cpu"
    made: dict[str, Command] = {}
    for precision in ["fp32"] if on_cpu else precisions:
        if precision == "int8":
            say("torch is left out beside int8, in which it does not run; name another precision to compare with it")
            continue
        for mode in modes:
            asked = {
                "shape": asdict(shape),
                "mode": mode,
                "device": "cpu" if on_cpu else "cuda",
                "precision": precision,
            }
            name = "-".join(["torch", mode, *([precision] if precision != "fp32" else [])])
            made[name] = [python, str(_TARGETS / "torch_latency.py"), json.dumps(asked)]
    return made


def torch_python(given: str | None, engine: str) -> str | None:
    """The Python to take for torch: the one given, or else this one where it has torch; "none" is none.

    None as well, and told, where `engine` is on a GPU and that torch is not: the two are no comparison.
    """
    python = given or (sys.executable if find_spec("torch") else "none")
    if python == "none":
        return None
    if engine != "onnxruntime-cpu" and (why := why_no_gpu(python)):
        say(f"torch is left out: {why}; name a Python that has torch for this GPU (--torch-python, TORCH_PYTHON)")
        return None
    return python


def why_no_gpu(python: str) -> str:
    """Why the torch of `python` cannot run on this machine's GPU; empty where it can. Takes seconds."""
    try:
        asked = subprocess.run([python, "-c", _ASK_TORCH], capture_output=True, text=True, timeout=_ASK_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if asked.returncode:
        return f"{python} cannot import torch ({(asked.stderr.strip() or 'no word why').splitlines()[-1]})"
    version, sees = asked.stdout.split()[-2:]
    return "" if sees == "True" else f"{python} has torch {version}, which sees no GPU"


@contextmanager
def started(commands: Mapping[str, Command]) -> Iterator[dict[str, PipeProcess]]:
    """All processes, by name; one that does not start is told and left out, unless it is ours."""
    with ExitStack() as stack:
        running: dict[str, PipeProcess] = {}
        for name, command in commands.items():
            try:
                running[name] = stack.enter_context(PipeProcess(command, log=None))
            except (RuntimeError, OSError) as error:
                if name.startswith("ours"):
                    raise
                say(f"{name} is left out: {error}")
        yield running


def measure(
    processes: Mapping[str, PipeProcess],
    asked: Sequence[Asked],
    shapes: Sequence[Bucket],
    rounds: int,
    switches: Switches,
    *,
    point: Callable[[Bucket], str] = point_of,
) -> Found:
    """Every target at every shape, one after the other at each, `rounds` times. One process runs, the others wait."""
    found = Found()
    for number in range(rounds):
        for bucket in shapes:
            say(f"round {number + 1} of {rounds}: {point(bucket)}")
            for one in asked:
                if one.process not in processes:
                    continue
                where = (one.target, point(bucket))
                question: dict[str, Any] = {"how": one.how, "batch": bucket.batch, "length": bucket.length}
                try:
                    answer = processes[one.process].ask({**question, **switches.limits}, timeout_s=600.0)
                except RuntimeError as error:
                    found.errors[", ".join(where)] = str(error)
                    found.took.setdefault(where, []).append(None)
                    continue
                if answer["ms"] is not None:  # there is no such thing: an engine without copies to leave out
                    found.took.setdefault(where, []).append(Took(answer["ms"], answer["seconds"]))
    return found
