"""Stands in for tensorrt: a plan is JSON, and what it computes is a function on arrays of the device double's memory.

It holds to the rules that the engine relies on: an optimization profile bounds the shapes; every tensor needs an
address; the first run after a change cannot be captured; a capture is void when its execution context was changed;
TensorRT 8.6 gives a profile to one execution context unless the plan says otherwise; failures are None or False, and a
line in the log. To select a profile is another thing: the bindings raise, and those of 8.6 crash (`Crash`).
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Mapping
from enum import IntEnum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from engine.backends.tensorrt import TensorRtEngine
from engine.bundle import open_bundle
from engine.plans.sidecar import Profile, plans_of
from engine.tensors import Array
from tests.bundles import DIMENSION
from tests.cuda_double import CUresult, Device, Fault, installed
from tests.plans import SPECS, add_plan, profiles

POISON = 49
"""A token on which the toy model reads beyond its memory."""

Function = Callable[[Mapping[str, Array]], Mapping[str, Array]]


def toy(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
    """What tests.bundles.toy_model computes."""
    if (inputs["input_ids"] == POISON).any():
        raise Fault(CUresult.CUDA_ERROR_ILLEGAL_ADDRESS)
    sums = (inputs["input_ids"] * inputs["attention_mask"]).sum(axis=1, dtype=np.float32)
    return {"embedding": sums[:, None] * (np.arange(1, DIMENSION + 1, dtype=np.float32) / 1000)}


class Crash(BaseException):
    """A segmentation fault: nothing of the project may catch it."""


class TensorIOMode(IntEnum):
    NONE, INPUT, OUTPUT = 0, 1, 2


class Severity(IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    Severity: ClassVar = Severity

    def __init__(self) -> None:
        self.is_made = True

    def log(self, severity: IntEnum, message: str) -> None:
        raise NotImplementedError


def plan_bytes(profiles: tuple[Profile, ...] = profiles(), *, scratch: int = 1000, **changes: Any) -> bytes:
    """A plan of the toy model. `scratch` is the memory in bytes that one token of it needs."""
    plan: dict[str, Any] = {
        "inputs": {spec.name: spec.dtype for spec in SPECS},
        "outputs": {"embedding": ["float32", DIMENSION]},
        "profiles": [profile.shapes for profile in profiles],
        "scratch": scratch,
        "sharing": False,
        **changes,
    }
    return json.dumps(plan).encode()


class TensorRtDouble(ModuleType):
    """The names of tensorrt that the project uses, in `version`."""

    def __init__(self, device: Device, version: str = "10.13.0.35", function: Function = toy) -> None:
        super().__init__("tensorrt")
        self.__version__ = version
        self.ILogger, self.TensorIOMode = ILogger, TensorIOMode
        self.has_plugins = self.refuse_to_capture = False
        self.refuse_to_run = ""
        self.refuse_to_start = ""
        self.refuse_to_select = ""
        self.most_contexts = 1_000
        """So many execution contexts of one engine there is memory for, which is TensorRT's own."""

        def init_libnvinfer_plugins(logger: ILogger, namespace: str) -> bool:
            assert isinstance(logger, ILogger)
            assert logger.is_made, "the bindings want their own __init__ to have been called"
            self.has_plugins = True
            return True

        def nptype(name: str) -> Any:
            if name == "bfloat16":
                raise TypeError
            return np.dtype(name).type

        self.init_libnvinfer_plugins, self.nptype = init_libnvinfer_plugins, nptype
        double, is_10 = self, int(version.split(".")[0]) >= 10

        class Runtime:
            engine_host_code_allowed = False

            def __init__(self, logger: ILogger) -> None:
                self.logger = logger
                if double.refuse_to_start:
                    logger.log(Severity.ERROR, double.refuse_to_start)
                    raise TypeError("pybind11::init(): factory function returned nullptr")

            def deserialize_cuda_engine(self, content: Any) -> Any:
                assert device.stack, "TensorRT takes the context that is current"
                assert double.has_plugins, "a plan may hold some that the ONNX parser put there"
                self.logger.log(Severity.INFO, "Loaded engine size: 1 MiB")
                try:
                    plan = json.loads(bytes(content))
                except ValueError:
                    self.logger.log(Severity.ERROR, "[engine.cpp] Serialization assertion magicTag failed")
                    return None
                if plan.get("host_code") and not self.engine_host_code_allowed:
                    self.logger.log(Severity.ERROR, "host code is not allowed")
                    return None
                return (Engine10 if is_10 else Engine)(plan, self.logger)

        class Engine:
            def __init__(self, plan: dict[str, Any], logger: ILogger) -> None:
                self.plan, self.logger = plan, logger
                self.names = [*plan["inputs"], *plan["outputs"]]
                self.num_io_tensors = len(self.names)
                self.num_optimization_profiles = len(plan["profiles"])
                self.contexts: weakref.WeakSet[Any] = weakref.WeakSet()

            def get_tensor_name(self, index: int) -> str:
                return self.names[index]

            def get_tensor_mode(self, name: str) -> TensorIOMode:
                return TensorIOMode.INPUT if name in self.plan["inputs"] else TensorIOMode.OUTPUT

            def get_tensor_dtype(self, name: str) -> str:
                found = self.plan["inputs"].get(name) or self.plan["outputs"][name][0]
                return str(found)

            def scratch_of(self, index: int) -> int:
                if index >= len(self.plan["profiles"]):
                    return 0
                largest = self.plan["profiles"][index]["input_ids"][2]
                return int(np.prod(largest)) * int(self.plan["scratch"])

            @property
            def device_memory_size(self) -> int:
                return max(map(self.scratch_of, range(len(self.plan["profiles"]))))

            def create_execution_context_without_device_memory(self) -> Any:
                return self.new_context(ExecutionContext)

            def new_context(self, kind: Any) -> Any:
                if len(self.contexts) >= double.most_contexts:
                    self.logger.log(Severity.ERROR, "Error Code 2: OutOfMemory (Requested size was 4096 bytes.)")
                    return None
                context = kind(self)
                self.contexts.add(context)
                return context

        class Engine10(Engine):
            def create_execution_context_without_device_memory(self) -> Any:
                # What the binding does where warnings are errors: it warns, and goes on as if it had not.
                raise SystemError(
                    "create_execution_context_without_device_memory returned a result with an exception set"
                )

            def create_execution_context(self, strategy: str) -> Any:
                assert strategy == "user managed", "the static strategy allocates for every execution context"
                return self.new_context(ExecutionContext10)

            def get_device_memory_size_for_profile_v2(self, index: int) -> int:
                return self.scratch_of(index)

        class ExecutionContext:
            def __init__(self, engine: Engine) -> None:
                self.engine = engine
                taken = any(other.profile == 0 for other in engine.contexts)
                self.profile: int | None = None if taken and not self._may_share() else 0
                self.shapes: dict[str, tuple[int, ...]] = {}
                self.addresses: dict[str, int] = {}
                self.changes = 0
                self.ran_at: int | None = None
                self._scratch = 0

            def _may_share(self) -> bool:
                return is_10 or bool(self.engine.plan["sharing"])

            @property
            def device_memory(self) -> int:
                return self._scratch

            @device_memory.setter
            def device_memory(self, address: int) -> None:
                self._scratch = address

            def set_optimization_profile_async(self, index: int, stream: int) -> bool:
                assert stream, "the legacy stream would wait for others"
                others = [other for other in self.engine.contexts if other is not self]
                why = double.refuse_to_select
                if index >= self.engine.num_optimization_profiles:
                    why = f"profile {index} is out of range"
                elif any(other.profile == index for other in others) and not self._may_share():
                    why = f"profile {index} is in use by another context"
                if why:
                    self.engine.logger.log(Severity.ERROR, why)
                    # The bindings set this exception; before 10 they have let go of the interpreter lock there.
                    raise RuntimeError("Error in set optimization profile async.") if is_10 else Crash(why)
                self.changes += 1
                self.profile = index
                return True

            def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
                assert self.profile is not None
                low, _, high = self.engine.plan["profiles"][self.profile][name]
                self.changes += 1
                self.shapes[name] = shape
                return all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))

            def get_tensor_shape(self, name: str) -> tuple[int, ...]:
                if name in self.shapes:
                    return self.shapes[name]
                return (self.shapes["input_ids"][0], *self.engine.plan["outputs"][name][1:])

            def set_tensor_address(self, name: str, address: int) -> bool:
                self.changes += 1
                self.addresses[name] = address
                return address % 256 == 0

            def execute_async_v3(self, stream: int) -> bool:
                if double.refuse_to_run:
                    self.engine.logger.log(Severity.ERROR, double.refuse_to_run)
                    return False
                assert set(self.addresses) == set(self.engine.names)
                if device.captures(stream) and (self.ran_at != self.changes or double.refuse_to_capture):
                    device.invalidate(stream)
                    self.engine.logger.log(Severity.ERROR, "operation not permitted when stream is capturing")
                    return False
                self.ran_at = changes = self.changes
                inputs = {n: (self.addresses[n], self.shapes[n]) for n in self.engine.plan["inputs"]}
                outputs = {n: self.addresses[n] for n in self.engine.plan["outputs"]}
                scratch, tokens = self._scratch, int(np.prod(self.shapes["input_ids"]))
                alive = weakref.ref(self)  # a kernel, which the software driver keeps, is no reason for it to live

                def run() -> None:
                    context = alive()
                    assert context is not None, "the execution context is gone"
                    assert changes == context.changes, "the execution context was changed under its capture"
                    device.at(scratch, tokens * context.engine.plan["scratch"])[:] = 0xEE
                    dtype = context.engine.get_tensor_dtype
                    try:
                        found = function({n: _read(device, dtype(n), *i) for n, i in inputs.items()})
                    except Fault as fault:
                        device.sticky = CUresult(fault.code)
                        raise
                    for name, values in found.items():
                        raw = np.ascontiguousarray(values).view(np.uint8).ravel()
                        device.at(outputs[name], raw.nbytes)[:] = raw

                try:
                    device.submit(run, stream)
                except Fault as fault:
                    self.engine.logger.log(Severity.ERROR, f"Error Code 1: Cuda Runtime ({fault})")
                    return False
                return True

        class ExecutionContext10(ExecutionContext):
            def set_device_memory(self, memory: int, size: int) -> None:
                assert self.profile is not None
                assert size >= self.engine.scratch_of(self.profile)
                self._scratch = memory

        self.Runtime = Runtime
        if is_10:
            self.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")


def _read(device: Device, dtype: str, address: int, shape: tuple[int, ...]) -> Array:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return device.at(address, size).view(dtype).reshape(shape).copy()


def engine_on_double(
    folder: Path,
    *,
    profiles: tuple[Profile, ...] = profiles(),
    device: Device | None = None,
    trt: TensorRtDouble | None = None,
    content: bytes | None = None,
    max_batch: int | None = None,
    held_to: int | None = None,
    **changes: Any,
) -> TensorRtEngine:
    """A TensorRT engine on the doubles, from a plan that is added to the toy bundle in `folder`.

    `changes` are of the sidecar; `content` replaces the plan's bytes; `held_to` is the engine's `max_tokens`.
    """
    device = device or Device()
    trt = trt or TensorRtDouble(device)
    changes.setdefault("tensorrt_version", trt.__version__)
    sharing = changes.get("profile_sharing", False)
    content = plan_bytes(profiles, sharing=sharing) if content is None else content
    made = add_plan(folder, content, profiles=profiles, **changes)
    bundle = open_bundle(folder)
    (plan,) = [found for found in plans_of(bundle) if found.plan == made]
    with installed(device, tensorrt=trt):
        return TensorRtEngine(bundle, "model", plan, max_batch=max_batch, max_tokens=held_to)
