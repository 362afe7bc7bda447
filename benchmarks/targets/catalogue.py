"""Which targets there are, and how each is made. To add one, see docs/peers.md."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path

from benchmarks import peer_env, shapes
from benchmarks.exported import demo_bundle
from benchmarks.floor_files import files
from benchmarks.optimum_graph import optimum_graph
from benchmarks.targets.base import Target
from benchmarks.targets.dialects import LITSERVE, OPENAI, OURS_WEB, SDK_TEST_SERVER, TEI, triton
from benchmarks.targets.http_server import PORT, HttpServer, RemoteServer
from benchmarks.targets.in_process import Library
from benchmarks.targets.queue_worker import QUIET, Command, QueueWorker, ours, served
from benchmarks.weights import minilm_folder
from engine.bundle import open_bundle
from engine.probe import cpu_quota

_SCRIPTS = Path(__file__).parent
_TORCH = ("torch", "transformers")
_FASTEMBED_POOLINGS = ("mean", "cls")
_INFINITY_JOBS = 300  # what its worker takes at once, however many clients there are
_ON_GPU = ("tensorrt", "onnxruntime-cuda")

_why_no_gpu = cache(shapes.why_no_gpu)  # seconds each
_demo_bundle = cache(demo_bundle)  # several targets ask for the same bundle, and it is verified every time


@dataclass(frozen=True)
class Needs:
    """What the targets are made of. Where none is named all-MiniLM-L6-v2 is taken, exported where need be.

    What is made of it is shared: never taken beside, or made of, what was named. Then the missing one is asked for.
    """

    model: Path | None = None
    bundle: Path | None = None
    bundle_int8: Path | None = None
    concurrency: int = 32
    engine: str = "auto"
    tei: str | None = None
    triton: str | None = None
    triton_model: str = "model"

    def folder(self) -> Path:
        """The model's folder. Raises RuntimeError."""
        return self.model or self._shared("--model", minilm_folder)

    def fp32(self) -> Path:
        """The bundle. Raises RuntimeError."""
        return self.bundle or self._shared("--bundle", _demo_bundle)

    def int8(self) -> Path:
        """The bundle with int8 in it. Raises RuntimeError."""
        return self.bundle_int8 or self._shared("--bundle-int8", partial(_demo_bundle, int8=True))

    def on_gpu(self) -> bool:
        """Whether our worker computes on a GPU: one may be there, and packages for it not. Raises RuntimeError."""
        return served(self.fp32(), self.engine)["engine"] in _ON_GPU

    def _shared(self, option: str, made: Callable[[], Path]) -> Path:
        if self.model or self.bundle:
            raise RuntimeError(
                f"a model or a bundle was named, and this must be of the same one; name it with {option}"
            )
        return made()


ALWAYS = ("ours", "floor")
BY_URL = ("tei", "triton")


def targets(names: Sequence[str], needs: Needs) -> list[Target]:
    """The targets of these names, in the order of NAMES."""
    return [made(needs) for name, made in _MADE.items() if name in names]


def _worker(name: str, bundle: Callable[[Needs], Path], needs: Needs) -> Target:
    return ours(name, partial(bundle, needs), needs.concurrency, needs.engine)


def _stock(needs: Needs) -> Target:
    def made() -> Command:
        command = [sys.executable, str(_SCRIPTS / "stock_sentence_transformers.py")]
        env = {"MODEL_FOLDER": str(needs.folder()), **_device(needs, sys.executable)}
        return Command(command, env, _installed("runpod", "sentence-transformers", *_TORCH))

    return QueueWorker("stock", made, needs.concurrency)


def _fastembed(needs: Needs) -> Target:
    def made() -> Command:
        python, config = peer_env.python_of("fastembed"), open_bundle(needs.fp32()).manifest.task_config
        if config["pooling"] not in _FASTEMBED_POOLINGS:
            raise RuntimeError(f"fastembed has no pooling {config['pooling']}, only {', '.join(_FASTEMBED_POOLINGS)}")
        env = {"POOLING": config["pooling"], "NORMALIZE": str(int(config["normalize"])), "HF_HUB_OFFLINE": "1"}
        env |= {"MODEL_FOLDER": str(optimum_graph(needs.folder())), "DIMENSION": str(config["dimension"])}
        found = peer_env.versions(python, ("fastembed", "onnxruntime", "runpod"))
        return Command([str(python), str(_SCRIPTS / "stock_fastembed.py")], env, found)

    return QueueWorker("fastembed", made, needs.concurrency)


def _infinity(needs: Needs) -> Target:
    def made() -> Command:
        python = peer_env.python_of("infinity")
        env = {"MODEL_FOLDER": str(needs.folder()), **_device(needs, python), **_infinity_env(python)}
        found = peer_env.versions(python, ("infinity-emb", "runpod", *_TORCH))
        return Command([str(python), str(_SCRIPTS / "infinity.py")], env, found)

    return QueueWorker("infinity", made, _INFINITY_JOBS)


def _infinity_http(needs: Needs) -> Target:
    def made() -> Command:
        # Not the worker's: its server and the SDK want different versions of click.
        python = peer_env.python_of("infinity-server")
        env = {**_device(needs, python), **_infinity_env(python)}
        command = [str(python), "-c", "from infinity_emb.cli import cli; cli()", "v2"]
        command += ["--model-id", str(needs.folder()), "--served-model-name", "model", "--engine", "torch"]
        command += ["--device", env["DEVICE"], "--host", "127.0.0.1", "--port", PORT, "--log-level", "error"]
        return Command(command, env, peer_env.versions(python, ("infinity-emb", *_TORCH)))

    return HttpServer("infinity-http", made, OPENAI)


def _infinity_env(python: Path) -> Mapping[str, str]:
    return {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_HOME": str(python.parent.parent)}  # for its cache


def _litserve(needs: Needs) -> Target:
    def made() -> Command:
        python = peer_env.python_of("litserve")
        env = {"HF_HUB_OFFLINE": "1", **_device(needs, python)}
        command = [str(python), str(_SCRIPTS / "litserve_server.py"), str(needs.folder()), PORT]
        return Command(command, env, peer_env.versions(python, ("litserve", "sentence-transformers", *_TORCH)))

    return HttpServer("litserve", made, LITSERVE)


def _ours_http(needs: Needs) -> Target:
    def made() -> Command:
        command, bundle = [sys.executable, "-m", "handler", "--rp_serve_api", "--rp_api_port", PORT], needs.fp32()
        env = {**QUIET, "BUNDLE": str(bundle), "ENGINE": needs.engine}
        return Command(command, env, served(bundle, needs.engine))

    return HttpServer("ours-http", made, SDK_TEST_SERVER)


def _ours_web(needs: Needs) -> Target:
    def made() -> Command:
        command, bundle = ["env", f"PORT={PORT}", sys.executable, "-m", "handler"], needs.fp32()
        env = {**QUIET, "BUNDLE": str(bundle), "ENGINE": needs.engine, "WORKER_LOOP": "http"}
        return Command(command, env, served(bundle, needs.engine))

    return HttpServer("ours-web", made, OURS_WEB)


def _floor(needs: Needs) -> Target:
    def made() -> Command:
        bundle = open_bundle(needs.fp32())
        found, longest = files(bundle), str(bundle.manifest.task_config["max_length"])
        arguments = [str(found.graph), str(int(found.fused)), str(found.tokenizer), found.prompt, longest]
        arguments.append(str(cpu_quota()))
        command = [sys.executable, str(_SCRIPTS / "library.py"), "onnxruntime", *arguments]
        return Command(command, {}, _installed("onnxruntime", "tokenizers", "numpy"))

    return Library("floor", made)


def _library(name: str, needs: Needs) -> Target:
    def made() -> Command:
        command = [sys.executable, str(_SCRIPTS / "library.py"), name, str(needs.folder())]
        packages = ("sentence-transformers", *_TORCH) if name == "sentence-transformers" else _TORCH
        env = {"HF_HUB_OFFLINE": "1", **_device(needs, sys.executable)}
        return Command(command, env, _installed(*packages))

    return Library(name, made)


def _tei(needs: Needs) -> Target:
    assert needs.tei is not None
    return RemoteServer("tei", TEI, needs.tei)


def _triton(needs: Needs) -> Target:
    assert needs.triton is not None
    bundle = open_bundle(needs.fp32())
    longest = int(bundle.manifest.task_config["max_length"])
    dialect = triton(needs.triton_model, bundle.file("tokenizer.json"), longest)
    return RemoteServer("triton", dialect, needs.triton)


_MADE: Mapping[str, Callable[[Needs], Target]] = {
    "ours": partial(_worker, "ours", Needs.fp32),
    "ours-int8": partial(_worker, "ours-int8", Needs.int8),
    "ours-web": _ours_web,
    "ours-http": _ours_http,
    "floor": _floor,
    "stock": _stock,
    "fastembed": _fastembed,
    "infinity": _infinity,
    "infinity-http": _infinity_http,
    "litserve": _litserve,
    **{
        name: partial(_library, name)
        for name in ("sentence-transformers", "transformers-pipeline", "torch-eager", "torch-compile")
    },
    "tei": _tei,
    "triton": _triton,
}
NAMES = tuple(_MADE)
PEERS = tuple(name for name in NAMES if name not in (*ALWAYS, *BY_URL))
"""Those that `--with` names."""


def _device(needs: Needs, python: str | Path) -> dict[str, str]:
    """Variables with which the torch of `python` runs where our worker does, on its GPU or on the CPU.

    Raises RuntimeError where that is a GPU which it cannot use.
    """
    if not needs.on_gpu():
        return {"DEVICE": "cpu", "CUDA_VISIBLE_DEVICES": ""}  # the latter for libraries, which choose for themselves
    if why := _why_no_gpu(str(python)):
        raise RuntimeError(
            f"{why}, beside which ours would run; compare on the CPU (--engine onnxruntime-cpu), compare engines alone "
            "(`latency` takes another Python's torch with --torch-python), or give this one a torch for the GPU"
        )
    return {"DEVICE": "cuda"}


def _installed(*packages: str) -> dict[str, str]:
    return {name: version(name) for name in packages}
