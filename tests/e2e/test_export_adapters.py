"""Adapters merged at export, and models out of caches: each answers like transformers and PEFT."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import export.model_files.hub
from engine.bundle import open_bundle
from export.__main__ import main
from export.errors import Refused
from export.load import load
from export.recipe import Recipe
from tests import models
from tests.exports import embed
from tests.models import edit_json, lora, write_json
from tests.served import Served

TEXTS = ["A quick test.", "the lazy dog sleeps on the mat " * 3, "x"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def adapter(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lora(bert, tmp_path_factory.mktemp("adapters") / "lora")


def of_peft(base: Path, *adapters: Path) -> Any:
    """What PEFT answers with the adapter beside the weights, or merged where there are several; mean pooling."""
    import peft
    import torch
    import transformers

    model: Any = transformers.AutoModel.from_pretrained(base)
    for number, folder in enumerate(adapters):
        model = peft.PeftModel.from_pretrained(model, str(folder))
        if number + 1 < len(adapters):
            model = model.merge_and_unload()
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    with torch.inference_mode():
        rows = [tokenizer(text, return_tensors="pt", truncation=True, max_length=32) for text in TEXTS]
        return np.stack([model.eval()(**row).last_hidden_state[0].mean(0).numpy() for row in rows])


def test_a_merged_adapter_answers_like_peft(bert: Path, adapter: Path, tmp_path: Path):
    out = tmp_path / "bundle"
    assert main([str(bert), "--adapter", str(adapter), "--out", str(out)]) == 0
    expected, without = of_peft(bert, adapter), of_peft(bert)
    np.testing.assert_allclose(embed(out, TEXTS, normalize=False), expected, atol=1e-5 * np.abs(expected).max())
    assert np.abs(expected - without).max() > 0.05 * np.abs(expected).max()
    digest = hashlib.sha256((adapter / "adapter_model.safetensors").read_bytes()).hexdigest()
    assert open_bundle(out).manifest.adapters == {"lora": {"revision": None, "sha256": digest}}
    assert 'adapter = ["lora"]' in (out / "recipe.toml").read_text()


def test_adapters_are_merged_one_after_the_other(bert: Path, adapter: Path, tmp_path: Path):
    other, again = lora(bert, tmp_path / "other", seed=2), lora(bert, tmp_path / "second run" / "lora", seed=3)
    merged, out = (adapter, other, again), tmp_path / "bundle"
    assert main([str(bert), *(f"--adapter={one}" for one in merged), "--out", str(out)]) == 0
    expected = of_peft(bert, *merged)
    np.testing.assert_allclose(embed(out, TEXTS, normalize=False), expected, atol=1e-5 * np.abs(expected).max())
    digests = [hashlib.sha256((one / "adapter_model.safetensors").read_bytes()).hexdigest() for one in merged]
    told = open_bundle(out).manifest.adapters
    assert list(told) == ["lora", "other", "lora#2"]  # of one name, none takes another's place
    assert [one["sha256"] for one in told.values()] == digests


def test_an_adapter_brings_the_classifier_and_says_the_task(bert: Path, tmp_path: Path):
    folder = lora(bert, tmp_path / "sentiment", auto_class="AutoModelForSequenceClassification", task_type="SEQ_CLS")
    assert main([str(bert), "--adapter", str(folder), "--out", str(tmp_path / "bundle")]) == 0
    manifest = open_bundle(tmp_path / "bundle").manifest
    assert (manifest.task, manifest.architecture) == ("text-classification", "BertForSequenceClassification")


def beside_config(base: Path, adapter: Path, folder: Path) -> Path:
    """The adapter's files with all of its base's but the weights, as a Trainer leaves them."""
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return Path(shutil.copytree(adapter, folder, dirs_exist_ok=True))


def test_an_adapter_with_a_config_is_one(bert: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """transformers would load the base that it names, wherever that is."""
    folder = beside_config(bert, adapter, tmp_path / "both")
    edit_json(folder / "config.json", architectures=None)  # it is said before a task is asked for
    (folder / "modules.json").unlink()
    assert main([str(folder), "--out", str(tmp_path / "bundle")]) == 2
    said = f"both is an adapter; export its model with it: {bert} --adapter {folder}\n"
    assert capsys.readouterr().err == f"error: {said}"


def test_whole_weights_beside_an_adapter_are_the_model(bert: Path, adapter: Path, tmp_path: Path):
    folder = beside_config(bert, adapter, tmp_path / "both")
    edit_json(folder / "adapter_config.json", base_model_name_or_path="owner/elsewhere")
    other = models.tiny_bert(tmp_path / "other", seed=5)
    shutil.copy(other / "model.safetensors", folder)
    assert main([str(folder), "--out", str(tmp_path / "bundle")]) == 0
    expected = of_peft(other)
    np.testing.assert_allclose(
        embed(tmp_path / "bundle", TEXTS, normalize=False), expected, atol=1e-5 * np.abs(expected).max()
    )


def of_sentence_transformers(base: Path, folder: Path, **options: Any) -> Any:
    """The library's model with an adapter that it was given, as it answers, saved in `folder`; none of it in `base`."""
    import peft
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [Transformer(str(base), max_seq_length=16), Pooling(32, "cls"), Dense(32, 8), Normalize()]
        model = SentenceTransformer(modules=layers, device="cpu", **options)
        model.add_adapter(peft.LoraConfig(r=4, target_modules=["query", "value"]))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.copy_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(str(folder))
    return model


def test_an_adapter_of_sentence_transformers_brings_its_files(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Pooling, layers, prompts and length are those that it was trained with, whatever the base's files say."""
    prompts = {"prompts": {"query": "the query: "}, "default_prompt_name": "query"}
    model = of_sentence_transformers(bert, tmp_path / "lora", **prompts)
    out = tmp_path / "bundle"
    assert main([str(bert), "--adapter", str(tmp_path / "lora"), "--out", str(out)]) == 0
    expected = np.stack([model.encode([text])[0] for text in TEXTS])
    served = Served(out)
    np.testing.assert_allclose(served.ask({"texts": TEXTS})["embeddings"], expected, atol=1e-5)
    served.close()
    assert main([str(tmp_path / "lora"), "--out", str(tmp_path / "other")]) == 2
    said = f"lora is an adapter; export its model with it: {bert} --adapter {tmp_path / 'lora'}\n"
    assert said in capsys.readouterr().err


def test_the_files_beside_an_adapter_say_the_task_before_peft_does(bert: Path, tmp_path: Path):
    of_sentence_transformers(bert, tmp_path / "lora")
    edit_json(tmp_path / "lora/adapter_config.json", task_type="TOKEN_CLS")
    found = load(Recipe(str(bert), None, tmp_path / "bundle", adapters=(str(tmp_path / "lora"),)))
    assert (found.task.tag, found.max_length) == ("feature-extraction", 16)
    # transformers reads this one for the kind of the tokenizer
    write_json(tmp_path / "lora/config.json", {"model_type": "lightglue", "trust_remote_code": True})
    with pytest.raises(
        Refused, match="the adapter of .*'s config.json asks for code from elsewhere .trust_remote_code."
    ):
        load(Recipe(str(bert), None, tmp_path / "bundle", adapters=(str(tmp_path / "lora"),)))


def no_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def pointer(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n")


def cut_weights(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def drop_one(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "adapter_model.safetensors")
    del tensors[sorted(tensors)[0]]
    save_file(tensors, folder / "adapter_model.safetensors")


def change(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "adapter_config.json", **changes)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda folder: (folder / "adapter_config.json").unlink(), "the adapter bad has no adapter_config.json"),
        (no_weights, "the adapter bad has no adapter_model.safetensors, and pickled weights are never loaded"),
        (pointer, "adapter_model.safetensors is what Git LFS has in place of the file; run git lfs pull"),
        (cut_weights, "adapter_model.safetensors cannot be read ("),
        (drop_one, "the adapter bad does not belong to this model (it lacks base_model.model."),
        (change(peft_type="PREFIX_TUNING"), "the adapter bad is PREFIX_TUNING, which weights cannot take in"),
        (
            change(peft_type=None),
            "the adapter bad is of another library than PEFT (adapter_config.json has no peft_type)",
        ),
        (change(peft_type="NO_SUCH"), "the adapter bad does not belong to this model ("),
        (change(target_modules=["no_such_layer"]), "the adapter bad does not belong to this model (Target modules"),
        (
            change(target_modules=["query"]),
            "the adapter bad does not belong to this model (it brings base_model.model.",
        ),
        (change(alora_invocation_tokens=[5]), "the adapter bad cannot be merged into the weights (aLoRA does not"),
        (change(r=8), "does not belong to this model (size mismatch for base_model.model."),
    ],
)
def test_adapters_that_are_refused(
    bert: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Any, sentence: str
):
    bad = Path(shutil.copytree(adapter, tmp_path / "bad"))
    spoil(bad)
    assert main([str(bert), "--adapter", str(bad), "--out", str(tmp_path / "out" / "bundle")]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert ("(it " in said) == (", which does not fit); export the model that it was trained on" in said)
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_too_little_memory_is_no_adapters_fault(
    bert: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1073741824 bytes.")

    monkeypatch.setattr("peft.PeftModel.from_pretrained", full)
    assert main([str(bert), "--adapter", str(adapter), "--out", str(tmp_path / "out")]) == 3
    assert capsys.readouterr().err.startswith("error: not enough memory; export on a machine with more")


def cached(bert: Path, root: Path, name: str = "owner--tiny") -> Path:
    """A repository in the layout of the Hub's cache, as RunPod fills it: snapshots of links to blobs."""
    repository = root / f"models--{name}"
    snapshot, blobs = repository / "snapshots" / COMMIT, repository / "blobs"
    for file in (path for path in bert.rglob("*") if path.is_file()):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        blobs.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blobs / digest)
        link = snapshot / file.relative_to(bert)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blobs / digest)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(COMMIT)
    return repository


def test_an_id_is_found_in_runpods_cache(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(export.model_files.hub, "RUNPOD_CACHE", tmp_path / "hub")
    repository = cached(bert, tmp_path / "hub")
    snapshot = repository / "snapshots" / COMMIT
    for model in ("owner/tiny", str(repository), str(snapshot)):
        for revision in (None, COMMIT):
            found = export.model_files.hub.locate(model, revision, ["*.json"])
            assert found == export.model_files.hub.Located(snapshot, "owner/tiny", COMMIT)
    out = tmp_path / "bundle"
    assert main(["owner/tiny", "--out", str(out)]) == 0
    manifest = open_bundle(out).manifest
    assert (manifest.model, manifest.revision) == ("owner/tiny", COMMIT)
    assert not any(path.is_symlink() for path in out.rglob("*"))


@pytest.mark.parametrize(
    ("argv", "code", "sentence"),
    [
        (["owner/tiny", "--revision", "v9"], 3, "owner/tiny, it is not in the local Hub cache at revision v9"),
        (["CACHE", "--revision", "v9"], 2, "has no snapshot of v9; name one of the folders in its snapshots"),
        (["CACHE/snapshots/" + COMMIT, "--revision", "v9"], 2, f"is the snapshot of commit {COMMIT}, not v9"),
        (["owner/tiny", "--adapter", "LORA"], 2, "was trained on org/base, not on owner/tiny; export org/base with it"),
        (["LORA"], 2, "lora is an adapter; export its model with it: org/base --adapter LORA\n"),
    ],
)
def test_what_a_cache_does_not_have(
    bert: Path,
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    code: int,
    sentence: str,
):
    monkeypatch.setattr(export.model_files.hub, "RUNPOD_CACHE", tmp_path / "hub")
    repository = cached(bert, tmp_path / "hub")
    other = Path(shutil.copytree(adapter, tmp_path / "lora"))
    edit_json(other / "adapter_config.json", base_model_name_or_path="org/base")
    places = [one.replace("CACHE", str(repository)).replace("LORA", str(other)) for one in argv]
    assert main([*places, "--out", str(tmp_path / "bundle")]) == code
    assert sentence.replace("LORA", str(other)) in capsys.readouterr().err
