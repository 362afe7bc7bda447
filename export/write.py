"""Stage 4: the files beside the graphs, and the manifest. Rule: no path of this machine and no time in any of them."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from engine.bundle import Graph, Manifest, open_bundle, write_manifest
from engine.tensors import TensorSpec
from export.packages import installed_version
from export.source import Source

PARITY = "parity.json"
# Of ONNX Runtime's two packages one is installed.
_MADE_BY = ("onnx", "onnxruntime", "onnxruntime-gpu", "optimum", "optimum-onnx", "tokenizers", "torch", "transformers")
_MADE_BY_DYNAMO = ("onnxscript", "onnx-ir")


def write(source: Source, folder: Path, files: Mapping[str, tuple[Path, Path]]) -> None:
    """Complete the bundle in `folder`, in fp32, except for the figures of the parity gate.

    `files` are the portable and the fused file of every graph.
    """
    (folder / "config.json").write_bytes((source.folder / "config.json").read_bytes())
    write_files(folder, source.task.files(source))
    precision = "fp32"
    graphs = {name: _graph(source, folder, precision, *paths) for name, paths in files.items()}
    outputs = {spec.name: spec.shape for graph in graphs.values() for spec in graph.outputs}
    write_manifest(
        folder,
        Manifest(
            model=source.model,
            revision=source.revision,
            architecture=source.architecture,
            task=source.task.tag,
            task_config=source.task.task_config(source, outputs),
            precision=precision,
            graphs=graphs,
            versions=versions((*_MADE_BY, *_MADE_BY_DYNAMO) if source.exporter == "dynamo" else _MADE_BY),
            exporter=source.exporter,
            exporter_why=source.exporter_why,
            adapters=_adapters(source),
            code=source.code,
        ),
    )


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Put the text files of a task, name -> content, into the bundle in `folder`; a name may lie below a folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")


def _adapters(source: Source) -> dict[str, dict[str, str | None]]:
    """By name, in the order of merging. Of two with one name, as checkpoints of two runs have, the second is NAME#2."""
    found: dict[str, dict[str, str | None]] = {}
    for one in source.adapters:
        name, number = one.name, 1
        while name in found:
            number += 1
            name = f"{one.name}#{number}"
        found[name] = {"revision": one.revision, "sha256": one.sha256}
    return found


def add_parity(folder: Path, figures: Mapping[str, Any], **changes: Any) -> None:
    """Put the gate's figures into the bundle in `folder`; `changes` replace fields of its manifest."""
    (folder / PARITY).write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_manifest(folder, replace(open_bundle(folder).manifest, **changes))


def _graph(source: Source, folder: Path, precision: str, portable: Path, fused: Path) -> Graph:
    inputs, outputs = _tensors(portable, source)
    return Graph(
        inputs=inputs,
        outputs=outputs,
        onnx={precision: portable.relative_to(folder).as_posix()},
        fused={precision: fused.relative_to(folder).as_posix()},
    )


def _tensors(portable: Path, source: Source) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs as the graph itself declares them."""
    graph = onnx.load(portable, load_external_data=False).graph
    pads = source.task.pads(source)
    inputs, outputs = (tuple(_spec(tensor, pads) for tensor in tensors) for tensors in (graph.input, graph.output))
    return inputs, outputs


def _spec(tensor: Any, pads: Mapping[str, int]) -> TensorSpec:
    kind = tensor.type.tensor_type
    shape = tuple(axis.dim_param or int(axis.dim_value) for axis in kind.shape.dim)
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    return TensorSpec(tensor.name, dtype, shape, pads.get(tensor.name, 0))


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Of this project and of `packages`."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    installed = {name: version for name in packages if (version := installed_version(name))}
    return {project["name"]: project["version"], **installed}


def add_portable(folder: Path, precision: str, paths: Mapping[str, Path]) -> None:
    """Enter portable graphs of `precision`, by the names of their graphs, in the manifest of the bundle in `folder`."""
    manifest = open_bundle(folder).manifest
    graphs = dict(manifest.graphs)
    for name, path in paths.items():
        onnx_files = {**graphs[name].onnx, precision: path.relative_to(folder).as_posix()}
        graphs[name] = replace(graphs[name], onnx=onnx_files)
    write_manifest(folder, replace(manifest, graphs=graphs))


def choose(folder: Path, precision: str, fused: Path) -> None:
    """Make the bundle in `folder` run in `precision` on the CPU, through the graph `fused`."""
    manifest = open_bundle(folder).manifest
    graph = manifest.graphs["model"]
    graph = replace(graph, fused={**graph.fused, precision: fused.relative_to(folder).as_posix()})
    write_manifest(folder, replace(manifest, precision=precision, graphs={"model": graph}))
