"""What `python -m export` refuses: one sentence, an exit code, and no trace of a bundle."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import export.optimize
from tests.exports import Export, command, refused
from tests.models import edit_json, write_json, write_sentence_files


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


def break_weights(model: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    tensors["encoder.layer.1.output.dense.bias"][:] = float("nan")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


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


def pointer(name: str) -> Callable[[Path], None]:
    def write(model: Path) -> None:
        (model / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 90868376\n")

    return write


def lose_a_part(model: Path) -> None:
    parts = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    (model / "model.safetensors").rename(model / parts[0])
    write_json(model / "model.safetensors.index.json", {"weight_map": dict(zip("ab", parts, strict=True))})


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
        (break_weights, "tiny-bert answers NaN or infinity in PyTorch on the probe 'example 0: A quick test.'"),
        (changed("config.json", auto_map={"AutoModel": "code.Model"}), "config.json has auto_map); read it"),
        (changed("tokenizer_config.json", auto_map={}), "allow it with --trust-remote-code"),
        (
            changed("config.json", quantization_config={"bits": 4}),
            "tiny-bert is quantized already; export the model that",
        ),
        (changed("tokenizer_config.json", truncation_side="left"), "cuts long texts at the front (truncation_side)"),
        (
            changed("tokenizer_config.json", split_special_tokens=True),
            "set it to false there to have them read as tokens",
        ),
        (only_config(model_type="vit"), "(vit) does not fit feature-extraction: it reads pixel_values, not just text"),
        (
            only_config(model_type="bart"),
            "(bart) does not fit feature-extraction: it is an encoder with a decoder; export another architecture",
        ),
        (only_config(model_type="trocr"), "(trocr) does not fit feature-extraction: AutoModel cannot load it"),
        (
            changed("config.json", vocab_size=5000),
            "tiny-bert cannot be loaded: size mismatch for weight: copying a param with shape",
        ),
        (only_config(model_type="brand-new"), "tiny-bert is of type brand-new, which transformers 4."),
        (only_config(model_type="brand-new"), "save your own with its code, by register_for_auto_class, for --trust-"),
        (only_config(architectures=["BertModel"]), "tiny-bert is of type None, which transformers 4."),
        (slow_tokenizer, "its CanineTokenizer cannot be converted into one; the worker needs that file"),
        (
            changed("tokenizer_config.json", tokenizer_class="CanineTokenizer"),
            "tiny-bert's CanineTokenizer runs in Python alone and takes no notice of its tokenizer.json",
        ),
        (no_tokenizer, "tiny-bert has no tokenizer, neither tokenizer.json nor a vocabulary; save it into"),
        (changed("config.json", vocab_size=50), "as token 50, and its model embeddings of 50 tokens alone; take the"),
        (pointer("model.safetensors"), "model.safetensors is what Git LFS has in place of the file; run git lfs pull"),
        (pointer("tokenizer.json"), "tokenizer.json is what Git LFS has in place of the file; run git lfs pull"),
        (lambda model: (model / "model.safetensors").unlink(), "tiny-bert has no weights (*.safetensors), the one"),
        (lose_a_part, "tiny-bert lacks 1 of 2 files of weights, model-00002-of-00002.safetensors for one"),
        (changed("1_Pooling/config.json", pooling_mode="mean_sqrt_len_tokens"), "the model's pooling is mean_sqrt_len"),
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


def test_a_task_that_cannot_answer_is_refused_before_its_first_job(
    run: Export, bert: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("engine.vectors.OUTPUT", "embeding")
    assert "FeatureExtraction.postprocess fails at line" in refused(run(bert))
