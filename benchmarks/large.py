"""`python -m benchmarks large`: the memory that exporting a model of 1.3 GB takes, stage by stage, and booting it.

The model is of BERT-large's size with seeded random weights. Memory is that of the whole process tree, its share of
what is shared counted once (PSS: mapped files included), sampled every 50 ms.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import psutil

from benchmarks import readme
from benchmarks.exported import BUILD
from benchmarks.measure import markdown
from benchmarks.processes import tree_memory_mb
from benchmarks.results_file import Measurement, Results, earlier, environment, read, write
from export.command.progress import size_of
from export.precision.options import PRECISIONS

RESULTS = Path(__file__).parent / "results" / "large-model.json"
PAGE = Path(__file__).parents[1] / "docs" / "large-models.md"
LIMIT = 4.0
"""Peak memory of an export, in sizes of the weights."""
SHAPE: Mapping[str, int] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "vocab_size": 30522,
}
_SCENARIO, _POINT = "large", "BERT-large"
_EVERY_S = 0.05
_MB = 1e6
_WRITE = "import sys; from benchmarks.large import write_model; write_model(sys.argv[1])"
_BOOT = "import sys; from benchmarks.large import boot; boot(*sys.argv[1:])"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to export."""
    parser.add_argument("--precision", choices=PRECISIONS, default="fp16", help="of the bundle (default: %(default)s)")


def main(args: argparse.Namespace) -> int:
    """Export, boot, write results and page; 1 when the export took more than LIMIT times the weights."""
    run = measured(BUILD / "large", args.precision)
    record(run)
    print(table())
    readme.write(PAGE)
    return int(run.export.peak > LIMIT * run.weights)


@dataclass
class Watched:
    """A process tree that has ended."""

    seconds: float
    peak: int
    """Bytes."""
    stages: dict[str, int] = field(default_factory=dict)
    """Line of output -> peak until it was printed, since the line before."""
    output: list[str] = field(default_factory=list)


@dataclass
class Run:
    """What one export and one boot took; sizes in bytes."""

    precision: str
    weights: int
    bundle: int
    export: Watched
    boot: Watched


def measured(folder: Path, precision: str) -> Run:
    """Make the model, export it, boot the bundle; each in a process of its own. Raises RuntimeError when one fails."""
    folder.mkdir(parents=True, exist_ok=True)
    model, bundle = folder / "model", folder / "bundle"
    if not (model / "model.safetensors").exists():
        watch([sys.executable, "-c", _WRITE, str(model)])
    shutil.rmtree(bundle, ignore_errors=True)
    # On the CPU fp16 is slower than fp32 and no smaller in memory, so that no bundle is made for it.
    targets = ["--targets", "tensorrt"] if precision in ("fp16", "bf16") else []
    options = ["--task", "feature-extraction", "--precision", precision, *targets]
    export = watch([sys.executable, "-m", "export", str(model), "--out", str(bundle), *options])
    boot = watch([sys.executable, "-c", _BOOT, str(bundle), precision])
    return Run(precision, (model / "model.safetensors").stat().st_size, size_of(bundle), export, boot)


def write_model(folder: str) -> None:
    """Write the model: seeded random weights, the tokenizer of the zoo."""
    from benchmarks.zoo.text import task_model

    task_model(Path(folder), "feature-extraction", "bert", **SHAPE, max_position_embeddings=512, initializer_range=0.02)


def boot(bundle: str, precision: str) -> None:
    """Open the bundle's graph of `precision` and answer one job; prints the largest component of the embedding."""
    from benchmarks.models import ask

    reply = ask(Path(bundle), {"text": "a text of some words that is embedded"}, precision)
    print(max(map(abs, reply["embedding"])))


def watch(command: Sequence[str]) -> Watched:
    """Run `command` to its end and watch the memory of its process tree. Raises RuntimeError when it fails."""
    begin = time.monotonic()
    with tempfile.TemporaryFile("w+") as errors:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        found = Watched(0.0, 0)
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment) as process:
            sampler = _Sampler(process.pid)
            assert process.stdout is not None
            for line in process.stdout:
                found.output.append(line.rstrip())
                name = line.split(" ")[0].strip() or "end"
                found.stages[name] = max(found.stages.get(name, 0), sampler.since_last())
            code = process.wait()
            sampler.stop()
        if code:
            errors.seek(0)
            raise RuntimeError(f"{' '.join(command[1:4])} ended with {code}: {errors.read()[-2000:]}")
    found.seconds, found.peak = time.monotonic() - begin, sampler.peak
    return found


class _Sampler(threading.Thread):
    """The peak of a process tree's memory, in bytes."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._pid, self._recent, self._stopped = pid, 0, threading.Event()
        self.start()

    def run(self) -> None:
        while not self._stopped.wait(_EVERY_S):
            now = 0
            with contextlib.suppress(psutil.Error):  # it has ended
                now = round(tree_memory_mb(self._pid)["pss_mb"] * _MB)
            self.peak, self._recent = max(self.peak, now), max(self._recent, now)

    def since_last(self) -> int:
        """The peak since the last call."""
        found, self._recent = self._recent, 0
        return found

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def record(run: Run, path: Path = RESULTS) -> None:
    """Write the results file: this precision's figures anew, the others' as they are."""
    before = read(path) if path.exists() else None
    targets = {"weights", f"export {run.precision}", f"boot {run.precision}"}
    kept = [one for one in before.measurements if one.target not in targets] if before else []
    floor = ("weights", _POINT, "size_mb")
    new = [
        Measurement(_SCENARIO, "weights", _POINT, "size_mb", "MB", "lower", (_megabytes(run.weights),)),
        *(
            Measurement(
                _SCENARIO, f"{step} {run.precision}", _POINT, "peak_mb", "MB", "lower", (_megabytes(found.peak),), floor
            )
            for step, found in (("export", run.export), ("boot", run.boot))
        ),
    ]
    details = {
        "seconds": {"export": round(run.export.seconds, 1), "boot": round(run.boot.seconds, 1)},
        "bundle_mb": _megabytes(run.bundle),
        "stages_peak_mb": {name: _megabytes(peak) for name, peak in run.export.stages.items() if peak},
        "output": [*takewhile(bool, run.export.output)],  # the stages; what comes behind names folders
    }
    now, old = environment(), before.details["runs"] if before else {}
    others = earlier(before, now, (name for name in old if name != run.precision)) if before else []
    found = {"runs": {**old, run.precision: details}, "earlier": others}
    write(path, Results(now, {"limit": LIMIT, **SHAPE}, (*kept, *new), found))


def _megabytes(size: int) -> float:
    return round(size / _MB)


def table() -> str:
    """For the page, from RESULTS."""
    results = read(RESULTS)
    rows = []
    for one in results.measurements:
        if one.target == "weights":
            continue
        step, _, precision = one.target.partition(" ")
        run: Any = results.details["runs"][precision]
        stages = ", ".join(f"{name} {peak:.0f}" for name, peak in run["stages_peak_mb"].items())
        rows.append(
            (
                step,
                precision,
                f"{one.median:.0f}",
                f"{results.ratios(one)[0]:.2f}",
                f"{run['seconds'][step]:.0f}",
                f"{run['bundle_mb']:.0f}",
                stages if step == "export" else "",
            )
        )
    header = ("step", "precision", "peak MB", "times the weights", "s", "bundle MB", "peak MB of the stages")
    return markdown(header, rows, aligned=False)
