"""The runtimes that an engine may use. `load_engine` imports only the one that was chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import EngineError
from engine.select import Choice

if TYPE_CHECKING:
    from engine.backends.base import Engine
    from engine.bundle import Bundle
    from engine.config import Settings


def load_engine(choice: Choice, bundle: Bundle, settings: Settings, graph: str = "model") -> Engine:
    """The engine of `choice` for one graph of a verified bundle. Raises EngineError."""
    if choice.engine == "fake":
        from engine.backends.fake import FakeEngine

        return FakeEngine.from_bundle(bundle, graph, max_batch=settings.max_batch_rows)
    if choice.engine == "tensorrt":
        from engine.backends.tensorrt import TensorRtEngine

        assert choice.plan is not None
        return TensorRtEngine(
            bundle, graph, choice.plan, max_batch=settings.max_batch_rows, max_tokens=settings.max_batch_tokens
        )
    on_cuda = choice.engine == "onnxruntime-cuda"
    try:
        import onnxruntime  # noqa: F401 - for what it raises, which our own modules below do not
    except Exception as error:  # ImportError, or whatever a library of its that does not load raises
        packages = f"requirements/{'all' if on_cuda else 'cpu'}.txt"
        raise EngineError(f"onnxruntime does not load: {error}; install {packages}") from error
    if on_cuda:
        from engine.backends.onnxruntime_cuda import OnnxRuntimeCudaEngine

        return OnnxRuntimeCudaEngine(
            bundle,
            graph,
            threads=settings.threads,
            max_batch=settings.max_batch_rows,
            max_tokens=settings.max_batch_tokens,
        )
    from engine.backends.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(
        bundle, graph, threads=settings.threads, max_batch=settings.max_batch_rows, lanes=settings.cpu_lanes
    )
