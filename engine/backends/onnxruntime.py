"""ONNX Runtime as an engine, on the CPU or through its CUDA provider. Rule: no decisions here, see select.py."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import cache, partial
from pathlib import Path
from typing import Any

import onnxruntime as ort

from engine import huge_pages
from engine.backends.base import Engine
from engine.backends.buffers import Buffers
from engine.batching.costs import BEST_TOKENS_OF_A_GPU
from engine.bucket import Bucket, Ladder, rungs
from engine.bundle import Bundle, is_weights
from engine.errors import EngineError
from engine.files.same_files import SameFiles
from engine.probe import cpu_quota, cpus_of_threads, memory_left, sums_bytes_in_16_bits
from engine.sizes import readable
from engine.tensors import Arrays

LENGTH_STEP = 1
"""Lengths are rounded up to multiples of this. The CPU takes any shape, and every token of padding costs it time."""

MOST_BINDINGS = 512
"""The oldest are made anew when they are needed again: 30 us each, where all of them would hold 2 kB each."""

# all-MiniLM-L6-v2 on two cores, least squares over 16 buckets of 8 to 1,024 tokens: in fp32 1.0 ms a run and 60 us a
# token, in int8 0.5 ms and 27 us; so a run costs 16 and 18 tokens.
_OVERHEAD_TOKENS = {"cpu": 16, "cuda": 512}  # cuda: not measured yet
# There 512 tokens are the cheapest a token; larger batches only keep others waiting and memory taken.
_BEST_TOKENS = {"cpu": 512, "cuda": BEST_TOKENS_OF_A_GPU}
# Of a lane, which has one thread. With 512 tokens 32 clients got as many answers, 8 clients 4 to 6 % fewer; p99 was a
# tenth to a sixth longer, and 11 to 13 MB more were held. With 128 tokens 32 clients got 4 to 6 % fewer.
_BEST_TOKENS_OF_LANE = 256
# On the CPU, of rows that all have one size, which are images, spectrograms and the like. ViT-Tiny, CLIP's, YOLOS-Tiny
# and SegFormer-B0 are fastest with 4 at once on two threads and with 1 to 4 on one; 32 at once took 1.1 to 1.4 times as
# long a row. Of a large model they would take minutes, behind which everybody waits, and gigabytes.
_BEST_ROWS_OF_THREAD = 2
# In one piece, of which only what is used counts as held: an eighth with MiniLM. In pieces that double, which is the
# default, a worker with two lanes in int8 held 5 MB more at once somewhere among 100,000 jobs; so it held 0.7 MB more.
_ARENA_BYTES = 128 << 20
_ARENA = {  # ONNX Runtime's own, but for the size that it begins with, which is 1 MB
    "max_mem": 0,
    "arena_extend_strategy": 0,
    "initial_chunk_size_bytes": _ARENA_BYTES,
    "max_dead_bytes_per_chunk": -1,
}
_LANES_HOLD = 2  # times the weights' size, generously: those of MiniLM held 0.6 times in fp32, once in int8
_LOG_ERRORS_ONLY = 3
# On the CPU the first run costs 2 to 10 ms more than others of its size, whatever its size, and no later one does.
_WARM_UP = {"cpu": (Bucket(1, 16),), "cuda": (Bucket(1, 16), Bucket(4, 32))}


class OnnxRuntimeEngine(Engine):
    """One session with an IO binding for every bucket in use, all on buffers that were allocated at load.

    `provider` is "cpu" or "cuda"; choose the latter only after a device was probed, for without a driver it crashes
    the process. `threads` counts CPU threads, 0 follows the container's quota. `lanes`: on the CPU, with several
    threads, it can be opened in lanes. Raises EngineError.
    """

    def __init__(
        self,
        bundle: Bundle,
        graph: str = "model",
        *,
        provider: str = "cpu",
        threads: int = 0,
        max_batch: int = 32,
        lanes: bool = False,
    ) -> None:
        found = bundle.manifest.graphs[graph]
        self.overhead_tokens = _OVERHEAD_TOKENS[provider]
        self._warm_up = _WARM_UP[provider]
        self.computes_in_caller = provider == "cpu"
        threads = threads or cpu_quota()
        cpus = cpus_of_threads(threads) if self.computes_in_caller else ()
        self.caller_cpu = cpus[0] if cpus else None
        self.lanes = threads if lanes and self.computes_in_caller and threads > 1 else 0
        self.inputs = found.inputs
        self.outputs = found.outputs
        self._of_one_size = all(spec.length_axis is None for spec in self.inputs)
        few = self._of_one_size and self.computes_in_caller
        self.best_tokens = threads * _BEST_ROWS_OF_THREAD if few else _BEST_TOKENS[provider]
        self.buckets = Ladder(range(1, max_batch + 1), rungs(bundle.manifest.max_length(graph), LENGTH_STEP))
        self._in = Buffers(self.inputs, self.buckets)
        self._out = Buffers(self.outputs, self.buckets)
        self._files = SameFiles(_opened(bundle, graph, provider) if self.lanes else ())
        self._open = partial(_open_session, bundle, graph, provider, shares_arena=self.lanes > 0)
        self._session: Any = self._open(threads, cpus[1:])
        if self.lanes:  # and so an arena of that size, which is there now
            huge_pages.ask(_ARENA_BYTES)
        self._bindings: dict[Bucket, Any] = {}
        self._started = self.buckets.fit(1, 1)
        self._cpus, self._bundle, self._graph = cpus, bundle, graph

    def open_lanes(self) -> list[OnnxRuntimeEngine]:
        """One for each thread. They share a session without threads but its callers', and so one copy of the weights.

        Raises EngineError when there is too little memory for it, or when the bundle was exchanged since: its files
        were compared with the manifest at boot and are not read again. To be called once.
        """
        try:
            self._check_same()
            needed, left = _LANES_HOLD * _size_of_weights(self._bundle, self._graph), memory_left()
            if needed > left:
                raise EngineError(f"a second copy of the weights takes {readable(needed)}, {readable(left)} are left")
            session = self._open(1, ())
            self._check_same()
        finally:
            self._files.close()
        huge_pages.collapse()
        return [self._lane(session, number) for number in range(self.lanes)]

    def _check_same(self) -> None:
        if self._files.changed():
            raise EngineError(
                f"the bundle at {self._bundle.path} is another one now; start the worker again to serve that one"
            )

    def _lane(self, session: Any, number: int) -> OnnxRuntimeEngine:
        lane = copy(self)
        lane.best_tokens = _BEST_ROWS_OF_THREAD if self._of_one_size else _BEST_TOKENS_OF_LANE
        lane.lanes, lane.caller_cpu = 0, self._cpus[number] if self._cpus else None
        lane._session, lane._bindings, lane._started = session, {}, self.buckets.fit(1, 1)
        lane._in, lane._out = Buffers(self.inputs, self.buckets), Buffers(self.outputs, self.buckets)
        return lane

    def feeds(self, bucket: Bucket, slot: int = 0) -> Arrays:
        """The input buffers of `bucket`."""
        return self._in.at(bucket)

    def warm_up(self) -> None:
        """Run a short bucket, on a GPU a longer one as well: thread pool, arena and kernels are then in place."""
        for bucket in self._warm_up:
            self.run(self.buckets.fit(*_within(bucket, self.buckets.largest)))

    def start(self, bucket: Bucket, slot: int = 0) -> None:
        """Run `feeds(bucket)` to its end: the calling thread is one of those that compute."""
        try:
            self._session.run_with_iobinding(self._bindings.get(bucket) or self._bind(bucket))
        except Exception as error:  # ONNX Runtime raises classes of its own that share no base but Exception
            raise EngineError(f"ONNX Runtime failed at {bucket}: {error}") from error
        self._started = bucket

    def finish(self, slot: int = 0) -> Arrays:
        """The outputs of the run before; views that are valid until the next one."""
        return self._out.at(self._started)

    def close(self) -> None:
        """Drop the session; ONNX Runtime frees its memory with the last reference."""
        self._bindings.clear()
        self._session = None
        self._files.close()

    def _bind(self, bucket: Bucket) -> Any:
        if len(self._bindings) == MOST_BINDINGS:
            del self._bindings[next(iter(self._bindings))]
        binding = self._session.io_binding()
        for bind, buffers in ((binding.bind_input, self._in), (binding.bind_output, self._out)):
            for name, view in buffers.at(bucket).items():
                bind(name, "cpu", 0, view.dtype.type, view.shape, view.ctypes.data)
        self._bindings[bucket] = binding
        return binding


def _within(bucket: Bucket, largest: Bucket) -> tuple[int, int]:
    return min(bucket.batch, largest.batch), min(bucket.length, largest.length)


def _opened(bundle: Bundle, graph: str, provider: str) -> list[Path]:
    """What a session opens, and perhaps more: which of the weights the graph names is not worth reading it for."""
    names = [bundle.onnx_of(graph, provider)[0], *filter(is_weights, bundle.manifest.files)]
    return [bundle.file(name) for name in names]


def _size_of_weights(bundle: Bundle, graph: str) -> int:
    """Bytes of the graph's file for the CPU and of its weights: no less than what a session of it holds."""
    onnx, _ = bundle.onnx_of(graph, "cpu")
    return sum(bundle.manifest.files[name][0] for name in (onnx, *bundle.weights_of(onnx)))


@cache
def _make_arena() -> bool:
    """One arena for the sessions of this process that ask for it; whether it is there.

    A session and its lanes never run at the same time: all-MiniLM-L6-v2 holds 8 MB less so. For a process that opens
    one model and keeps it: what a closed session held stays in the arena.
    """
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    try:
        ort.create_and_register_allocator(memory, ort.OrtArenaCfg(_ARENA))
    except Exception:  # somebody else's is registered already; what it holds is not ours to say
        return False
    return True


def _open_session(
    bundle: Bundle, graph: str, provider: str, threads: int, cpus: Sequence[int], *, shares_arena: bool
) -> Any:
    file, is_fused = bundle.onnx_of(graph, provider)
    path = bundle.file(file)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    if cpus:
        # Each thread to a CPU of its own, the caller to the first. The scheduler may put two of them on one CPU when
        # they wake: on two cores jobs that found the worker idle took 12.3 ms so (p90 20), and with this 11.2 (p90 14).
        numbers = ";".join(str(cpu + 1) for cpu in cpus)  # ONNX Runtime counts from 1
        options.add_session_config_entry("session.intra_op_thread_affinities", numbers)
    options.log_severity_level = _LOG_ERRORS_ONLY
    if shares_arena and _make_arena():
        options.add_session_config_entry("session.use_env_allocators", "1")
    # Reusing one memory plan a shape pays for fixed shapes; with hundreds of lengths it keeps hundreds of plans.
    options.enable_mem_pattern = False
    # Its threads spin for some 30 ms after a run, as they do by default: on two cores a job that finds the worker idle
    # is then done 1.6 ms earlier, and 1, 4 or 32 clients lose nothing.
    providers: list[Any] = ["CPUExecutionProvider"]
    level = ort.GraphOptimizationLevel
    # Already optimised at export: doing it again costs most of the load time.
    options.graph_optimization_level = level.ORT_DISABLE_ALL if is_fused else level.ORT_ENABLE_ALL
    if provider == "cpu" and bundle.manifest.precision == "int8" and sums_bytes_in_16_bits():
        # There the kernels of bytes by bytes with a sign cut off sums, so that answers are others than with VNNI. As
        # bytes without a sign, which this makes of weights at one of the higher levels, sums fit, and are the same.
        options.add_session_config_entry("session.x64quantprecision", "1")
        options.graph_optimization_level = level.ORT_ENABLE_EXTENDED
    if provider == "cuda":
        # Else it rounds what it multiplies in fp32 to TF32's 10 bits of mantissa, no more than fp16 has
        # (https://github.com/microsoft/onnxruntime/pull/19357), and no gate has seen such answers.
        #
        # Else, too, it tries every algorithm of cuDNN for each convolution at each new shape, which is hundreds of
        # searches before a model of convolutions is warm at all its buckets. Measured elsewhere, in six convolutions:
        # 634 ms a shape so, 1.9 ms by cuDNN's heuristics, and runs no slower (https://github.com/PaddlePaddle/PaddleX/pull/5057).
        asked = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
        providers.insert(0, ("CUDAExecutionProvider", asked))
    try:
        session = ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:
        raise EngineError(f"ONNX Runtime {ort.__version__} cannot load {path.name}: {error}") from error
    if provider == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
        raise EngineError(
            "ONNX Runtime fell back from CUDA to the CPU; its CUDA 11.8 or cuDNN 8.9 libraries are missing"
        )
    # Where a provider fails, ONNX Runtime's Python side prints so, and may open the model again without its options.
    if provider == "cuda" and not asked.items() <= session.get_provider_options()["CUDAExecutionProvider"].items():
        raise EngineError(
            "ONNX Runtime failed on CUDA with the options that it was given and went on without them; its `EP Error` "
            "in the log says why"
        )
    return session
