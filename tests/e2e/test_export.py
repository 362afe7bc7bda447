"""`python -m export`: a model becomes a bundle that answers like the model, or a sentence says why not."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

import export.optimize
import export.pooling
from engine.backends.onnxruntime import OnnxRuntimeEngine
from engine.bundle import open_bundle
from engine.feed import run_rows
from engine.tasks import load_task
from export.__main__ import main
from export.int8_search import Step
from export.precision import Int8
from export.smooth import products
from export.tasks.feature_extraction import FeatureExtractionExport
from export.text import longest_text
from tests import models
from tests.models import edit_json, write_json, write_sentence_files

TEXTS = [
    "A quick test.",
    "",
    "  two spaces before and a line end after\n",
    "İSTANBUL, ΟΔΥΣΣΕΥΣ, Straße",
    "what is the answer " * 30,
    "机器学习 🚀 שלום",
]
Result = tuple[int, str, str]
Export = Callable[..., Result]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.tiny_bert(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture(scope="module")
def bert_bundle(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "bert"
    assert main([str(bert), "--task", "feature-extraction", "--out", str(out)]) == 0
    return out


@pytest.fixture
def model(bert: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(bert, tmp_path / "tiny-bert"))


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Export]:
    """`main` on a model; afterwards there is a bundle or no trace of one."""
    out = tmp_path / "out" / "bundle"

    def run(model: Path | str, *options: str) -> Result:
        code = main([str(model), "--task", "feature-extraction", "--out", str(out), *options])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    yield run
    left = sorted(path.name for path in out.parent.iterdir()) if out.parent.exists() else []
    assert left in ([], ["bundle"])


def refused(result: Result, code: int = 2) -> str:
    """The sentence of a refusal."""
    found, _, said = result
    assert found == code
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


def embed(bundle_path: Path, texts: list[str], **options: Any) -> Any:
    """What the worker answers, through its own code."""
    bundle = open_bundle(bundle_path)
    bundle.verify()
    task = load_task(bundle)
    engine = OnnxRuntimeEngine(bundle, threads=2)
    request = task.parse({"texts": texts, **options})
    reply = task.postprocess(request, run_rows(engine, task.preprocess(request)))
    engine.close()
    return np.array(reply["embeddings"])


def reference(model: Path, texts: list[str], **options: Any) -> Any:
    """What sentence-transformers answers."""
    from sentence_transformers import SentenceTransformer

    return np.array(SentenceTransformer(str(model), device="cpu").encode(texts, **options))


@pytest.mark.parametrize(
    ("architecture", "pooling"),
    [
        ("bert", "mean"),
        ("bert", "cls"),
        ("bert", "lasttoken"),
        ("bert", "max"),
        ("roberta", "mean"),
        ("mpnet", "cls"),
        ("qwen3", "lasttoken"),
    ],
)
def test_a_bundle_answers_like_sentence_transformers(run: Export, tmp_path: Path, architecture: str, pooling: str):
    make = getattr(models, f"tiny_{architecture}")
    model = make(tmp_path / "model", pooling=pooling, normalize=pooling == "mean")
    assert run(model)[0] == 0
    ours, theirs = embed(tmp_path / "out/bundle", TEXTS), reference(model, TEXTS)
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_lowercasing_and_prompts_are_those_of_sentence_transformers(run: Export, tmp_path: Path):
    prompts = {"query": "What IS this: ", "passage": "passage: "}
    model = models.tiny_roberta(tmp_path / "model", prompts=prompts, default_prompt_name="passage")
    edit_json(model / "sentence_bert_config.json", do_lower_case=True)
    assert run(model)[0] == 0
    bundle = tmp_path / "out/bundle"
    np.testing.assert_allclose(embed(bundle, TEXTS), reference(model, TEXTS), atol=1e-5)
    asked = reference(model, TEXTS, prompt_name="query")
    np.testing.assert_allclose(embed(bundle, TEXTS, prompt_name="query"), asked, atol=1e-5)
    assert np.abs(asked - embed(bundle, TEXTS)).max() > 1e-3


def test_a_model_without_sentence_transformers_files(run: Export, tmp_path: Path):
    model = models.tiny_roberta(tmp_path / "model", sentence_transformers=False)
    code, said, _ = run(model)
    assert code == 0
    assert "RobertaModel, mean pooling, up to 128 tokens" in said  # 130 positions, of which RoBERTa uses 128
    config = open_bundle(tmp_path / "out/bundle").manifest.task_config
    assert config == {
        "pooling": "mean",
        "dimension": models.HIDDEN,
        "max_length": models.POSITIONS,
        "normalize": False,
        "prompts": {},
        "default_prompt": None,
    }
    np.testing.assert_allclose(embed(tmp_path / "out/bundle", TEXTS), reference(model, TEXTS), atol=1e-4)


def test_options_replace_what_the_files_say(run: Export, bert: Path, tmp_path: Path):
    code, said, _ = run(bert, "--pooling", "cls", "--max-length", "16")
    assert code == 0
    assert "cls pooling, up to 16 tokens" in said
    config = open_bundle(tmp_path / "out/bundle").manifest.task_config
    assert (config["pooling"], config["max_length"]) == ("cls", 16)


def test_the_files_of_a_bundle(bert_bundle: Path):
    manifest = open_bundle(bert_bundle).manifest
    assert (manifest.model, manifest.revision, manifest.architecture) == ("tiny-bert", None, "BertModel")
    assert sorted(manifest.files) == [
        "config.json",
        "graphs/model/fp32.cpu.onnx",
        "graphs/model/fp32.onnx",
        "graphs/model/weights.bin",
        "parity.json",
        "recipe.toml",
        "tokenizer.json",
    ]
    graph = manifest.graphs["model"]
    assert [tensor.name for tensor in graph.inputs] == ["input_ids", "attention_mask", "token_type_ids"]
    assert {(tensor.dtype, tensor.shape) for tensor in graph.inputs} == {("int32", ("batch", "length"))}
    assert [(tensor.name, tensor.dtype, tensor.shape) for tensor in graph.outputs] == [
        ("embedding", "float32", ("batch", models.HIDDEN))
    ]
    assert {"worker-tensorrt", "torch", "transformers", "optimum-onnx", "onnxruntime"} <= set(manifest.versions)
    tokenizer = json.loads((bert_bundle / "tokenizer.json").read_text())
    assert tokenizer["truncation"] is tokenizer["padding"] is None


def test_pad_values_are_the_tokenizers(run: Export, tmp_path: Path):
    assert run(models.tiny_mpnet(tmp_path / "model"))[0] == 0
    inputs = open_bundle(tmp_path / "out/bundle").manifest.graphs["model"].inputs
    assert [(tensor.name, tensor.pad) for tensor in inputs] == [("input_ids", 1), ("attention_mask", 0)]


def test_the_portable_graph_is_what_tensorrt_takes(bert_bundle: Path):
    model = onnx.load(bert_bundle / "graphs/model/fp32.onnx", load_external_data=False)
    assert model.ir_version == 8
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
    assert {tensor.type.tensor_type.elem_type for tensor in model.graph.input} == {onnx.TensorProto.INT32}
    axes = {axis.dim_param for tensor in model.graph.input for axis in tensor.type.tensor_type.shape.dim}
    assert axes == {"batch", "length"}
    assert not any("pooler" in tensor.name for tensor in model.graph.initializer)


def test_weights_are_stored_once(bert: Path, bert_bundle: Path):
    stored = (bert_bundle / "graphs/model/weights.bin").stat().st_size
    tensors = 50  # each may be followed by up to a page of padding
    assert stored < (bert / "model.safetensors").stat().st_size + tensors * export.optimize.ALIGNMENT


def test_nothing_in_a_bundle_tells_where_it_was_made(bert: Path, bert_bundle: Path):
    for file in bert_bundle.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert str(bert_bundle.parents[1]).encode() not in content
            assert b"partial-" not in content


def test_two_exports_are_equal_to_the_last_byte(run: Export, bert: Path, bert_bundle: Path, tmp_path: Path):
    assert run(bert)[0] == 0
    for file in bert_bundle.rglob("*"):
        if file.is_file():
            assert file.read_bytes() == (tmp_path / "out/bundle" / file.relative_to(bert_bundle)).read_bytes(), file


def test_the_gates_figures_are_in_the_bundle(bert_bundle: Path):
    figures = json.loads((bert_bundle / "parity.json").read_text())
    assert figures["limits"] == {"min_cosine": 0.99999, "max_relative_difference": 1e-3, "min_neighbours": 0.99}
    assert figures["longest_text_tokens"] == 32
    assert set(figures["graphs"]) == {"graphs/model/fp32.cpu.onnx", "graphs/model/fp32.onnx"}
    for graph in figures["graphs"].values():
        assert graph["min_cosine"] >= 0.999999
        assert graph["max_relative_difference"] <= 1e-5


def test_a_wrong_graph_does_not_pass_the_gate(run: Export, bert: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(export.pooling.POOLINGS, "mean", export.pooling._cls)
    code, _, said = run(bert)
    assert code == 1
    assert "answers differ from the reference" in said
    assert said.splitlines()[2].split() == ["text", "graph", "cosine", "difference"]
    assert "fp32.cpu.onnx, batch of 1" in said


def change_reference(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]) -> None:
    real = FeatureExtractionExport.reference

    def changed(*arguments: Any) -> Any:
        found = real(*arguments)
        return found and {"embedding": change(found["embedding"])}

    monkeypatch.setattr(FeatureExtractionExport, "reference", changed)


def test_a_wrong_scale_does_not_pass_the_gate(run: Export, bert: Path, monkeypatch: pytest.MonkeyPatch):
    change_reference(monkeypatch, lambda vector: 1.01 * vector)
    code, _, said = run(bert)
    assert code == 1
    assert "1.0000000" in said  # the cosine alone would have passed


def test_the_gates_cosine_can_be_chosen(run: Export, bert: Path, monkeypatch: pytest.MonkeyPatch):
    def tilted(vector: Any) -> Any:
        tilt = np.resize([9e-4, -9e-4], vector.shape).astype(np.float32)  # a cosine of about 0.999987
        return vector + tilt * np.linalg.norm(vector)

    change_reference(monkeypatch, tilted)
    assert run(bert)[0] == 1
    assert run(bert, "--parity-threshold", "0.9999")[0] == 0


@pytest.mark.parametrize(("length", "tokens"), [(128, range(129, 10_000)), (64, range(40, 65))])
def test_the_longest_text_exceeds_the_model_or_stops_at_the_gates_limit(bert: Path, length: int, tokens: range):
    from transformers import AutoTokenizer

    source: Any = SimpleNamespace(max_length=128, tokenizer=AutoTokenizer.from_pretrained(bert))
    text = longest_text(source, length)
    assert len(source.tokenizer.backend_tokenizer.encode(text)) in tokens


def test_a_tokenizer_that_makes_nothing_of_an_empty_text(run: Export, bert_bundle: Path, tmp_path: Path):
    model = models.tiny_qwen3(tmp_path / "model")
    edit_json(model / "tokenizer.json", post_processor=None)
    assert run(model)[0] == 0
    figures = json.loads((tmp_path / "out/bundle/parity.json").read_text())
    assert figures["texts"] == json.loads((bert_bundle / "parity.json").read_text())["texts"] - 1


def test_an_id_from_the_hubs_cache(bert: Path, bert_bundle: Path, tmp_path: Path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "home/hub/models--owner--tiny"
    shutil.copytree(bert, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text(commit)
    out = tmp_path / "bundle"
    done = command("owner/tiny", "--task", "feature-extraction", "--out", str(out), HF_HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[:5]] == ["load", "onnx", "optimize", "write", "parity"]
    assert f"BUNDLE={out} python -m handler" in done.stdout
    manifest = open_bundle(out).manifest
    assert (manifest.model, manifest.revision) == ("owner/tiny", commit)
    for name in ("fp32.onnx", "fp32.cpu.onnx", "weights.bin"):  # another process, the same bytes
        assert (out / "graphs/model" / name).read_bytes() == (bert_bundle / "graphs/model" / name).read_bytes()


def command(*argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "export", *argv],
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environ},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_help_needs_no_torch():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "export", "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert "MODEL" in done.stdout
    assert "130 interrupted" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {"torch", "transformers", "optimum", "onnx", "onnxruntime", "numpy"}


@pytest.mark.parametrize(
    ("argv", "code", "sentence"),
    [
        (["m", "--task", "no-task", "--out", "b"], 2, "unknown task 'no-task'; known are: "),
        (
            ["./none", "--task", "feature-extraction", "--out", "b"],
            2,
            "the folder ./none does not exist; check the path",
        ),
        (
            ["no/model", "--task", "feature-extraction", "--out", "b"],
            3,
            "it is not in the local Hub cache, and the Hub",
        ),
    ],
)
def test_a_users_mistake_is_one_sentence_and_an_exit_code(argv: list[str], code: int, sentence: str):
    done = command(*argv)
    assert sentence in refused((done.returncode, done.stdout, done.stderr), code)


def spoil_weights(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0no json!")


def drop_weights(model: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    left = {name: values for name, values in tensors.items() if "layer.1" not in name}
    save_file(left, model / "model.safetensors", metadata={"format": "pt"})


def pickle_weights(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def slow_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    write_json(model / "tokenizer_config.json", {"tokenizer_class": "CanineTokenizer"})


def no_tokenizer(model: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        (model / name).unlink()


def only_config(**config: Any) -> Callable[[Path], None]:
    return lambda model: write_json(model / "config.json", config)


def changed(file: str, **changes: Any) -> Callable[[Path], None]:
    return lambda model: edit_json(model / file, **changes)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda model: (model / "config.json").unlink(), "tiny-bert has no config.json"),
        (pickle_weights, "pickled weights (pytorch_model.bin) are never loaded"),
        (spoil_weights, "model.safetensors cannot be read"),
        (
            drop_weights,
            "tiny-bert lacks 16 weights of BertModel, encoder.layer.1.attention.output.LayerNorm.bias for one",
        ),
        (changed("config.json", auto_map={"AutoModel": "code.Model"}), "config.json has auto_map); read it"),
        (changed("tokenizer_config.json", auto_map={}), "allow it with --trust-remote-code"),
        (
            changed("config.json", quantization_config={"bits": 4}),
            "tiny-bert is quantized already; export the model that",
        ),
        (changed("tokenizer_config.json", truncation_side="left"), "cuts long texts at the front (truncation_side)"),
        (only_config(model_type="vit"), "(vit) does not fit feature-extraction: it reads pixel_values, not just text"),
        (only_config(model_type="bart"), "(bart) does not fit feature-extraction: it is an encoder with a decoder"),
        (only_config(model_type="trocr"), "(trocr) does not fit feature-extraction: AutoModel cannot load it"),
        (
            changed("config.json", vocab_size=5),
            "tiny-bert cannot be loaded: size mismatch for weight: copying a param with shape",
        ),
        (only_config(model_type="brand-new"), "tiny-bert is of type brand-new, which transformers 4."),
        (only_config(architectures=["BertModel"]), "tiny-bert is of type None, which transformers 4."),
        (slow_tokenizer, "its CanineTokenizer cannot be converted into one; the worker needs that file"),
        (no_tokenizer, "tiny-bert has no tokenizer that can be loaded"),
        (changed("1_Pooling/config.json", pooling_mode="weightedmean"), "the model's pooling is weightedmean"),
    ],
)
def test_models_that_are_refused(run: Export, model: Path, spoil: Callable[[Path], None], sentence: str):
    spoil(model)
    assert sentence in refused(run(model))


def test_options_that_are_refused(run: Export, bert: Path):
    assert "--revision is for ids on the Hub" in refused(run(bert, "--revision", "main"))
    assert "--max-length 129 is more than the 128 positions" in refused(run(bert, "--max-length", "129"))


def test_a_module_in_another_place_is_refused(run: Export, model: Path):
    write_sentence_files(model)
    listed = json.loads((model / "modules.json").read_text())
    write_json(model / "modules.json", [*listed, {"path": "3_Dense", "type": "sentence_transformers.models.Dense"}])
    assert "a bundle holds Pooling, then Dense, then Normalize" in refused(run(model))


def test_a_slow_tokenizers_files_are_converted(run: Export, model: Path, tmp_path: Path):
    (model / "tokenizer.json").unlink()
    assert run(model)[0] == 0
    np.testing.assert_allclose(embed(tmp_path / "out/bundle", TEXTS), reference(model, TEXTS), atol=1e-5)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted; nothing was written\n"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            3,
            "error: the disk is full; free some space or name a folder",
        ),
    ],
)
def test_nothing_is_left_behind(
    run: Export, bert: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
):
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(export.optimize, "fuse", fail)
    found, _, printed = run(bert)
    assert found == code
    assert printed.startswith(said)


def test_our_own_defects_keep_their_traceback(run: Export, bert: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(export.optimize, "fuse")
    with pytest.raises(NameError):
        run(bert)


def test_int8_keeps_the_fewest_matrices_that_the_gate_allows_and_records_what_it_refused(bert: Path, tmp_path: Path):
    out = tmp_path / "bundle"
    assert main([str(bert), "--task", "feature-extraction", "--precision", "int8", "--out", str(out)]) == 0
    manifest = open_bundle(out).manifest
    assert manifest.precision == "int8"
    assert set(manifest.graphs["model"].fused) == {"fp32", "int8"}
    figures = json.loads((out / "parity.json").read_text())
    assert (figures["kept"], figures["kept_in_fp32"]) == ("int8: every weight matrix", [])
    assert list(figures["refused"]) == ["int8, static: every weight matrix"]
    assert figures["of_these_compared_with_fp32.onnx"] == 500
    assert set(figures["graphs"]) == {
        "graphs/model/fp32.onnx",
        "graphs/model/fp32.cpu.onnx",
        "graphs/model/int8.cpu.onnx",
    }
    open_bundle(out).verify()
    everything = float_products(out)

    # A limit that the first step does not keep: inputs are smoothed.
    limit = str(figures["graphs"]["graphs/model/int8.cpu.onnx"]["min_cosine"] + 2e-7)
    out = tmp_path / "smoothed"
    arguments = ["--task", "feature-extraction", "--precision", "int8", "--parity-threshold", limit]
    assert main([str(bert), *arguments, "--out", str(out)]) == 0
    figures = json.loads((out / "parity.json").read_text())
    assert figures["overridden"] == ["min_cosine"]
    assert "smoothed" in figures["kept"]
    assert "every weight matrix" in figures["refused"]
    static, first, *_, last = figures["ladder"]["cpu"]
    assert (static["step"], static["passed"]) == ("int8, static: every weight matrix", False)
    assert (first["step"], first["passed"]) == ("int8: every weight matrix", False)
    assert first["figures"]["min_cosine"] < float(limit) <= last["figures"]["min_cosine"]
    assert "cosine at least" in first["reason"]
    assert last["rows_per_s"] > 0
    assert float_products(out) == everything
    assert not list((out / "graphs/model").glob("observed*"))
    open_bundle(out).verify()

    # A matrix that is kept is computed in fp32.
    portable = out / "graphs/model/fp32.onnx"
    (name, *_) = (node.name for node in products(onnx.load(portable)))
    Int8(portable, out / "work", {}, []).write(Step(kept=(name,)))
    assert float_products(out) == everything + 1


def float_products(bundle: Path) -> int:
    """Products with a weight matrix that the int8 graph of `bundle` computes in fp32."""
    graph = onnx.load(bundle / "graphs/model/int8.cpu.onnx", load_external_data=False).graph
    operators = Counter(node.op_type for node in graph.node)
    assert operators["DynamicQuantizeMatMul"] + operators["MatMulInteger"] + operators["MatMulIntegerToFloat"]
    weights = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    return sum(node.op_type in ("MatMul", "FusedMatMul", "Gemm") and node.input[1] in weights for node in graph.node)


def test_int8_that_never_passes_writes_nothing(bert: Path, tmp_path: Path):
    arguments = ["--task", "feature-extraction", "--precision", "int8", "--parity-threshold", "0.99999999"]
    assert main([str(bert), *arguments, "--out", str(tmp_path / "bundle")]) == 1
    assert list(tmp_path.iterdir()) == []
