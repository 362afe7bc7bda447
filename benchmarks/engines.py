"""The engine of one bundle at one precision, opened without the worker around it, for what measures engines alone."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.exported import BUILD
from engine.backends.base import Engine
from engine.boot import gather
from engine.bucket import Bucket
from engine.bundle import Bundle, open_bundle
from engine.config import Settings
from engine.errors import BundleError
from engine.plans.sidecar import PRECISIONS, Machine, PlanFile, mismatch, plans_of, stale
from engine.probe import gpu, tensorrt_version
from engine.select import Choice, select
from export.bundle_folder import new_bundle_folder

ENGINES = ("tensorrt", "onnxruntime-cuda", "onnxruntime-cpu")


def default_engine() -> str:
    """The best that there is a device for."""
    return "tensorrt" if gpu() else "onnxruntime-cpu"


def default_precision(engine: str) -> str:
    """What an engine is measured in when nothing is said."""
    return "fp32" if engine == "onnxruntime-cpu" else "fp16"


def served_precision(path: Path, environ: Mapping[str, str]) -> str:
    """The precision in which a worker with these variables answers: on a GPU a plan's, and not the bundle's own.

    To be asked when the worker has started: by then a plan that it built is there. Raises WorkerError.
    """
    bundle = open_bundle(path)
    name, graph = next(iter(bundle.manifest.graphs.items()))
    choice = _choice(bundle, environ)
    if choice.plan is not None:
        return choice.plan.plan.precision
    runtime, _, provider = choice.engine.partition("-")
    if runtime != "onnxruntime":
        return bundle.manifest.precision
    file, fused = bundle.onnx_of(name, provider)
    return next(precision for precision, one in (graph.fused if fused else graph.onnx).items() if one == file)


def served_engine(path: Path, environ: Mapping[str, str]) -> str:
    """The engine that such a worker has: with `auto` the one that was picked. As `served_precision`."""
    return _choice(open_bundle(path), environ).engine


def _choice(bundle: Bundle, environ: Mapping[str, str]) -> Choice:
    settings = Settings.from_environ(environ)
    return select(settings, gather(bundle, settings, next(iter(bundle.manifest.graphs))))


def runs(engine: str, precision: str) -> bool:
    """Whether an engine computes in a precision at all, rather than in another under its name.

    ONNX Runtime has no kernels for bf16 and is told not to round to tf32; on CUDA it gets no int8, which is for CPUs.
    """
    return engine == "tensorrt" or precision in ("fp32", "fp16", *(["int8"] if engine == "onnxruntime-cpu" else []))


def precisions_of(path: Path, engine: str) -> list[str]:
    """What an engine has of the bundle to run: its graphs, on TensorRT its plans for this GPU, and `default_precision`.

    Of the last `prepare` makes what there is not. Raises WorkerError.
    """
    bundle = open_bundle(path)
    plans = [file.plan.precision for file in _plans_here(bundle)] if engine == "tensorrt" else []
    found = dict.fromkeys([*_has(bundle, engine), *plans, default_precision(engine)])
    return [one for one in found if runs(engine, one)]


def identity(path: Path) -> dict[str, str]:
    """Which bundle it is, for the options of a results file: many a one is in a folder called `bundle`."""
    bundle = open_bundle(path)
    return {"model": bundle.manifest.model, "bundle_sha256": bundle.sha256[:12]}


def check(engine: str, precision: str) -> None:
    """Raises RuntimeError for what no bundle can be measured in here."""
    if precision not in PRECISIONS:
        raise RuntimeError(f"there is no precision {precision!r}; take of {', '.join(PRECISIONS)}")
    if not runs(engine, precision):
        raise RuntimeError(f"{engine} cannot run {precision}; take another precision, or --engine tensorrt on a GPU")
    if engine != "onnxruntime-cpu" and gpu() is None:
        raise RuntimeError("no NVIDIA driver or no GPU here; take --engine onnxruntime-cpu")


def prepare(
    path: Path,
    engine: str,
    precision: str,
    batches: Sequence[int],
    lengths: Sequence[int],
    more: str,
    *,
    copies: Path | None = None,
) -> Path:
    """The bundle that `open_engine` is to open; a plan that it lacks is built into it.

    A graph that it lacks is made in a copy below `copies` (build/precisions): `path` stays as it is. `more` are options
    of `export plan`.

    Raises RuntimeError when either cannot be made or there is no GPU for it.
    """
    check(engine, precision)
    _check_int8(path, engine, precision)
    if engine == "tensorrt":
        if _plan(path, precision, batches, lengths) is None:
            command = [sys.executable, "-m", "export", "plan", str(path), "--precision", precision]
            command += ["--batches", ",".join(map(str, batches)), "--lengths", ",".join(map(str, lengths))]
            if subprocess.run([*command, *shlex.split(more)]).returncode:
                raise RuntimeError(f"no plan for {path}")
    elif precision not in _has(open_bundle(path), engine):
        return _copy_with(path, precision, copies or BUILD / "precisions")
    return path


def prepare_all(
    path: Path, engine: str, precisions: Sequence[str], batches: Sequence[int], lengths: Sequence[int], more: str
) -> dict[str, Path]:
    """`prepare` for each of `precisions`, once all of them are known to be possible: a plan takes minutes."""
    for one in precisions:
        check(engine, one)
        _check_int8(path, engine, one)
    return {one: prepare(path, engine, one, batches, lengths, more) for one in precisions}


def _check_int8(path: Path, engine: str, precision: str) -> None:
    """int8 is calibrated and judged as a whole model, in its export: no later step makes a graph of it."""
    if precision == "int8" and precision not in _has(open_bundle(path), engine):
        target = "tensorrt=int8" if engine == "tensorrt" else "int8"
        raise RuntimeError(f"{path} has no int8 for {engine}; export it with --precision {target}")


def _copy_with(path: Path, precision: str, copies: Path) -> Path:
    """A copy of the bundle that has a graph of `precision` as well, made once. Raises RuntimeError."""
    from export.errors import ParityFailed, Refused
    from export.plans.precision import add_precision

    copy = copies / f"{path.resolve().name}-{open_bundle(path).sha256[:12]}-{precision}"
    try:
        open_bundle(copy).verify()
    except BundleError:
        shutil.rmtree(copy, ignore_errors=True)
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            with new_bundle_folder(copy) as folder:
                shutil.copytree(path, folder, dirs_exist_ok=True)
                add_precision(folder, "model", precision)
        except (ParityFailed, Refused) as error:
            raise RuntimeError(f"{path} cannot be measured in {precision}: {error}") from error
    return copy


def open_engine(path: Path, engine: str, precision: str, batches: Sequence[int], lengths: Sequence[int]) -> Engine:
    """The engine, not yet warm; see `prepare`. Raises EngineError."""
    if engine == "tensorrt":
        from engine.backends.tensorrt import TensorRtEngine

        plan = _plan(path, precision, batches, lengths)
        assert plan is not None, "prepare has built it"
        return TensorRtEngine(open_bundle(path), "model", plan)
    bundle = _in(open_bundle(path), precision)
    if engine == "onnxruntime-cuda":
        from engine.backends.onnxruntime_cuda import OnnxRuntimeCudaEngine

        return OnnxRuntimeCudaEngine(bundle, max_batch=max(batches))
    from engine.backends.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(bundle, max_batch=max(batches))


def _in(bundle: Bundle, precision: str) -> Bundle:
    """`bundle` as if it were of this precision, for every target."""
    return replace(bundle, manifest=replace(bundle.manifest, precision=precision, precisions={}))


def _has(bundle: Bundle, engine: str) -> list[str]:
    """Precisions of its graphs; the fused ones are for the CPU alone."""
    graph = bundle.manifest.graphs["model"]
    return list(dict.fromkeys([*graph.onnx, *(graph.fused if engine == "onnxruntime-cpu" else ())]))


def _plan(path: Path, precision: str, batches: Sequence[int], lengths: Sequence[int]) -> PlanFile | None:
    """A plan for this GPU with all the buckets that are asked for."""
    for file in _plans_here(open_bundle(path)):
        there = file.plan.ladder  # not each of its batches with each of its lengths
        covers = all(Bucket(batch, length) in there for batch in batches for length in lengths)
        if covers and file.plan.precision == precision:
            return file
    return None


def _plans_here(bundle: Bundle) -> list[PlanFile]:
    """Those that are of the bundle as it is and that this GPU and TensorRT run."""
    found, version = gpu(), tensorrt_version()
    if found is None or version is None:
        return []
    here = Machine(version, ".".join(map(str, found.compute_capability)), found.name)
    return [file for file in plans_of(bundle) if not (mismatch(file.plan, here) or stale(file.plan, bundle))]
