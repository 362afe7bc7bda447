"""The bundle format. Rule: nothing else in the project reads or writes manifest.json.

    manifest.json            schema_version first; every other file with its size and SHA-256, large ones in pieces too
    manifest.sha256          digest of manifest.json, as `sha256sum --check` reads it
    manifest.sig             where the bundle is signed (engine/files/signature.py)
    graphs/<name>/...        the ONNX files and what belongs to them
    tokenizer.json, ...      data only: no code is ever loaded from a bundle

How it is written, whole or not at all, is in export/bundle_folder.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from engine.errors import BundleError
from engine.files import digest
from engine.files.external_data import refuse_outside
from engine.tensors import TensorSpec

SCHEMA_VERSION = "1.3"
MANIFEST = "manifest.json"
CHECKSUM = "manifest.sha256"
SIGNATURE = "manifest.sig"
VOLUME = Path("/runpod-volume")
"""Where RunPod mounts an endpoint's network volume."""
REBUILD = "copy the bundle again or export the model again"


class TaskConfig(dict[str, Any]):
    """What an export tells the task: of a bundle that was made before the task asked for more, one says so."""

    def __missing__(self, name: str) -> Any:
        raise BundleError(f"the bundle's task_config has no {name!r}, which its task reads; export the model again")


@dataclass(frozen=True)
class Graph:
    """One graph of the bundle.

    `onnx` maps a precision to the portable, unfused file. `fused` maps a precision to the same graph as ONNX Runtime
    has already optimised it for CPU: it loads faster and is never offered to anything else.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    onnx: Mapping[str, str]
    fused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """The bundle's index."""

    model: str
    """Hugging Face id, or the folder's name for a local model."""
    revision: str | None
    """Commit of the Hub repository; None for a local folder."""
    architecture: str
    task: str
    """Hugging Face task tag; names the module in engine/tasks."""
    task_config: Mapping[str, Any]
    """What the task needs to know, e.g. pooling and maximum length; the task's module documents its keys."""
    precision: str
    graphs: Mapping[str, Graph]
    versions: Mapping[str, str]
    """Packages that made the bundle."""
    precisions: Mapping[str, str] = field(default_factory=dict)
    """Target (cpu, cuda, tensorrt) -> the precision that was found for it; cpu's is `precision`."""
    parity_failed: str = ""
    """Why the bundle failed its parity gate, where it was written all the same."""
    files: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    """Relative path -> (size in bytes, SHA-256)."""
    pieces: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Relative path of a large file -> SHA-256 of each of its pieces (engine/files/digest.py)."""
    exporter: str = ""
    """What traced the graphs: optimum, dynamo (torch.export) or torchscript."""
    exporter_why: str = ""
    """Why it, where another comes first for such models."""
    adapters: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    """Adapters merged into the weights, in that order: name -> revision and SHA-256 of its weights."""
    code: Mapping[str, str] = field(default_factory=dict)
    """Hub repositories, beside the model's own, whose Python code was traced: name -> commit."""

    def max_length(self, graph: str) -> int:
        """The longest row that `graph` takes; 1 where none of its inputs grows with a length."""
        grows = any(spec.length_axis is not None for spec in self.graphs[graph].inputs)
        return int(self.task_config["max_length"]) if grows else 1


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. Nothing but the manifest has been read until `verify` or `verify_common` passed."""

    path: Path
    manifest: Manifest
    sha256: str = ""
    """Of manifest.json, and so of everything in the bundle."""
    told: Callable[[str, int], object] = field(default=lambda name, size: None, compare=False, repr=False)
    """Of a file's name and how many bytes more of it were read, while files are compared; in any thread."""

    def file(self, name: str) -> Path:
        """The path of a file that the manifest lists. Raises BundleError for any other."""
        if name not in self.manifest.files:
            raise BundleError(f"{self.path} has no {name!r}; export the model again")
        return self.path / name

    def onnx_of(self, graph: str, provider: str) -> tuple[str, bool]:
        """The ONNX file of `graph` for a provider of ONNX Runtime, "cpu" or "cuda", and whether it is a fused one."""
        found, precision = self.manifest.graphs[graph], self.manifest.precision
        if provider != "cpu":  # the CPU's int8 is for the CPU alone
            precision = self.manifest.precisions.get(provider) or ("fp32" if precision == "int8" else precision)
        elif precision in found.fused:
            return found.fused[precision], True
        return found.onnx.get(precision) or found.onnx["fp32"], False

    def weights_of(self, onnx: str) -> list[str]:
        """The files of weights that the ONNX file names, as external data does; perhaps more, if it names them else.

        To be asked when that file was compared with the manifest. Raises BundleError when it cannot be read.
        """
        weights = [name for name in self.manifest.files if is_weights(name)]
        if not weights:  # then they are inside, and that file may be large
            return []
        try:
            content = self.file(onnx).read_bytes()
        except OSError as error:
            raise BundleError(f"{self.path / onnx} cannot be read ({error.strerror}); {REBUILD}") from error
        return [name for name in weights if os.fsencode(PurePosixPath(name).name) in content]

    def verify(self, names: Iterable[str] | None = None) -> None:
        """Compare files, all of them unless they are named, with their recorded sizes and SHA-256.

        Files, and the pieces of large ones, are hashed side by side. Raises BundleError for the first that is missing
        or differs, and, of all of them, for a graph that takes tensors from any other file.
        """
        whole = names is None
        names = self.manifest.files if names is None else list(names)
        known = self.manifest.pieces
        pieces = [(name, index) for name in names for index in range(len(known.get(name, ())))]
        digest.side_by_side(self._verify_part, [*pieces, *((name, None) for name in names if name not in known)])
        if whole:
            self._refuse_outside()

    def verify_common(self) -> None:
        """As `verify`, but of files that only one engine opens no more than that they are there in their size."""
        for name in filter(_is_for_one_engine, self.manifest.files):
            self._verify_size(name)
        self.verify(self.common)
        self._refuse_outside()

    @property
    def common(self) -> list[str]:
        """The files that every boot reads."""
        return [name for name in self.manifest.files if not _is_for_one_engine(name)]

    def _refuse_outside(self) -> None:
        graphs = self.manifest.graphs.values()
        named = {name for graph in graphs for name in (*graph.onnx.values(), *graph.fused.values())}
        for name in sorted(named.intersection(self.manifest.files)):  # of others `file` hands out none
            refuse_outside(self.path, name, self.manifest.files, REBUILD)

    def _verify_size(self, name: str) -> None:
        path, size = self.path / name, self.manifest.files[name][0]
        try:
            found = path.stat()
        except FileNotFoundError:
            raise BundleError(f"{path} is missing; {REBUILD}") from None
        except OSError as error:
            raise BundleError(f"{path} cannot be read ({error.strerror}); {REBUILD}") from error
        if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for, /dev/zero read for ever
            raise BundleError(f"{path} is not a file; {REBUILD}")
        if found.st_size != size:
            raise BundleError(f"{path} has {found.st_size} bytes, the manifest says {size}; {REBUILD}")

    def _verify_part(self, part: tuple[str, int | None]) -> None:
        name, piece = part
        self._verify_size(name)
        path, (size, wanted) = self.path / name, self.manifest.files[name]
        told = partial(self.told, name)
        try:
            if piece is None:
                same = digest.sha256(path, told) == wanted
            else:
                begin = digest.pieces(size)[piece]
                same = digest.sha256_of_piece(path, begin, told) == self.manifest.pieces[name][piece]
        except OSError as error:
            raise BundleError(f"{path} cannot be read ({error.strerror}); {REBUILD}") from error
        if not same:
            raise BundleError(f"{path} does not match the SHA-256 in the manifest; {REBUILD}")


def is_weights(name: str) -> bool:
    """Whether the file holds tensors beside a graph, as ONNX's external data: no structure, nothing to be parsed."""
    return name.startswith("graphs/") and name.endswith(".bin")


def _is_for_one_engine(name: str) -> bool:
    """Whether a boot whose engine is another one never opens the file: weights, plans, and what their builder measured.

    They are most of a bundle, and one for many GPUs holds many of them.
    """
    return is_weights(name) or (name.startswith("graphs/") and name.endswith((".plan", ".cache")))


def open_bundle(path: Path, *, sha256: str = "", public_key: str = "") -> Bundle:
    """Read and check the manifest of the bundle at `path`.

    With `sha256` it must be that one bundle; with `public_key` it must carry a signature by its owner.
    Raises BundleError when there is none, when it was changed after it was written, when it is not the one that is
    wanted, or when its schema is newer; ConfigError when `public_key` is not a key.
    """
    try:
        if not (path / MANIFEST).is_file():
            from engine.files.no_bundle import no_bundle

            raise BundleError(no_bundle(path))
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read ({error.strerror}); change its permissions or name another folder"
        ) from None
    try:
        raw = (path / MANIFEST).read_bytes()
        checksum = (path / CHECKSUM).read_bytes()
    except OSError as error:
        raise BundleError(f"{error.filename} cannot be read ({error.strerror}); {REBUILD}") from error
    if checksum != _checksum_line(raw):
        raise BundleError(f"{path / MANIFEST} does not match {CHECKSUM}; {REBUILD}")
    of_manifest = checksum[:64].decode()
    if sha256 and of_manifest != sha256.lower():
        raise BundleError(f"{path} is bundle {of_manifest}, BUNDLE_SHA256 names {sha256}; change one of them")
    if public_key:
        from engine.files.signature import check_signature

        check_signature(path, raw, public_key)
    return Bundle(path, _parse(path, raw), of_manifest)


def _parse(path: Path, raw: bytes) -> Manifest:
    try:
        data = json.loads(raw)
        version = str(data.get("schema_version", "missing"))
    except (ValueError, RecursionError, AttributeError) as error:
        raise BundleError(f"{path / MANIFEST} is not a JSON object ({error}); {REBUILD}") from error
    if version.partition(".")[0] != (major := SCHEMA_VERSION.partition(".")[0]):
        raise BundleError(
            f"{path} has bundle schema {version}, this worker reads {major}.x; "
            "update the worker, or export the model again with this version"
        )
    # Fields that a newer minor version added are skipped: that is what a minor version promises.
    known = {name: data[name] for name in Manifest.__dataclass_fields__ if name in data}
    try:
        known["task_config"] = TaskConfig(data["task_config"])
        known["graphs"] = {name: _parse_graph(graph) for name, graph in data["graphs"].items()}
        known["files"] = {_safe(name): (entry["size"], entry["sha256"]) for name, entry in data["files"].items()}
        known["pieces"] = {name: _parse_pieces(entry) for name, entry in data["files"].items() if entry.get("pieces")}
        return Manifest(**known)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise BundleError(f"{path / MANIFEST} is not what schema {version} describes ({error}); {REBUILD}") from error


def _parse_graph(data: dict[str, Any]) -> Graph:
    def tensors(entries: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(e["name"], e["dtype"], tuple(e["shape"]), e.get("pad", 0)) for e in entries)

    return Graph(tensors(data["inputs"]), tensors(data["outputs"]), data["onnx"], data.get("fused", {}))


def _parse_pieces(entry: dict[str, Any]) -> tuple[str, ...]:
    digests = tuple(entry["pieces"])
    if len(digests) != len(digest.pieces(entry["size"])):
        raise ValueError(f"{len(digests)} pieces of a file of {entry['size']} bytes")
    return digests


def _safe(name: str) -> str:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ValueError(f"file name {name!r} leaves the bundle")
    if b"\0" in os.fsencode(name):  # which raises ValueError itself for half a surrogate pair
        raise ValueError(f"file name {name!r} is none")
    return name


def is_newer(folder: Path) -> bool:
    """Whether a later version wrote the manifest in `folder`, perhaps with more in it than is read here."""
    version = str(json.loads((folder / MANIFEST).read_bytes())["schema_version"])
    minor, own = (one.partition(".")[2] for one in (version, SCHEMA_VERSION))
    return (len(minor), minor) > (len(own), own)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Record every file below `folder` and write the manifest and its checksum, flushed to disk.

    Replaces `manifest.files`. Equal content gives equal bytes: keys are sorted and no time is recorded.
    """
    names = sorted(str(p.relative_to(folder).as_posix()) for p in folder.rglob("*") if p.is_file())
    files = {name: _described(folder / name) for name in names if name not in (MANIFEST, CHECKSUM, SIGNATURE)}
    data = {"schema_version": SCHEMA_VERSION, **asdict(manifest), "files": files}
    del data["pieces"]  # each beside its file
    raw = json.dumps(data, indent=1, ensure_ascii=False).encode() + b"\n"
    for name, content in ((MANIFEST, raw), (CHECKSUM, _checksum_line(raw))):
        with open(folder / name, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def _checksum_line(raw: bytes) -> bytes:
    return f"{hashlib.sha256(raw).hexdigest()}  {MANIFEST}\n".encode()


def _described(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    whole, pieces = digest.sha256_and_pieces(path, size)
    return {"size": size, "sha256": whole, **({"pieces": pieces} if pieces else {})}
