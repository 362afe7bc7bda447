"""ONNX Runtime's CUDA provider: the second choice on a GPU. Written, and run on the CPU; not yet run on a GPU.

A ladder as coarse as a plan's, so that every bucket is bound and warmed at boot: its inputs to OrtValues on the device,
its outputs to the host's buffers, into which ONNX Runtime copies them itself.
"""

from __future__ import annotations

import re
from typing import Any

import onnxruntime as ort

from engine.backends.onnxruntime import OnnxRuntimeEngine
from engine.bucket import Bucket, Ladder
from engine.bundle import Bundle
from engine.errors import EngineError, EngineLost

_SHORTEST = 16
_CUDA_FAILURE = re.compile(r"CUDA failure (\d+):")
# Those that cudaError_t's documentation says leave the process in a state in which all further work fails, and
# uncorrectable errors of the hardware.
_STICKY = frozenset((214, 220, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 999))


class OnnxRuntimeCudaEngine(OnnxRuntimeEngine):
    """As OnnxRuntimeEngine, with inputs on the device. `device` "cpu" is for machines without a GPU: for tests.

    Choose it only after a device was probed, for without a driver the provider crashes the process. Raises EngineError.
    """

    def __init__(
        self, bundle: Bundle, graph: str = "model", *, threads: int = 0, max_batch: int = 32, device: str = "cuda"
    ) -> None:
        super().__init__(bundle, graph, provider=device, threads=threads, max_batch=max_batch)
        self.buckets = coarse(self.buckets.largest)
        self._device = device
        self._values: dict[Bucket, dict[str, Any]] = {}

    def warm_up(self) -> None:
        """Run every bucket, largest first: memory for all of them is then there, and their kernels are chosen."""
        for bucket in reversed(self.buckets):
            self.run(bucket)

    def start(self, bucket: Bucket, slot: int = 0) -> None:
        """Copy `feeds(bucket)` to the device and run it to its end."""
        if bucket not in self._bindings:
            self._bind(bucket)
        try:
            try:
                for name, value in self._values[bucket].items():
                    value.update_inplace(self._in.at(bucket)[name])
            except Exception as error:  # as in the base class
                raise EngineError(f"ONNX Runtime does not copy the inputs of {bucket}: {error}") from error
            super().start(bucket)
        except EngineError as error:
            if is_sticky(str(error)):
                raise EngineLost(str(error)) from error
            raise

    def close(self) -> None:
        """Drop the device's memory before the session that it belongs to."""
        self._values.clear()
        super().close()

    def _bind(self, bucket: Bucket) -> Any:
        binding = self._session.io_binding()
        values = {
            spec.name: ort.OrtValue.ortvalue_from_shape_and_type(
                spec.shape_at(bucket), self._in.at(bucket)[spec.name].dtype.type, self._device, 0
            )
            for spec in self.inputs
        }
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for name, view in self._out.at(bucket).items():
            binding.bind_output(name, "cpu", 0, view.dtype.type, view.shape, view.ctypes.data)
        self._values[bucket], self._bindings[bucket] = values, binding
        return binding


def is_sticky(message: str) -> bool:
    """Whether ONNX Runtime tells of a CUDA error that every further call in this process meets again."""
    found = _CUDA_FAILURE.search(message)
    return found is not None and int(found.group(1)) in _STICKY


def coarse(largest: Bucket) -> Ladder:
    """Powers of two, batches from 1 and lengths from 16 up, closed by the sizes of `largest`."""
    batches = {min(1 << step, largest.batch) for step in range(largest.batch.bit_length() + 1)}
    lengths = {min(_SHORTEST << step, largest.length) for step in range(largest.length.bit_length() + 1)}
    return Ladder(sorted(batches), sorted(lengths))
