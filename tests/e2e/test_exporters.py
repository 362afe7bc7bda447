"""Which exporter traces a model, and what happens where one cannot: each bundle answers like the model in PyTorch.

What takes torch.export long is left to `make test-zoo`.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks.models import LIMIT, ask
from benchmarks.zoo.audio import tiny_speech
from benchmarks.zoo.images import task_model
from engine.bundle import open_bundle
from export.__main__ import main
from export.load import load
from export.recipe import Recipe
from tests.models import edit_json

CODE = '''
import torch
from transformers import BertModel


class OwnBertModel(BertModel):
    """BERT whose last vectors are weighed by an operator that torchscript's exporter does not know.

    As code with stochastic depth does, it reads values of a tensor while it is made.
    """

    def __init__(self, config, **options):
        super().__init__(config, **options)
        self.rates = [rate.item() for rate in torch.linspace(0, 0.1, config.num_hidden_layers)]

    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, **options):
        found = super().forward(input_ids, attention_mask, token_type_ids, **options)
        values = found.last_hidden_state
        found.last_hidden_state = torch.addcdiv(values, values, 1 + values.abs().mean(-1, keepdim=True))
        if self.config.reads_values and values.sum().item() > 0:
            found.last_hidden_state = found.last_hidden_state + 1
        return found
'''
FEATURES = ("--task", "feature-extraction")


@pytest.fixture
def own_code(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A model that brings its own code, which torchscript's exporter cannot trace, and torch.export can."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = Path(shutil.copytree(bert, tmp_path / "own-bert"))
    (folder / "modeling_own.py").write_text(CODE)
    edit_json(folder / "config.json", auto_map={"AutoModel": "modeling_own.OwnBertModel"}, reads_values=False)
    yield folder
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


def test_what_optimum_cannot_trace_is_traced_by_the_other_one(
    own_code: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "bundle"
    assert main([str(own_code), *FEATURES, "--trust-remote-code", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    why = "optimum cannot: Exporting the operator 'aten::addcdiv'"
    assert f"by dynamo ({why}" in next(line for line in printed.splitlines() if line.startswith("onnx "))
    assert f"traced by dynamo ({why}" in next(line for line in printed.splitlines() if line.startswith("model "))
    manifest = open_bundle(out).manifest
    assert manifest.exporter == "dynamo"
    assert manifest.exporter_why.startswith(why)
    assert 'exporter = "dynamo"' in (out / "recipe.toml").read_text()
    from sentence_transformers import SentenceTransformer

    text = "A quick test of the lazy dog."
    expected = SentenceTransformer(str(own_code), device="cpu", trust_remote_code=True).encode(text)
    np.testing.assert_allclose(ask(out, {"text": text})["embedding"], expected, atol=1e-5)


def test_what_neither_can_trace_is_refused_with_both_reasons(
    own_code: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    edit_json(own_code / "config.json", reads_values=True)
    argv = [str(own_code), *FEATURES, "--trust-remote-code", "--out", str(tmp_path / "bundle")]
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert "(OwnBertModel) cannot be traced, by optimum: Exporting the operator 'aten::addcdiv'" in said
    assert "; nor by torch.export: Could not guard on data-dependent expression" in said
    assert said.endswith("; change that in the model, or export another architecture (docs/models.md)\n")
    assert said.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["modules", "own-bert"]


def test_an_exporter_that_was_asked_for_is_the_only_one(
    own_code: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    argv = [str(own_code), *FEATURES, "--trust-remote-code", "--out", str(tmp_path / "bundle")]
    assert main([*argv, "--exporter", "optimum"]) == 2
    said = capsys.readouterr().err
    assert "(OwnBertModel) cannot be traced by optimum: Exporting the operator 'aten::addcdiv'" in said
    assert said.endswith("; leave --exporter out\n")


def test_optimum_writes_nothing_outside_its_folder(bert: Path, tmp_path: Path):
    """transformers saves every chat template under its name, which is the model's to choose."""
    model, outside = Path(shutil.copytree(bert, tmp_path / "model")), tmp_path / "outside"
    outside.mkdir()
    templates = [{"name": name, "template": "of the model"} for name in ("default", str(outside / "written"))]
    edit_json(model / "tokenizer_config.json", chat_template=templates)
    source = load(Recipe(str(model), "feature-extraction", tmp_path / "bundle", exporter="optimum"))
    assert source.task.trace_graph(source, tmp_path / "traced", "model").is_file()
    assert not list(outside.iterdir())
    assert not list((tmp_path / "traced").rglob("*.jinja"))


def unknown_to_optimum(folder: Path, bert: Path) -> Path:
    """ERNIE is BERT with embeddings of tasks; optimum has no exporter for it."""
    import torch
    import transformers

    config = json.loads((bert / "config.json").read_text())
    torch.manual_seed(0)
    model = transformers.ErnieModel(transformers.ErnieConfig(**{**config, "use_task_id": True}))
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copy(bert / name, folder / name)
    edit_json(folder / "tokenizer_config.json", tokenizer_class="BertTokenizerFast")
    return folder


def test_an_architecture_that_optimum_does_not_know(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model, out = unknown_to_optimum(tmp_path / "ernie", bert), tmp_path / "bundle"
    assert main([str(model), *FEATURES, "--exporter", "optimum", "--out", str(out)]) == 2
    assert "(ernie) has no ONNX exporter for feature-extraction in optimum; try --exporter dynamo" in (
        capsys.readouterr().err
    )
    assert main([str(model), *FEATURES, "--out", str(out)]) == 0
    assert "traced by dynamo (optimum does not know ernie for feature-extraction)" in capsys.readouterr().out
    manifest = open_bundle(out).manifest
    assert manifest.exporter == "dynamo"
    assert "onnxscript" in manifest.versions
    portable = onnx.load(out / "graphs/model/fp32.onnx", load_external_data=False)
    assert [(opset.domain, opset.version) for opset in portable.opset_import] == [("", 17)]
    assert portable.ir_version == 8
    for file in out.rglob("*.onnx"):
        content = file.read_bytes()
        assert not [word for word in (b"site-packages", b"modeling_ernie", b"stack_trace") if word in content]


def vit(folder: Path) -> Path:
    return task_model(folder, "image-classification", "vit")


def clip(folder: Path) -> Path:
    return task_model(folder, "image-text-embedding", "clip")


def speech(folder: Path) -> Path:
    return tiny_speech(folder, "wav2vec2", "ForCTC")


@pytest.mark.filterwarnings("ignore")  # the tracers' own, which differ from architecture to architecture
@pytest.mark.parametrize(
    ("make", "task"),
    [
        pytest.param(vit, "image-classification", marks=pytest.mark.zoo),
        pytest.param(clip, "image-text-embedding", marks=pytest.mark.zoo),
        pytest.param(speech, "automatic-speech-recognition", marks=pytest.mark.zoo),
    ],
)
def test_the_other_one_traces_images_and_sound_and_the_recipe_repeats_it(make: Any, task: str, tmp_path: Path):
    from benchmarks.zoo.answers import gap, payload_of
    from benchmarks.zoo.case import Case

    model, out = make(tmp_path / "model"), tmp_path / "bundle"
    assert main([str(model), "--task", task, "--exporter", "dynamo", "--out", str(out)]) == 0
    case = Case(task, make.__name__, make)
    payload = payload_of(case)
    assert gap(case, model, payload, ask(out, payload)) <= LIMIT
    manifest = open_bundle(out).manifest
    assert (manifest.exporter, manifest.exporter_why) == ("dynamo", "--exporter dynamo")
    again = tmp_path / "again"
    assert main([str(model), "--recipe", str(out / "recipe.toml"), "--out", str(again)]) == 0
    for file in out.glob("graphs/*/*"):
        assert file.read_bytes() == (again / file.relative_to(out)).read_bytes(), file.name


def test_the_recipe_of_a_task_that_traces_its_own_module_can_be_used_again(tmp_path: Path):
    model, out = vit(tmp_path / "model"), tmp_path / "bundle"
    assert main([str(model), "--out", str(out)]) == 0
    assert open_bundle(out).manifest.exporter == "torchscript"
    assert main([str(model), "--recipe", str(out / "recipe.toml"), "--out", str(tmp_path / "again")]) == 0


def test_an_exporter_that_a_task_does_not_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    argv = [str(vit(tmp_path / "model")), "--exporter", "optimum", "--out", str(tmp_path / "bundle")]
    assert main(argv) == 2
    assert (
        "--exporter optimum cannot trace a vit for image-classification; leave it out, or choose torchscript or dynamo"
        in (capsys.readouterr().err)
    )
