"""Exporting image models: what their files say, what is refused, and that the gate sees what is wrong."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from benchmarks.zoo import vision
from benchmarks.zoo.images import task_model
from engine.bundle import open_bundle
from engine.config import Settings
from export import image_processor
from export.__main__ import main
from export.infer import infer_task
from handler.boot import boot
from handler.startup.timeline import Timeline
from tests.models import write_json
from tests.served import Served


@pytest.fixture(scope="session")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return task_model(tmp_path_factory.mktemp("vit") / "model", "image-classification", "vit")


def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path, *options: str) -> str:
    """The sentence of a refusal; no trace of a bundle is left."""
    out = tmp_path / "out" / "bundle"
    assert main([str(model), "--out", str(out), *options]) == 2
    assert not out.parent.exists() or not any(out.parent.iterdir())
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize(
    ("task", "architecture"),
    [
        ("image-classification", "deit"),
        ("image-feature-extraction", "dinov2"),
        ("image-segmentation", "segformer"),
        ("depth-estimation", "dpt"),
        ("object-detection", "detr"),
        ("zero-shot-image-classification", "siglip"),
    ],
)
def test_a_models_files_say_what_it_is_for(tmp_path: Path, task: str, architecture: str):
    assert infer_task(task_model(tmp_path, task, architecture), "model") == task


def test_a_classifier_made_of_clip_is_one_without_being_told(tmp_path: Path, images: list[str]):
    folder = vision.model(tmp_path / "model", "image-classification", "clip-classifier")
    assert main([str(folder), "--out", str(tmp_path / "bundle")]) == 0
    served = Served(tmp_path / "bundle")
    assert len(served.ask({"image": images[0]})) == 5
    served.close()


def test_weights_of_a_part_are_the_checkpoints(tmp_path: Path, images: list[str]):
    """A pretrained backbone was where training began: nobody else's weights are asked for, and none need be there."""
    folder = task_model(tmp_path / "model", "image-segmentation", "upernet")
    written = json.loads((folder / "config.json").read_text())
    write_json(tmp_path / "backbone/config.json", written.pop("backbone_config"))
    pretrained = {"backbone": str(tmp_path / "backbone"), "use_pretrained_backbone": True}
    write_json(folder / "config.json", {**written, "backbone_config": None, **pretrained})
    assert main([str(folder), "--out", str(tmp_path / "bundle")]) == 0
    served = Served(tmp_path / "bundle")
    assert served.ask({"image": images[0]})
    served.close()


def test_a_bundle_of_two_graphs_boots_and_answers(zoo: Any, images: list[str]):
    entry = zoo("zero-shot-image-classification", "clip")
    bundle = entry.served.bundle
    graphs = bundle.manifest.graphs
    assert {name: graph.inputs[0].shape for name, graph in graphs.items()} == {
        "image": ("batch", 32, 32, 3),
        "text": ("batch", "length"),
    }
    assert graphs["image"].inputs[0].dtype == "uint8"
    worker = boot(Settings(bundle=bundle.path), Timeline())
    payload = {"image": images[0], "candidate_labels": ["cat", "two dogs"]}
    reply = asyncio.run(worker.handler.handle({"id": "1", "input": payload}))
    assert [one["label"] for one in reply] == [one["label"] for one in entry.served.ask(payload)]
    health = worker.health()
    assert (health["rows_served"], health["rows_queued"]) == (3, 0)
    assert {name: (graph["engine"], graph["ladder"][-1]["taken"]) for name, graph in health["graphs"].items()} == {
        "image": ("onnxruntime-cpu", True),
        "text": ("onnxruntime-cpu", True),
    }
    worker.batcher.close()


def test_a_canvas_is_told_of_in_the_manifest(zoo: Any):
    (graph,) = zoo("object-detection", "detr", "--image-size", "48x64").served.bundle.manifest.graphs.values()
    assert {spec.name: spec.shape for spec in graph.inputs} == {
        "pixels": ("batch", 48, 64, 3),
        "extent": ("batch", 2),
    }


def test_a_checkpoint_without_a_pooler_gives_its_first_vector(vit: Path, tmp_path: Path, images: list[str]):
    """Classifiers are saved without one; transformers would draw one at random."""
    out = tmp_path / "bundle"
    assert main([str(vit), "--task", "image-feature-extraction", "--out", str(out)]) == 0
    assert open_bundle(out).manifest.task_config["pooling"] == "cls"
    served = Served(out)
    assert served.ask({"image": images[0]})["dimensions"] == 32
    served.close()


@pytest.mark.parametrize("task", ["depth-estimation", "image-segmentation"])
def test_a_dpt_without_the_weights_that_it_never_uses(zoo: Any, tmp_path: Path, images: list[str], task: str):
    """As Intel published them: of the first fusion layer half is missing, and the pipeline answers all the same."""
    whole = zoo(task, "dpt")
    folder = Path(shutil.copytree(whole.folder, tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    used = {name: value for name, value in weights.items() if "fusion_stage.layers.0.residual_layer1." not in name}
    assert len(weights) - len(used) == 12  # two convolutions, two normalisations of five each
    save_file(used, folder / "model.safetensors", metadata={"format": "pt"})
    assert main([str(folder), "--task", task, "--out", str(tmp_path / "bundle")]) == 0
    served = Served(tmp_path / "bundle")
    assert served.ask({"images": images}) == whole.served.ask({"images": images})
    served.close()


def test_int8(vit: Path, tmp_path: Path, images: list[str]):
    out = tmp_path / "bundle"
    assert main([str(vit), "--out", str(out), "--precision", "int8", "--parity-threshold", "0.5"]) == 0
    assert open_bundle(out).manifest.precision == "int8"
    served = Served(out)
    assert len(served.ask({"images": images})) == len(images)
    served.close()


def test_refusals(vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def said(*options: str, model: Path = vit) -> str:
        return refused(capsys, tmp_path, model, *options)

    assert "says the size itself (height 32, width 32); leave --image-size out" in said("--image-size", "64x64")
    assert "--image-size is HEIGHTxWIDTH in pixels, such as 480x640, got 'large'" in said("--image-size", "large")
    assert "--image-size is HEIGHTxWIDTH" in said("--image-size", "0x32")
    assert "--pooling means nothing to image-classification" in said("--pooling", "cls")
    features = ("--task", "image-feature-extraction")
    assert "--pooling lasttoken is not for image-feature-extraction; choose one of" in said(
        *features, "--pooling", "lasttoken"
    )
    assert "has no trained pooler; choose --pooling cls, mean or none" in said(*features, "--pooling", "pooler")
    assert "does not fit depth-estimation" in said("--task", "depth-estimation")
    bare = Path(shutil.copytree(vit, tmp_path / "bare"))
    (bare / "preprocessor_config.json").unlink()
    assert "has no image processor that can be loaded" in said(model=bare)


def test_a_task_is_not_looked_for_where_none_takes_the_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = task_model(tmp_path / "clip", "zero-shot-image-classification", "clip")
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, "architectures": ["CLIPForSomethingElse"]})
    said = refused(capsys, tmp_path, folder, "--task", "image-classification")
    assert said.endswith("for one; it holds a CLIPForSomethingElse, which no task here takes\n")


def test_refusals_of_open_sizes_and_two_graphs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    yolos = task_model(tmp_path / "yolos", "object-detection", "yolos")
    said = refused(capsys, tmp_path, yolos)
    assert "makes every image another size (shortest_edge 48, longest_edge 64)" in said
    assert "name it with --image-size HEIGHTxWIDTH" in said
    clip = task_model(tmp_path / "clip", "zero-shot-image-classification", "clip")
    for precision in ("int8", "tensorrt=int8"):
        said = refused(capsys, tmp_path, clip, "--precision", precision)
        assert "--precision int8 is for bundles of one graph, zero-shot-image-classification has 2" in said
    features = refused(capsys, tmp_path, clip, "--task", "image-feature-extraction")
    assert "reads images and texts; export it with --task image-text-embedding" in features


@pytest.mark.parametrize("wrong", ["scale", "offset", "order"])
def test_the_gate_sees_wrong_pixels(
    vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, wrong: str
):
    measured = image_processor._measured

    def spoiled(*arguments: Any) -> Any:
        found = measured(*arguments)
        values: Any = (2, 1, 0) if wrong == "order" else tuple(value * 1.05 for value in getattr(found, wrong))
        changes: Any = {wrong: values}
        return dataclasses.replace(found, **changes)

    monkeypatch.setattr(image_processor, "_measured", spoiled)
    assert "does something to an image" in refused(capsys, tmp_path, vit)
    monkeypatch.setattr(image_processor, "_compare", lambda *_: None)
    assert main([str(vit), "--out", str(tmp_path / "bundle")]) == 1
    said = capsys.readouterr().err
    assert "answers differ from the reference (required: difference at most 0.0001" in said
    assert not (tmp_path / "bundle").exists()


def test_equal_models_give_equal_bundles(vit: Path, tmp_path: Path):
    files = []
    for name in ("a", "b"):
        assert main([str(vit), "--out", str(tmp_path / name)]) == 0
        files.append(json.loads((tmp_path / name / "manifest.json").read_text())["files"])
    assert files[0] == files[1]
