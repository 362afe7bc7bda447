"""The sidecar of a plan: what it was built for, and whether it may run here. Rule: imports no numpy, tensorrt or CUDA.

    graphs/<name>/plans/sm_89-trt10.13.0-fp16.plan     a serialized TensorRT engine
    graphs/<name>/plans/sm_89-trt10.13.0-fp16.json     its sidecar, one `Plan`

A plan that does not fit is never deserialized: TensorRT answers a mismatch with None and a line in its log, at best.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from engine.bucket import Bucket, Ladder
from engine.errors import BundleError

if TYPE_CHECKING:
    from engine.bundle import Bundle

Shape: TypeAlias = tuple[int, ...]

RUNTIMES = ("tensorrt", "tensorrt_rtx")
HARDWARE_COMPATIBILITY = ("none", "same-compute-capability", "ampere-plus")
PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8")
SUFFIX = ".plan"
SHARED_WEIGHTS = "weights.bin"
TIMING_CACHE = "timing.cache"
"""Beside plans: what the builder measured on one GPU with one version of TensorRT."""
REBUILD = "python -m export plan BUNDLE"

_AMPERE = (8, 0)
_VERSION_PARTS = 3  # of 10.13.0.35 the parts that every report of a version has


@dataclass(frozen=True)
class Profile:
    """One optimization profile: the buckets that it serves, and (min, opt, max) of every input's shape.

    One profile a bucket with min = opt = max is what the builder makes by default: TensorRT then picks the kernels of
    exactly that shape, and an execution context never leaves its profile.
    """

    buckets: tuple[Bucket, ...]
    shapes: Mapping[str, tuple[Shape, Shape, Shape]]


@dataclass(frozen=True)
class Plan:
    """What a plan was built from, with and for. The position of a profile is its index in TensorRT."""

    runtime: str
    """One of RUNTIMES. Plans of TensorRT for RTX load in nothing else."""
    tensorrt_version: str
    compute_capability: str
    """As in "8.9"."""
    hardware_compatibility: str
    version_compatible: bool
    precision: str
    gpu_name: str
    driver_version: str
    cuda_version: str
    batches: tuple[int, ...]
    lengths: tuple[int, ...]
    profiles: tuple[Profile, ...]
    optimization_level: int
    workspace_bytes: int
    size: int
    """Bytes of the plan."""
    sha256: str
    onnx: str
    """File name of the graph that it was built from, relative to the bundle."""
    onnx_sha256: str
    """`source_digest` of that graph: the plan holds the weights, so they count."""
    profile_sharing: bool = False
    """Built with the preview feature PROFILE_SHARING_0806, without which the execution contexts of TensorRT 8.6 cannot
    share a profile. From TensorRT 10 on they always can."""
    latencies_us: tuple[int, ...] = ()
    """Microseconds of a run with its copies on `gpu_name`, the median, for every bucket in the ladder's order; empty
    where that was not measured."""
    max_tokens: int = 0
    """The ladder's: buckets that only larger batches would come to are left out, unless 0."""

    def __post_init__(self) -> None:
        """Raises ValueError that names the field and what is allowed."""
        for name, allowed in _ALLOWED.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}, not one of {', '.join(allowed)}")
        _numbers(self.compute_capability, "compute_capability", 2)
        _numbers(self.tensorrt_version, "tensorrt_version", _VERSION_PARTS)
        for bucket in self.ladder:
            if not any(bucket in profile.buckets for profile in self.profiles):
                raise ValueError(f"no profile serves {bucket}")
        if len(self.latencies_us) not in (0, len(self.ladder)) or not all(us > 0 for us in self.latencies_us):
            raise ValueError(f"latencies_us has {len(self.latencies_us)} entries, not one above 0 for each bucket")
        for profile in self.profiles:
            for name, (low, best, high) in profile.shapes.items():
                if not _ordered(low, best, high):
                    raise ValueError(f"profile of {name}: {low} <= {best} <= {high} does not hold")

    @property
    def ladder(self) -> Ladder:
        """The buckets that it serves."""
        return Ladder(self.batches, self.lengths, self.max_tokens)

    @property
    def architecture(self) -> str:
        """As in "sm_89"."""
        return f"sm_{self.compute_capability.replace('.', '')}"

    @property
    def stem(self) -> str:
        """File name without a suffix, as in "sm_89-trt10.13.0-fp16"; what differs from an ordinary plan is named."""
        short = ".".join(self.tensorrt_version.split(".")[:_VERSION_PARTS])
        runtime = {"tensorrt": "trt", "tensorrt_rtx": "rtx"}[self.runtime]
        extra = [] if self.hardware_compatibility == "none" else [self.hardware_compatibility]
        extra += ["vc"] if self.version_compatible else []
        return "-".join([self.architecture, f"{runtime}{short}", self.precision, *extra])

    def profile_of(self, bucket: Bucket) -> int:
        """Index of the profile that serves `bucket`, the one with the fewest buckets first. Raises ValueError."""
        serving = [(len(p.buckets), index) for index, p in enumerate(self.profiles) if bucket in p.buckets]
        if not serving:
            raise ValueError(f"no profile serves {bucket}")
        return min(serving)[1]


_ALLOWED = {"runtime": RUNTIMES, "hardware_compatibility": HARDWARE_COMPATIBILITY, "precision": PRECISIONS}


class PlanFile(NamedTuple):
    """A plan and where its bytes lie."""

    plan: Plan
    path: Path

    @property
    def name(self) -> str:
        """File name, for logs and the health reply."""
        return self.path.name


class Machine(NamedTuple):
    """What a plan has to fit: the TensorRT that is installed and the GPU that is there."""

    tensorrt_version: str
    compute_capability: str
    gpu_name: str = ""
    runtime: str = "tensorrt"


def mismatch(plan: Plan, machine: Machine) -> str | None:
    """Why `plan` cannot run on `machine`, in one sentence that names both and the fix; None when it can."""
    if plan.runtime != machine.runtime:
        what = f"it is a plan of {_product(plan.runtime)} {plan.tensorrt_version}"
        return f"{what}, and {_product(machine.runtime)} {machine.tensorrt_version} loads only its own; {_fix()}"
    if not _version_fits(plan, machine.tensorrt_version):
        what = (
            f"it was built with TensorRT {plan.tensorrt_version}, and TensorRT {machine.tensorrt_version} is installed"
        )
        return f"{what}; {_fix('with the version that runs it, or with --version-compatible')}"
    if not _architecture_fits(plan, machine.compute_capability):
        level = "" if plan.hardware_compatibility == "none" else f" ({plan.hardware_compatibility})"
        found = f"sm_{machine.compute_capability.replace('.', '')}"
        named = f"{machine.gpu_name} ({found})" if machine.gpu_name else found
        what = f"it was built for {plan.architecture}{level}, and this GPU is {named}"
        return f"{what}; {_fix('on this kind of GPU')}"
    return None


def source_digest(files: Mapping[str, tuple[int, str]], onnx: str) -> str:
    """SHA-256 over an ONNX file and the files of its weights, from the digests in a manifest's `files`.

    The weights lie outside the ONNX file: two models of one architecture may have equal ONNX files. They are in the
    graphs' shared weights.bin, in a .bin file of the graph's own name, or in both; what other graphs bring along does
    not count. Raises KeyError when `onnx` is not listed.
    """
    path = PurePosixPath(onnx)
    weights = sorted({str(path.with_name(SHARED_WEIGHTS)), str(path.with_suffix(".bin"))} & set(files))
    lines = [f"{PurePosixPath(name).name}={files[name][1]}\n" for name in (onnx, *weights)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def plans_of(bundle: Bundle, graph: str = "model") -> list[PlanFile]:
    """The plans of one graph of a bundle, by file name.

    Raises BundleError for one whose sidecar is missing, unreadable or of other bytes.
    """
    files = bundle.manifest.files
    folder = PurePosixPath("graphs", graph, "plans")
    found = []
    for name in sorted(n for n in files if PurePosixPath(n).parent == folder and n.endswith(SUFFIX)):
        plan = read_sidecar(bundle.file(sidecar_of(name)))
        if (plan.size, plan.sha256) != files[name]:
            raise BundleError(f"{bundle.path / name} is not the plan that its sidecar describes; {_fix()}")
        found.append(PlanFile(plan, bundle.file(name)))
    return found


def stale(plan: Plan, bundle: Bundle) -> str | None:
    """Why `plan` does not hold what `bundle` holds; None when it does."""
    try:
        now = source_digest(bundle.manifest.files, plan.onnx)
    except KeyError:
        return f"it was built from {plan.onnx}, which this bundle has not; {_fix()}"
    return None if now == plan.onnx_sha256 else f"it was built from another {plan.onnx}; {_fix()}"


def sidecar_of(plan_name: str) -> str:
    """Name of the sidecar of the plan called `plan_name`."""
    return plan_name.removesuffix(SUFFIX) + ".json"


def write_sidecar(plan: Plan, folder: Path) -> Path:
    """Write `plan` beside the plan `<plan.stem>.plan` in `folder`; its path. Equal plans give equal bytes."""
    path = folder / f"{plan.stem}.json"
    path.write_text(json.dumps(asdict(plan), indent=1) + "\n", encoding="utf-8")
    return path


def read_sidecar(path: Path) -> Plan:
    """The plan that `path` describes. Fields that a newer version added are skipped.

    Raises BundleError when it is missing or not what a sidecar is.
    """
    try:
        data = json.loads(path.read_bytes())
        known = {name: data[name] for name in _KINDS if name in data}
        known["profiles"] = tuple(_profile(profile) for profile in known["profiles"])
        known |= {name: tuple(known[name]) for name in ("batches", "lengths", "latencies_us") if name in known}
        for name, kind in _KINDS.items():
            if name in known and not isinstance(known[name], kind):
                raise ValueError(f"{name} is {known[name]!r}")
        return Plan(**known)
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}); {_fix()}") from error
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise BundleError(f"{path} is not the sidecar of a plan ({error}); {_fix()}") from error


def _profile(data: Any) -> Profile:
    shapes = {name: tuple(tuple(map(int, shape)) for shape in three) for name, three in data["shapes"].items()}
    if any(len(three) != 3 for three in shapes.values()):
        raise ValueError("a profile has min, opt and max shapes")
    return Profile(tuple(Bucket(batch, length) for batch, length in data["buckets"]), shapes)  # type: ignore[arg-type]


def _version_fits(plan: Plan, installed: str) -> bool:
    built, here = _numbers(plan.tensorrt_version), _numbers(installed)
    if plan.version_compatible:  # runs in its own version and in later ones of its major
        return built[0] == here[0] and built[:_VERSION_PARTS] <= here[:_VERSION_PARTS]
    shared = min(len(built), len(here))
    return built[:shared] == here[:shared]


def _architecture_fits(plan: Plan, compute_capability: str) -> bool:
    built, here = _numbers(plan.compute_capability), _numbers(compute_capability)
    return built == here or (plan.hardware_compatibility == "ampere-plus" and here >= _AMPERE)


def _numbers(version: str, name: str = "version", least: int = 1) -> tuple[int, ...]:
    """The numbers that a version opens with. Raises ValueError when they are fewer than `least`."""
    numbers: list[int] = []
    for part in version.split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    if len(numbers) < least:
        raise ValueError(f"{name} is {version!r}, not {least} numbers with points between them")
    return tuple(numbers)


def _ordered(low: Shape, middle: Shape, high: Shape) -> bool:
    """Whether the three have as many axes and rise, axis by axis."""
    same = len(low) == len(middle) == len(high)
    return same and all(a <= b <= c for a, b, c in zip(low, middle, high, strict=True))


def _product(runtime: str) -> str:
    return {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT for RTX"}[runtime]


def _fix(how: str = "") -> str:
    return f"build it again{f' {how}' if how else ''}: `{REBUILD}`"


_KINDS = {field.name: {"str": str, "bool": bool, "int": int}.get(str(field.type), tuple) for field in fields(Plan)}
