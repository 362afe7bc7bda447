"""ONNX Runtime's CUDA provider: the second choice on a GPU. Written, and run on the CPU; not yet run on a GPU.

A ladder as coarse as a plan's, so that every bucket that batches come to is bound and warmed at boot: its inputs to
OrtValues on the device, its outputs to the host's buffers, into which ONNX Runtime copies them itself.
"""

from __future__ import annotations

import re
from typing import Any

import onnxruntime as ort

from engine.backends.onnxruntime import OnnxRuntimeEngine
from engine.bucket import Bucket, Ladder
from engine.bundle import Bundle
from engine.errors import EngineError, EngineLost, OutOfMemory

_SHORTEST = 16
# Of the arena, of CUDA, of a kernel, of cuBLAS and cuDNN; and of the CPU, in tests.
_NO_ROOM = re.compile(
    r"Failed to allocate memory|CUDA failure 2:|cudaErrorMemoryAllocation|STATUS_ALLOC_FAILED|bad_alloc"
)


class OnnxRuntimeCudaEngine(OnnxRuntimeEngine):
    """As OnnxRuntimeEngine, with inputs on the device. `device` "cpu" is for machines without a GPU: for tests.

    `max_tokens` is what batches are held to; 0 is `best_tokens`, which then becomes smaller where memory ends.

    Choose it only after a device was probed, for without a driver the provider crashes the process. Raises OutOfMemory
    where there is no room for the weights, else EngineError.
    """

    def __init__(
        self,
        bundle: Bundle,
        graph: str = "model",
        *,
        threads: int = 0,
        max_batch: int = 32,
        max_tokens: int = 0,
        device: str = "cuda",
    ) -> None:
        try:
            super().__init__(bundle, graph, provider=device, threads=threads, max_batch=max_batch)
        except EngineError as error:
            if _NO_ROOM.search(said := str(error).strip()):
                raise OutOfMemory(f"{said}; there is no room for the weights: take a GPU with more memory") from error
            raise
        self.buckets = coarse(self.buckets.largest)
        self.notes: list[str] = []
        """What is not as it should be and yet runs, in sentences for the health reply."""
        self._device = device
        self._max_tokens = max_tokens
        self._values: dict[Bucket, dict[str, Any]] = {}

    def warm_up(self) -> None:
        """Run every bucket that batches come to: memory for all of them is then there, and their kernels are chosen.

        Those with the most scores of attention first, which take the most memory: what is there for them is enough for
        the others. May lower `best_tokens`. Raises OutOfMemory or EngineError.
        """
        for bucket in sorted(self.buckets, key=lambda b: (b.batch * b.length**2, b.tokens), reverse=True):
            if self.buckets.is_for(bucket, self._max_tokens or self.best_tokens):
                try:
                    self.run(bucket)
                except OutOfMemory as error:
                    self._hold_below(bucket, str(error).strip())

    def _hold_below(self, bucket: Bucket, reason: str) -> None:
        """Let no batch come to `bucket`, for which there is no memory."""
        least = self.buckets.least(bucket)
        self._values.pop(bucket, None)
        self._bindings.pop(bucket, None)
        left = least.tokens - 1
        if least.batch == 1:
            raise OutOfMemory(
                f"{reason}; this GPU has no room for one row of {bucket.length} tokens: take one with more memory, or "
                "export the model for smaller rows (--max-length, --image-size)"
            )
        if self._max_tokens:
            raise OutOfMemory(
                f"{reason}; set MAX_BATCH_TOKENS to {left} or less, not {self._max_tokens}, or leave it to the engine"
            )
        self.best_tokens = left
        largest = f"{bucket.batch} rows of {bucket.length} tokens"
        self.notes = [f"no room for {largest}, at most {left} tokens run at once: {reason}"]

    def start(self, bucket: Bucket, slot: int = 0) -> None:
        """Copy `feeds(bucket)` to the device and run it to its end."""
        try:
            try:
                if bucket not in self._bindings:
                    self._bind(bucket)
                for name, value in self._values[bucket].items():
                    value.update_inplace(self._in.at(bucket)[name])
                    # Again in every run: of an input that a node on the CPU reads, ONNX Runtime copies back what is
                    # there when it is bound, and that node then reads the copy.
                    self._bindings[bucket].bind_ortvalue_input(name, value)
            except Exception as error:  # as in the base class
                raise EngineError(f"ONNX Runtime does not copy the inputs of {bucket}: {error}") from error
            super().start(bucket)
        except EngineError as error:
            said = str(error)
            if sticky := self._sticky():
                raise EngineLost(said if sticky in said else f"{said} ({sticky})") from error
            if _NO_ROOM.search(said):
                raise OutOfMemory(said) from error
            raise

    def close(self) -> None:
        """Drop the device's memory before the session that it belongs to."""
        self._values.clear()
        super().close()

    def _sticky(self) -> str | None:
        """The error that every further call would meet; None when the device works, or when nothing is bound yet.

        Asked of the device, as in cuda.py: a sticky error is one that comes back. In the first report it can hardly be
        known, for kernels, cuBLAS and cuDNN have words of their own. The question is a copy to memory that is there, of
        the bucket that was bound last: of the smallest.
        """
        for bucket, values in reversed(self._values.items()):
            for name, value in values.items():
                try:
                    value.update_inplace(self._in.at(bucket)[name])
                except Exception as error:  # as in the base class
                    return str(error)
                return None
        return None

    def _bind(self, bucket: Bucket) -> Any:
        binding = self._session.io_binding()
        values = {
            spec.name: ort.OrtValue.ortvalue_from_shape_and_type(
                spec.shape_at(bucket), self._in.at(bucket)[spec.name].dtype.type, self._device, 0
            )
            for spec in self.inputs
        }
        for name, view in self._out.at(bucket).items():
            binding.bind_output(name, "cpu", 0, view.dtype.type, view.shape, view.ctypes.data)
        self._values[bucket], self._bindings[bucket] = values, binding
        return binding


def coarse(largest: Bucket) -> Ladder:
    """Powers of two, batches from 1 and lengths from 16 up, closed by the sizes of `largest`."""
    batches = {min(1 << step, largest.batch) for step in range(largest.batch.bit_length() + 1)}
    lengths = {min(_SHORTEST << step, largest.length) for step in range(largest.length.bit_length() + 1)}
    return Ladder(sorted(batches), sorted(lengths))
