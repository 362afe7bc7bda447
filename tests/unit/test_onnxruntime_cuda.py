"""What can be tried of the CUDA provider's engine without a GPU: everything on the CPU but its ladder and its words."""

import asyncio
import re
import subprocess
import sys
import weakref
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnxruntime.capi import onnxruntime_inference_collection

from benchmarks.bert_bundle import bert_bundle
from benchmarks.bert_graph import Shape
from engine.backends import load_engine, onnxruntime_cuda
from engine.backends.onnxruntime import OnnxRuntimeEngine
from engine.backends.onnxruntime_cuda import OnnxRuntimeCudaEngine, coarse
from engine.batching.batcher import Batcher
from engine.batching.feed import run_rows
from engine.bucket import Bucket
from engine.bundle import open_bundle
from engine.config import Settings
from engine.errors import EngineError, EngineLost, OutOfMemory
from engine.select import Choice
from engine.tensors import Row
from tests.contract.test_engine import row


@pytest.fixture(scope="module")
def long_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an encoder with four heads, of rows of up to 512 tokens."""
    shape = Shape(1, 64, 4, 128, vocab_size=500, max_position_embeddings=512)
    return bert_bundle("long", tmp_path_factory.mktemp("long") / "bundle", shape)


@pytest.mark.parametrize(
    ("largest", "batches", "lengths"),
    [
        (Bucket(32, 256), (1, 2, 4, 8, 16, 32), (16, 32, 64, 128, 256)),
        (Bucket(5, 100), (1, 2, 4, 5), (16, 32, 64, 100)),
        (Bucket(1, 1), (1,), (1,)),
        (Bucket(3, 16), (1, 2, 3), (16,)),
    ],
)
def test_a_coarse_ladder_ends_at_the_largest(largest: Bucket, batches: tuple[int, ...], lengths: tuple[int, ...]):
    ladder = coarse(largest)
    assert (ladder.batches, ladder.lengths) == (batches, lengths)


def test_every_bucket_answers_as_the_cpus_engine_does(small_bundle: Path):
    bundle = open_bundle(small_bundle)
    reference, engine = OnnxRuntimeEngine(bundle), OnnxRuntimeCudaEngine(bundle, device="cpu")
    engine.warm_up()
    bound = dict(engine._bindings)
    assert set(bound) == set(engine.buckets)
    rng = np.random.default_rng(0)
    for bucket in engine.buckets:
        ids = rng.integers(1, 49, (bucket.batch, bucket.length)).astype(np.int32)
        rows = [Row({"input_ids": one, "attention_mask": np.ones_like(one)}, bucket.length) for one in ids]
        for found, expected in zip(run_rows(engine, rows), run_rows(reference, rows), strict=True):
            np.testing.assert_allclose(found["embedding"], expected["embedding"], rtol=1e-6)
    assert engine._bindings == bound  # nothing was bound after warm-up
    engine.close()


class CopiesWhatItBinds:
    """A binding where each input is read by a node on the CPU: what was in the device's memory when it was bound."""

    def __init__(self, binding: Any) -> None:
        self.binding = binding
        self.copies: dict[str, Any] = {}

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        self.copies[name] = ort.OrtValue.ortvalue_from_numpy(value.numpy().copy())
        self.binding.bind_ortvalue_input(name, self.copies[name])

    def bind_output(self, *arguments: Any) -> None:
        self.binding.bind_output(*arguments)


def test_nodes_on_the_cpu_read_the_inputs_of_the_run(small_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    bundle = open_bundle(small_bundle)
    reference, engine = OnnxRuntimeEngine(bundle), OnnxRuntimeCudaEngine(bundle, device="cpu")
    session = engine._session
    double = SimpleNamespace(
        io_binding=lambda: CopiesWhatItBinds(session.io_binding()),
        run_with_iobinding=lambda bound: session.run_with_iobinding(bound.binding),
    )
    monkeypatch.setattr(engine, "_session", double)
    engine.warm_up()
    for seed in range(3):
        rows = [row(9, seed=seed)]
        (found,), (expected,) = run_rows(engine, rows), run_rows(reference, rows)
        assert np.array_equal(found["embedding"], expected["embedding"])


def test_only_buckets_that_batches_come_to_are_warmed(long_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """32 rows of 512 at once are 32 times what the queue may form here."""
    monkeypatch.setattr(onnxruntime_cuda, "OnnxRuntimeCudaEngine", partial(OnnxRuntimeCudaEngine, device="cpu"))
    for tokens in (0, 2048, 256):  # of which a row alone may have more
        settings = Settings.from_environ({"MAX_BATCH_TOKENS": str(tokens), "MAX_BATCH_ROWS": "32"})
        engine = load_engine(Choice("onnxruntime-cuda", ""), open_bundle(long_bundle), settings)
        engine.warm_up()
        most = tokens or engine.best_tokens
        rows, lengths = range(1, 33), range(1, engine.buckets.largest.length + 1)
        formed = {engine.buckets.fit(n, length) for n in rows for length in lengths if n == 1 or n * length <= most}
        assert set(engine._bindings) == formed != set(engine.buckets)  # type: ignore[attr-defined]
        engine.close()


def test_what_takes_most_memory_is_warmed_first(long_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """The arena then has room for the others, and does not grow once for each."""
    engine = OnnxRuntimeCudaEngine(open_bundle(long_bundle), device="cpu")
    ran: list[Bucket] = []
    monkeypatch.setattr(engine, "run", ran.append)
    engine.warm_up()
    scores = [bucket.batch * bucket.length**2 for bucket in ran]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) > 5


def test_a_closed_engine_holds_no_memory_of_the_device(small_bundle: Path):
    engine = OnnxRuntimeCudaEngine(open_bundle(small_bundle), device="cpu")
    engine.warm_up()
    values = [weakref.ref(value) for bound in engine._values.values() for value in bound.values()]
    assert all(value() for value in values)
    engine.close()
    assert not any(value() for value in values)


WITH_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np
from engine.backends.onnxruntime_cuda import OnnxRuntimeCudaEngine
from engine.bundle import open_bundle
from engine.errors import OutOfMemory
from engine.batching.feed import run_rows
from engine.tensors import Row
from tests.contract.test_engine import row

bundle = open_bundle(Path(sys.argv[1]))
engine = OnnxRuntimeCudaEngine(bundle, threads=1, device="cpu")
asked = OnnxRuntimeCudaEngine(bundle, threads=1, device="cpu", max_tokens=16_384)
engine.best_tokens = 16_384
held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + 100_000_000,) * 2)  # the scores of 32 rows of 512 take 134 MB
engine.warm_up()
assert engine.best_tokens < 16_384
assert not [b for b in engine._bindings if b.batch > 1 and engine.buckets.least(b).tokens > engine.best_tokens]
(note,) = engine.notes
assert note.startswith("no room for ") and f"at most {engine.best_tokens} tokens run at once: ONNX Runtime" in note
ids = np.ones(512, np.int32)
assert len(run_rows(engine, [Row({spec.name: ids for spec in engine.inputs}, 512)])) == 1
engine.close()
try:
    asked.warm_up()
except OutOfMemory as error:
    print(error)
"""


def test_where_memory_ends_batches_are_smaller(long_bundle: Path):
    """ONNX Runtime's own refusal, of the CPU's arena, which is the class that CUDA's is of."""
    said = subprocess.run([sys.executable, "-c", WITH_LITTLE_MEMORY, long_bundle], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert re.search(r"Failed to allocate memory.*; set MAX_BATCH_TOKENS to \d+ or less, not 16384", said.stdout)


def test_a_bucket_without_room_is_never_come_to_and_keeps_no_memory(long_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    engine = OnnxRuntimeCudaEngine(open_bundle(long_bundle), device="cpu")
    engine.best_tokens = 16_384
    session, fails = engine._session, iter([True])

    def run(binding: object) -> None:
        if next(fails, False):
            raise RuntimeError("CUDA failure 2: out of memory ; GPU=0 ; hostname=x")
        session.run_with_iobinding(binding)

    double = SimpleNamespace(io_binding=session.io_binding, run_with_iobinding=run)
    monkeypatch.setattr(engine, "_session", double)
    engine.warm_up()
    assert engine.best_tokens == 17 * 257 - 1  # fewer than the fewest that fit nothing smaller than 32 rows of 512
    assert Bucket(32, 512) not in engine._values
    assert set(engine._values) == set(engine._bindings)


def test_no_room_for_one_row(small_bundle: Path):
    engine = OnnxRuntimeCudaEngine(open_bundle(small_bundle), device="cpu")

    class Full:
        def io_binding(self) -> object:
            raise RuntimeError("CUDA failure 2: out of memory ; GPU=0 ; hostname=x")  # of the inputs, even

    engine._session = Full()
    with pytest.raises(OutOfMemory, match=r"CUDA failure 2.*no room for one row of \d+ tokens: take one with more mem"):
        engine.warm_up()


def with_cuda(monkeypatch: pytest.MonkeyPatch, *failures: str) -> list[dict[str, dict[str, str]]]:
    """Let ONNX Runtime believe that it was built for CUDA, and fail with each of `failures` before it loads a model.

    Returns the options of every attempt, by provider. All but the innermost class is ONNX Runtime's own.
    """
    tried: list[dict[str, dict[str, str]]] = []
    own = onnxruntime_inference_collection.C

    class Inner:
        inputs_meta = outputs_meta = overridable_initializers = model_meta = get_profiling_start_time_ns = None

        def __init__(self, options: ort.SessionOptions, *_: object) -> None:
            self.session_options = options

        def initialize_session(self, providers: list[str], options: list[dict[str, str]], disabled: object) -> None:
            tried.append(dict(zip(providers, options, strict=True)))
            if len(tried) <= len(failures):
                raise RuntimeError(failures[len(tried) - 1])

        def get_providers(self) -> list[str]:
            return list(tried[-1])

        def get_provider_options(self) -> dict[str, dict[str, str]]:
            return tried[-1]

    def there() -> list[str]:
        return ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]

    names = {**vars(own), "InferenceSession": Inner, "get_available_providers": there}
    monkeypatch.setattr(onnxruntime_inference_collection, "C", SimpleNamespace(**names))
    monkeypatch.setattr(ort.InferenceSession, "_register_ep_custom_ops", lambda *_: None)  # of TensorRT's plugins
    return tried


def test_the_provider_is_not_left_to_its_defaults(small_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """It would multiply in TF32 from sm_80 on, and try every algorithm for each convolution and bucket."""
    tried = with_cuda(monkeypatch)
    OnnxRuntimeEngine(open_bundle(small_bundle), provider="cuda")
    options = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
    assert tried == [{"CUDAExecutionProvider": options, "CPUExecutionProvider": {}}]


def test_the_engine_runs_on_the_gpu_as_the_settings_say(small_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    tried = with_cuda(monkeypatch)
    settings = Settings.from_environ({"MAX_BATCH_ROWS": "3", "THREADS": "5"})
    engine = load_engine(Choice("onnxruntime-cuda", ""), open_bundle(small_bundle), settings)
    assert "CUDAExecutionProvider" in tried[0]
    assert engine.buckets.largest.batch == 3
    assert engine._session.get_session_options().intra_op_num_threads == 5  # type: ignore[attr-defined]


def test_a_provider_that_went_back_to_its_defaults_is_not_taken(small_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """ONNX Runtime itself opens the model again without options where the provider fails with them."""
    tried = with_cuda(monkeypatch, "CUDNN failure 4: CUDNN_STATUS_INTERNAL_ERROR")
    with pytest.raises(EngineError, match=r"with the options that it was given and went on without them; its `EP Err"):
        OnnxRuntimeEngine(open_bundle(small_bundle), provider="cuda")
    assert tried[1]["CUDAExecutionProvider"] == {}


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("bfc_arena.cc:376 Failed to allocate memory for requested buffer of size 4294967296", OutOfMemory),
        ("CUDA failure 2: out of memory ; GPU=0 ; hostname=x ; expr=cudaMalloc(&p, size);", OutOfMemory),
        ("CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version", EngineError),
    ],
)
def test_memory_that_ends_while_the_weights_load(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch, words: str, kind: type[EngineError]
):
    with_cuda(monkeypatch, words, words)
    with pytest.raises(EngineError, match=re.escape(words)) as error:
        OnnxRuntimeCudaEngine(open_bundle(small_bundle))
    assert type(error.value) is kind
    advised = str(error.value).endswith("; there is no room for the weights: take a GPU with more memory")
    assert advised is (kind is OutOfMemory)


class Device:
    """Under an engine on the CPU: what its runs end with, and all copies from the first such run on, if they fail."""

    def __init__(self, engine: OnnxRuntimeCudaEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run = self.breaks = self.copy = ""
        session = engine._session

        def run(binding: object) -> None:
            if self.run:
                self.copy = self.breaks
                raise RuntimeError(self.run)
            session.run_with_iobinding(binding)

        def copy(value: Any, source: object) -> None:
            if self.copy:
                raise RuntimeError(self.copy)
            value.update_inplace(source)

        def double(value: Any) -> SimpleNamespace:
            return SimpleNamespace(update_inplace=partial(copy, value), _ortvalue=value._ortvalue)  # as to be bound

        values = {
            bucket: {name: double(value) for name, value in bound.items()} for bucket, bound in engine._values.items()
        }
        monkeypatch.setattr(engine, "_session", SimpleNamespace(run_with_iobinding=run))
        monkeypatch.setattr(engine, "_values", values)


NODE = "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Add node. Status Message: "
COPY = "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=x ; expr=cudaMemcpy(...)"


@pytest.mark.parametrize(
    "first",
    [
        NODE + "CUDA error cudaErrorIllegalAddress:an illegal memory access was encountered",
        NODE + "CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED ; GPU=0 ; hostname=x",
        NODE + "CUDNN failure 8: CUDNN_STATUS_EXECUTION_FAILED ; GPU=0 ; hostname=x",
        NODE + COPY,
    ],
)
async def test_a_context_that_broke_in_a_kernel_ends_the_engine_at_once(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch, first: str
):
    """A kernel and the libraries tell of it in words of their own; every copy from then on says what it is."""
    engine = OnnxRuntimeCudaEngine(open_bundle(small_bundle), device="cpu")
    engine.warm_up()
    device = Device(engine, monkeypatch)
    batcher = Batcher(engine, max_rows=8, max_tokens=1000, max_queued=100)
    lost = list[str]()
    batcher.on_lost = lost.append
    assert len(await batcher.run([row(4)])) == 1
    device.run, device.breaks = first, COPY
    with pytest.raises(EngineLost, match=re.escape(first)):
        await batcher.run([row(4), row(4)])
    with pytest.raises(EngineLost):
        await batcher.run([row(4)])
    await asyncio.to_thread(batcher.close)
    (sentence,) = lost
    assert "CUDA failure 700" in sentence


async def test_a_row_that_fails_on_a_device_that_works_fails_alone(small_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    engine = OnnxRuntimeCudaEngine(open_bundle(small_bundle), device="cpu")
    engine.warm_up()
    device = Device(engine, monkeypatch)
    batcher = Batcher(engine, max_rows=8, max_tokens=1000, max_queued=100)
    for words, kind in (
        ("CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED", EngineError),
        ("CUDA error cudaErrorMemoryAllocation:out of memory", OutOfMemory),
        ("CUDA failure 2: out of memory ; GPU=0", OutOfMemory),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED", OutOfMemory),
    ):
        device.run = NODE + words
        with pytest.raises(EngineError, match=words) as error:
            await batcher.run([row(4)])
        assert type(error.value) is kind
        device.run = ""
        assert len(await batcher.run([row(4)])) == 1
    await asyncio.to_thread(batcher.close)
