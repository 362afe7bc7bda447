"""Finding a model: the Hub's answers as sentences, and what limits a length."""

from __future__ import annotations

import errno
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import requests
import transformers
from huggingface_hub import errors
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.utils._paths import filter_repo_objects
from tokenizers.pre_tokenizers import PreTokenizer

from benchmarks.zoo.audio import RATE, tiny_speech
from benchmarks.zoo.decoders import SPECS
from benchmarks.zoo.text import model_of, task_model
from export import load
from export.errors import Refused, Unavailable
from export.lengths import LONGEST_DEFAULT, longest_row
from export.model_files.own_code import fetch_code, refuse_code
from export.other_task import advice
from export.recipe import Recipe, _parser
from export.tasks import export_task
from export.tokenizer.fast import fast_tokenizer
from tests.bundles import toy_tokenizer
from tests.models import POSITIONS, edit_json, tiny_bert, tiny_qwen3, write_json, write_sentence_files

_ORIGINAL = "original_max_position_embeddings"


def recipe(model: str, **changes: Any) -> Recipe:
    return Recipe(model, "feature-extraction", Path("bundle"), **changes)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (errors.GatedRepoError, "owner/name is gated; accept its terms on the Hub and set HF_TOKEN"),
        (errors.RevisionNotFoundError, "owner/name has no revision v9; leave --revision out for main"),
        (errors.RepositoryNotFoundError, "no model: owner/name is neither a folder here nor on the Hub"),
        (errors.HfHubHTTPError, "the Hub cannot be reached"),
        (
            errors.LocalEntryNotFoundError,
            "it is not in the local Hub cache at revision v9, and the Hub cannot be reached",
        ),
        (requests.ConnectionError, "go online, or give the path of a folder"),
    ],
)
def test_the_hubs_answers(monkeypatch: pytest.MonkeyPatch, error: type[Exception], sentence: str):
    def fail(*_: Any, **__: Any) -> None:
        answered = issubclass(error, errors.HfHubHTTPError) and error is not errors.LocalEntryNotFoundError
        raise error("no", **{"response": requests.Response()} if answered else {})

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(Refused) as refused:
        load.load(recipe("owner/name", revision="v9"))
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "/cache/blobs/x.incomplete"),
        RuntimeError("Data processing error: No space left on device (os error 28)"),  # of hf_xet, in Rust
    ],
)
def test_a_full_disk_of_the_hubs_cache_is_not_that_of_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    said = f"the disk of the Hub's cache, {HF_HUB_CACHE}, is full; free some space there, or set HF_HOME to a folder on"
    write_json(tmp_path / "config.json", {"auto_map": {"AutoModel": "owner/code--modeling.Model"}})
    for load_one in (lambda: load.load(recipe("owner/name")), lambda: fetch_code(tmp_path, "m")):
        with pytest.raises(Unavailable) as refused:
            load_one()
        assert str(refused.value).startswith(said)
    error = OSError(errno.EIO, "Input/output error")
    with pytest.raises(OSError, match="Input/output error"):
        load.load(recipe("owner/name"))


def test_a_token_that_is_wrong_is_not_a_hub_that_is_away(monkeypatch: pytest.MonkeyPatch):
    """Of other answers of 401 the Hub's library makes a repository that is not there, or is gated."""

    def fail(*_: Any, **__: Any) -> None:
        response = requests.Response()
        response.status_code = 401
        raise errors.HfHubHTTPError("Invalid credentials in Authorization header", response=response)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(
        Refused, match="the Hub does not take the token in HF_TOKEN; make a new one, or unset it"
    ) as said:
        load.load(recipe("owner/name"))
    assert said.value.exit_code == 2


def test_weights_are_not_downloaded_before_the_small_files_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def download(model: str, *, revision: str | None, allow_patterns: list[str], **_: Any) -> str:
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(Refused, match="owner/name is empty; a model folder as `save_pretrained` writes it"):
        load.load(recipe("owner/name"))
    assert asked == [["*.json", "*.jinja", "*.txt", "*.model"]]


def test_weights_are_those_that_transformers_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Not the parts that a model had before it was saved again, nor what its maker's own programs read."""
    folder = tiny_bert(tmp_path / "there", sentence_transformers=False)
    expected = load.load(recipe(str(folder))).weights_bytes
    write_json(folder / "model.safetensors.index.json", {"weight_map": {"a": "model-00001-of-00002.safetensors"}})
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    assert load.load(recipe(str(folder))).weights_bytes == expected
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    assert load.load(recipe(str(folder))).weights_bytes == expected
    fetched: list[str] = []

    def download(model: str, *, allow_patterns: list[str], ignore_patterns: list[str], **_: Any) -> str:
        names = [path.name for path in folder.iterdir()]
        fetched.extend(filter_repo_objects(names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load.load(recipe("owner/name")).weights_bytes == expected
    assert {one for one in fetched if one.endswith(".safetensors")} == {"model-00001-of-00002.safetensors"}


def test_a_tokenizer_that_no_file_can_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """RoFormer's cuts Chinese with a package of Python's."""

    class Words:
        def pre_tokenize(self, text: Any) -> None:
            text.split(lambda number, part: [part])

    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=toy_tokenizer())
    tokenizer.backend_tokenizer.pre_tokenizer = PreTokenizer.custom(Words())
    monkeypatch.setattr("export.tokenizer.fast.load_tokenizer", lambda *_, **__: tokenizer)
    with pytest.raises(Refused, match="m's PreTrainedTokenizerFast does part of its work in Python, which no token"):
        fast_tokenizer(tmp_path, "m", recipe("m"))


def test_what_is_fetched_with_an_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What sentence-transformers saved beside it; no other weights."""
    tiny_bert(tmp_path / "base")
    names = ["1_Pooling/config.json", "2_Dense/model.safetensors", "adapter_model.safetensors", "model.safetensors"]
    found: list[str] = []

    def download(model: str, *, allow_patterns: list[str], ignore_patterns: list[str], **_: Any) -> str:
        found.extend(filter_repo_objects(names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(Refused, match=r"has no adapter_config\.json; a folder as PEFT's save_pretrained writes it"):
        load.load(recipe(str(tmp_path / "base"), adapters=("owner/lora",)))
    assert found == names[:-1]


def test_an_adapter_of_the_hub_is_told_from_a_model_by_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A config.json may lie beside either."""
    folder = tiny_bert(tmp_path / "there", sentence_transformers=False)
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    write_json(folder / "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "org/base"})

    def download(model: str, *, allow_patterns: list[str], ignore_patterns: list[str], **_: Any) -> str:
        names = [path.name for path in folder.iterdir()]
        (tmp_path / "here").mkdir(exist_ok=True)
        for name in filter_repo_objects(names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            shutil.copy(folder / name, tmp_path / "here")
        return str(tmp_path / "here")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    said = "owner/name is an adapter; export its model with it: org/base --adapter owner/name"
    for revision, asked in ((None, said), ("v2", f"{said}@v2")):
        with pytest.raises(Refused) as refused:
            load.load(recipe("owner/name", revision=revision))
        assert str(refused.value) == asked
    shutil.copy(folder / "adapter_model.safetensors", folder / "model.safetensors")
    assert load.load(recipe("owner/name")).architecture == "BertModel"


def test_an_adapter_of_another_library(tmp_path: Path):
    """AdapterHub's, whose file has the name of PEFT's."""
    write_json(tmp_path / "adapter_config.json", {"model_name": "org/base", "version": "3.1.1"})
    with pytest.raises(Refused, match=r"is of another library than PEFT \(adapter_config\.json has no peft_type\)"):
        load.load(recipe(str(tmp_path)))


def test_a_chat_template_of_the_hub_is_met(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In a file of its own, as transformers saves it, and as a reranker may bring it."""
    folder = tiny_bert(tmp_path / "there", sentence_transformers=False)
    edit_json(folder / "config.json", id2label={"0": "score"}, label2id={"score": 0})
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")

    def download(model: str, *, allow_patterns: list[str], ignore_patterns: list[str], **_: Any) -> str:
        (tmp_path / "here").mkdir(exist_ok=True)
        names = [path.name for path in folder.iterdir()]
        for name in filter_repo_objects(names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            shutil.copy(folder / name, tmp_path / "here")
        return str(tmp_path / "here")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(Refused, match="owner/name's tokenizer has a chat template, into which sentence-transformers"):
        load.load(Recipe("owner/name", "text-ranking", Path("bundle")))


@pytest.mark.parametrize(
    "model", ["./no-such-folder", "/no/such/folder", "~/no-such-folder", "~no-such-user/model", "no/such/folder"]
)
def test_a_path_that_does_not_exist_is_not_looked_up(model: str):
    with pytest.raises(Refused, match=f"no model: the folder {model} does not exist; check the path"):
        load.load(recipe(model))


def test_a_file_of_payloads_that_is_not_there_is_missed_before_the_model_is_looked_for():
    with pytest.raises(Refused, match=r"--parity-data no/such cannot be read \(No such file or directory\)"):
        load.load(recipe("/no/such/model", parity_data=Path("no/such")))


@pytest.mark.parametrize("adapter", ["/no/such/lora", "~no-such-user/lora"])
def test_an_adapter_that_is_not_there_is_named_as_one(tmp_path: Path, adapter: str):
    write_json(tmp_path / "config.json", {"model_type": "bert"})
    with pytest.raises(Refused, match=f"--adapter {adapter}: no model: the folder {adapter} does not exist"):
        load.load(recipe(str(tmp_path), adapters=(adapter,)))


def test_a_file_is_no_model():
    with pytest.raises(Refused, match=r"is a file; give the folder that holds config\.json and the weights"):
        load.load(recipe(__file__))


def test_limits_of_the_gate_are_checked_before_weights_are_read(tmp_path: Path):
    write_json(tmp_path / "config.json", {"model_type": "bert"})
    asked = recipe(str(tmp_path), parity_thresholds={"min_cosin": 0.9})
    with pytest.raises(Refused, match="--parity-threshold min_cosin: feature-extraction has min_cosine"):
        load.load(asked)


def test_a_name_that_cannot_be_an_id():
    with pytest.raises(Refused, match="'a b' is neither a folder nor a valid Hub id"):
        load.load(recipe("a b"))


def test_a_config_that_makes_no_model(tmp_path: Path):
    write_json(tmp_path / "config.json", {"model_type": "bert", "hidden_size": 30, "num_attention_heads": 4})
    with pytest.raises(Refused, match="config.json is none that a model can be made of: The hidden size .30. is not a"):
        load.load(recipe(str(tmp_path)))


@pytest.mark.parametrize("task", [None, "image-classification"])
@pytest.mark.parametrize("keys", [{"pretrained_cfg": {"input_size": [3, 224, 224]}}, {"model_type": "timm_wrapper"}])
def test_a_model_of_another_library(tmp_path: Path, keys: dict[str, Any], task: str | None):
    write_json(tmp_path / "config.json", {"architecture": "resnet50", "num_classes": 1000, **keys})
    with pytest.raises(Refused, match="is a model of the timm package, which a bundle cannot hold; choose one of tr"):
        load.load(Recipe(str(tmp_path), task, Path("bundle")))


@pytest.mark.parametrize(
    "keys",
    [
        {"use_timm_backbone": True, "backbone": "resnet50", "use_pretrained_backbone": True},
        {},  # as the first of them were published
        {"backbone_config": {"model_type": "timm_backbone", "backbone": "resnet50"}},  # of transformers 5
    ],
)
def test_a_backbone_of_another_library(tmp_path: Path, keys: dict[str, Any]):
    config = {"model_type": "detr", "architectures": ["DetrForObjectDetection"], **keys}
    write_json(tmp_path / "config.json", config)
    with pytest.raises(Unavailable, match="has a backbone of the timm package, which is not .* --revision no_timm, or"):
        load.load(Recipe(str(tmp_path), "object-detection", Path("bundle")))


def test_a_model_that_needs_another_package(tmp_path: Path):
    write_json(tmp_path / "config.json", {"model_type": "dinat", "architectures": ["DinatForImageClassification"]})
    with pytest.raises(Unavailable, match="needs another package: DinatForImageClassification requires the natten lib"):
        load.load(Recipe(str(tmp_path), "image-classification", Path("bundle")))


@pytest.mark.parametrize(
    ("kind", "architecture", "hint"),
    [
        ("mask2former", "Mask2FormerForUniversalSegmentation", "which no task here takes"),
        ("owlvit", "OwlViTForObjectDetection", "which no task here takes"),
        ("grounding-dino", "GroundingDinoForObjectDetection", "which no task here takes"),
        ("vision-encoder-decoder", "VisionEncoderDecoderModel", "which no task here takes"),
        ("blip", "BlipForConditionalGeneration", "which no task here takes"),
        ("vit", "ViTForImageClassification", "so --task may be another"),
        ("clip", "CLIPModel", "so --task may be another"),
        ("llama", "LlamaForCausalLM", "so --task may be another"),
        ("t5", "T5ForConditionalGeneration", "so --task may be another"),
        ("bart", "BartForConditionalGeneration", "which no task here takes"),
    ],
)
def test_a_model_of_another_task(tmp_path: Path, kind: str, architecture: str, hint: str):
    parts = {"encoder": {"model_type": "vit"}, "decoder": {"model_type": "trocr"}}
    config = {"model_type": kind, "architectures": [architecture]}
    write_json(tmp_path / "config.json", {**config, **(parts if kind == "vision-encoder-decoder" else {})})
    with pytest.raises(Refused, match=f"AutoModelForSemanticSegmentation cannot load it; it holds a .*, {hint}"):
        load.load(Recipe(str(tmp_path), "image-segmentation", Path("bundle")))


def test_a_model_that_reads_images_alone(tmp_path: Path):
    for kind, name, fix in (
        ("mask2former", "Mask2FormerForUniversalSegmentation", "no task here takes it"),
        ("focalnet", "FocalNetForImageClassification", "try another --task"),
    ):
        write_json(tmp_path / "config.json", {"model_type": kind, "architectures": [name]})
        with pytest.raises(Refused, match=f"it reads pixel_values, not just text; {fix}"):
            load.load(recipe(str(tmp_path)))


@pytest.mark.parametrize(
    ("kind", "held", "task", "hint"),
    [
        ("bert", "BertForPreTraining", "text-classification", "so --task may be another"),
        ("vit", "ViTModel", "image-classification", "so --task may be another"),
        ("beit", "BeitForMaskedImageModeling", "image-classification", "so --task may be another"),
        ("clap", "ClapModel", "image-classification", "which no task here takes"),
        ("wav2vec2", "Wav2Vec2ForPreTraining", "automatic-speech-recognition", "which no task here takes"),
        ("wav2vec2", "Wav2Vec2ForCTC", "audio-classification", "so --task may be another"),
        ("blip", "BlipForConditionalGeneration", "zero-shot-image-classification", "which no task here takes"),
    ],
)
def test_what_is_said_of_a_checkpoint_without_some_weights(kind: str, held: str, task: str, hint: str):
    from transformers import AutoConfig

    config = AutoConfig.for_model(kind)
    assert advice(config, held, export_task(task)) == f"it holds a {held}, {hint}"
    config.model_type = "own"  # by code of its own
    assert advice(config, held, export_task(task)) == f"it holds a {held}, so --task may be another"


def test_code_of_a_model_that_needs_another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    write_json(tmp_path / "config.json", {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}})
    (tmp_path / "own.py").write_text("import no_such_package\n")
    with pytest.raises(
        Unavailable, match="'s own code does not load: .*not found in your environment: no_such_package"
    ):
        load.load(recipe(str(tmp_path), trust_remote_code=True))


@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_code_of_a_processor_that_lies_elsewhere(tmp_path: Path, file: str):
    settings = {"auto_map": {"AutoImageProcessor": "owner/code--own.OwnProcessor"}}
    write_json(tmp_path / file, {"image_processor": settings} if file.startswith("processor") else settings)
    with pytest.raises(Unavailable, match="m takes its code from owner/code, which is not in the local Hub cache, and"):
        fetch_code(tmp_path, "m")


@pytest.mark.parametrize("nested", [False, True])
def test_a_config_that_trusts_code_itself_runs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nested: bool):
    """As LightGlue's may, whose detector is another model, by itself or as a part of any other model."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    write_json(tmp_path / "code/config.json", {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}})
    (tmp_path / "code/own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nOwnConfig = None\n")
    detector = {"model_type": "own", "_name_or_path": str(tmp_path / "code")}
    config = {"model_type": "lightglue", "trust_remote_code": True, "keypoint_detector_config": detector}
    write_json(tmp_path / "m/config.json", {"model_type": "llava", "text_config": config} if nested else config)
    key = r"text_config\.trust_remote_code" if nested else "trust_remote_code"
    with pytest.raises(
        Refused, match=rf"m's config.json asks for code from elsewhere \({key}\); read that, then allow"
    ):
        load.load(recipe(str(tmp_path / "m")))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        (key, settings)
        for name in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
        for key, settings in (
            (name, {name: "owner/kernel"}),
            (f"{name}.text_config", {name: {"text_config": "owner/kernel@v1:layer"}}),
            (f"layers.1.{name}", {"layers": [{}, {name: "owner/kernel"}]}),
        )
    ]
    + [("text_config.auto_map", {"text_config": {"auto_map": {"AutoModel": "own.Own"}}})],
)
def test_a_config_that_names_code(tmp_path: Path, key: str, settings: dict[str, Any]):
    write_json(tmp_path / "config.json", {"model_type": "bert", **settings})
    with pytest.raises(Refused, match=rf"'s config.json asks for code from elsewhere \({re.escape(key)}\)"):
        load.load(recipe(str(tmp_path)))


def test_a_config_that_has_others_in_its_place(tmp_path: Path):
    """transformers reads the newest that it knows: what is said there would be seen by nobody before."""
    write_json(tmp_path / "config.json", {"model_type": "bert", "configuration_files": ["config.4.0.0.json"]})
    with pytest.raises(Refused, match="config.json names others to read in its place .configuration_files.; make a"):
        load.load(recipe(str(tmp_path)))


def test_words_on_code_that_ask_for_none(tmp_path: Path):
    words = {"trust_remote_code": False, "_attn_implementation": "sdpa", "text_config": {"auto_map": {}}}
    write_json(tmp_path / "config.json", {"model_type": "bert", "_name_or_path": "owner/name", **words})
    refuse_code(tmp_path, "m")


def test_code_of_a_model_that_asks_for_kernels(tmp_path: Path):
    fast = {"unpad_inputs": True, "use_memory_efficient_attention": True}
    write_json(tmp_path / "config.json", {"model_type": "bert", "auto_map": {"AutoModel": "own.OwnModel"}, **fast})
    with pytest.raises(Refused, match="asks for xformers .unpad_inputs and use_memory_efficient_attention in its con"):
        load.load(recipe(str(tmp_path), trust_remote_code=True))


def test_a_tokenizer_of_a_kind_that_the_library_does_not_know(tmp_path: Path):
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    write_json(tmp_path / "tokenizer.json", {"version": "1.0", "model": {"type": "New"}})
    with pytest.raises(Refused, match="m has no tokenizer that can be loaded: "):
        fast_tokenizer(tmp_path, "m", recipe("m"))


def test_sentence_pieces_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)  # not installed, wherever this runs
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "XLMRobertaTokenizer"})
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"")
    with pytest.raises(Unavailable, match="m has no tokenizer.json, and making it from sentencepiece.bpe.model needs"):
        fast_tokenizer(tmp_path, "m", recipe("m"))


@pytest.mark.parametrize(
    ("asked", "of_files", "positions", "expected"),
    [
        (None, 512, 512, 512),
        (None, 256, 512, 256),
        (None, 10**30, 512, 512),
        (None, 10**30, None, LONGEST_DEFAULT),
        (None, 32768, 131072, LONGEST_DEFAULT),
        (384, 256, 512, 384),
        (16384, 512, None, 16384),
    ],
)
def test_the_longest_row(asked: int | None, of_files: int, positions: int | None, expected: int):
    assert longest_row(asked, of_files, positions, toy_tokenizer()) == expected


def test_a_length_over_the_positions():
    with pytest.raises(Refused, match="--max-length 513 is more than the 512 positions that the model has"):
        longest_row(513, 256, 512, toy_tokenizer())


_SCALED = 4 * [1.0]


@pytest.mark.parametrize(
    ("rope", "beside", "most"),
    [
        ({"type": "longrope", "short_factor": _SCALED, "long_factor": 4 * [9.0]}, {_ORIGINAL: 16}, 16),
        ({"type": "longrope", "short_factor": _SCALED, "long_factor": 4 * [9.0], _ORIGINAL: 24, "factor": 2.0}, {}, 24),
        ({"type": "longrope", "short_factor": _SCALED, "long_factor": 4 * [9.0], "factor": 2.0}, {}, POSITIONS),
        ({"type": "dynamic", "factor": 2.0}, {_ORIGINAL: 16}, POSITIONS),
        ({"type": "yarn", "factor": 2.0, _ORIGINAL: 16}, {}, POSITIONS),
        ({"type": "linear", "factor": 2.0}, {}, POSITIONS),
        (None, {}, POSITIONS),
    ],
)
def test_a_text_is_never_so_long_that_positions_turn_by_other_frequencies(
    tmp_path: Path, rope: Any, beside: Any, most: int
):
    """Which of them transformers takes is decided in Python by the length, and a graph has those of one short text."""
    import torch

    folder = tiny_qwen3(tmp_path / "model", sentence_transformers=False)
    edit_json(folder / "config.json", rope_scaling=rope, **beside)
    source = load.load(recipe(str(folder)))
    assert source.max_length == most
    with pytest.raises(Refused, match=f"--max-length {most + 1} is more than the {most} positions that the model has"):
        load.load(recipe(str(folder), max_length=most + 1))
    model = source.load_model()
    traced = model.rotary_emb.inv_freq.clone()
    with torch.inference_mode():
        model(torch.ones(1, most, dtype=torch.int64))
    assert torch.equal(model.rotary_emb.inv_freq, traced)


def test_a_length_that_is_cut_because_it_is_costly_is_told(tmp_path: Path):
    folder = tiny_qwen3(tmp_path / "model", sentence_transformers=False)
    edit_json(folder / "config.json", max_position_embeddings=32768)
    edit_json(folder / "tokenizer_config.json", model_max_length=131072)

    def said(**options: Any) -> str:
        source = load.load(recipe(str(folder), **options))
        return source.task.describe(source)

    assert said() == f"Qwen3Model, mean pooling, up to {LONGEST_DEFAULT} tokens of its 32768 (--max-length)"
    assert said(max_length=16384) == "Qwen3Model, mean pooling, up to 16384 tokens"
    write_sentence_files(folder, max_length=512)
    assert said() == "Qwen3Model, mean pooling, up to 512 tokens"
    edit_json(folder / "config.json", max_position_embeddings=LONGEST_DEFAULT)
    (folder / "modules.json").unlink()
    assert said() == f"Qwen3Model, mean pooling, up to {LONGEST_DEFAULT} tokens"
    help_of = " ".join(_parser().format_help().split())
    assert f"tokens a text is cut at (default: the model's, {LONGEST_DEFAULT} at most)" in help_of


def test_relative_positions_alone_are_no_limit(tmp_path: Path):
    """They are where sentence-transformers cuts when nothing else is said."""
    from sentence_transformers import SentenceTransformer

    folder = task_model(tmp_path, "feature-extraction", "deberta-v2", position_biased_input=False)
    edit_json(folder / "tokenizer_config.json", model_max_length=1024)
    assert load.load(recipe(str(folder))).max_length == POSITIONS
    assert load.load(recipe(str(folder), max_length=POSITIONS + 1)).max_length == POSITIONS + 1
    write_sentence_files(folder, max_length=2 * POSITIONS)
    theirs = SentenceTransformer(str(folder), device="cpu")
    assert load.load(recipe(str(folder))).max_length == theirs.max_seq_length == 2 * POSITIONS
    edit_json(folder / "config.json", position_biased_input=True)
    assert load.load(recipe(str(folder))).max_length == POSITIONS
    with pytest.raises(Refused, match=f"is more than the {POSITIONS} positions that the model has; give fewer"):
        load.load(recipe(str(folder), max_length=POSITIONS + 1))


def test_mpts_own_word_for_positions(tmp_path: Path):
    """Its graph has the biases of so many tokens, and of no more."""
    folder = model_of(tmp_path / "model", SPECS["mpt"], "AutoModel")
    edit_json(folder / "tokenizer_config.json", model_max_length=int(1e30))
    source = load.load(recipe(str(folder)))
    assert source.max_length == source.positions == POSITIONS
    with pytest.raises(Refused, match=f"is more than the {POSITIONS} positions that the model has; give fewer"):
        load.load(recipe(str(folder), max_length=POSITIONS + 1))


@pytest.mark.parametrize("frames", [100, 5000])
def test_the_longest_recording_of_a_conformer_with_relative_positions(tmp_path: Path, frames: int):
    """Its graph has a table of so many, which PyTorch makes longer where it needs more."""
    folder = tiny_speech(tmp_path / "model", "wav2vec2-conformer", "ForCTC", max_source_positions=frames)
    most = frames * 320 // RATE

    def loaded(max_length: int | None) -> Any:
        asked = Recipe(str(folder), "automatic-speech-recognition", Path("bundle"), max_length=max_length)
        source = load.load(asked)
        return source, source.task.asked_length(asked, source)

    source, seconds = loaded(None)
    assert seconds == min(30, most)
    assert source.max_length == (seconds * RATE - 400) // 320 + 1 <= frames
    source, seconds = loaded(most)
    assert (seconds, source.max_length) == (most, frames - 1)
    with pytest.raises(
        Refused,
        match=f"--max-length {most + 1} is more than the {most} s that the model's {frames} positions last; give fewer",
    ):
        loaded(most + 1)
    edit_json(folder / "config.json", position_embeddings_type="rotary")
    assert loaded(most + 1)[1] == most + 1


def test_a_model_of_bytes_and_one_that_only_names_the_key(tmp_path: Path):
    folder = tiny_bert(tmp_path / "model")
    edit_json(folder / "config.json", quantization_config=None)
    with pytest.raises(Refused, match="has quantization_config null, which transformers fails on; remove it"):
        load.load(recipe(str(folder)))
    edit_json(folder / "config.json", quantization_config={})
    with pytest.raises(Refused, match="is quantized already; export the model that it was made from"):
        load.load(recipe(str(folder)))


@pytest.mark.parametrize(("asked", "of_files"), [(1, 512), (2, 512), (None, 2)])
def test_a_length_that_special_tokens_fill(asked: int | None, of_files: int):
    """With it the tokenizers library would leave texts as long as they are."""
    with pytest.raises(Refused, match="tokens have no room beside 2 special ones; give a larger --max-length"):
        longest_row(asked, of_files, 512, toy_tokenizer())
    assert longest_row(3, 512, 512, toy_tokenizer()) == 3


def pickled(folder: Path) -> Path:
    """The model in `folder`, as many on the Hub are: its weights pickled, and in no other form."""
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def test_pickled_weights_of_sentence_transformers_are_converted_with_its_files(tmp_path: Path):
    from sentence_transformers import SentenceTransformer

    folder, saved = pickled(tiny_bert(tmp_path / "model", pooling="cls")), str(tmp_path / "saved")
    advice = r"load the model with SentenceTransformer\(\.\.\.\) in a sandbox and save it, then export that folder"
    with pytest.raises(Refused, match=f"pickled weights .* are never loaded, for they can run code; {advice}"):
        load.load(recipe(str(folder)))
    SentenceTransformer(str(folder), device="cpu").save_pretrained(saved)
    settings = load.load(recipe(saved)).settings
    assert (settings["pooling"], settings["normalize"]) == ("cls", True)
    edit_json(folder / "config_sentence_transformers.json", model_type="SparseEncoder")
    with pytest.raises(Refused, match=r"load the model with SparseEncoder\(\.\.\.\) in a sandbox"):
        load._weights_files(folder, "m")


def test_pickled_weights_are_converted_with_their_head(tmp_path: Path):
    import transformers

    folder = tiny_bert(tmp_path / "model", sentence_transformers=False)
    ranker = transformers.BertForSequenceClassification.from_pretrained(folder, num_labels=1)
    ranker.save_pretrained(folder)
    ranking = Recipe(str(pickled(folder)), "text-ranking", Path("bundle"))
    edit_json(folder / "config.json", sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity"})
    advice = (
        "load it with BertForSequenceClassification.from_pretrained(...) in a sandbox, save that with save_pretrained "
        "into a copy of the model's folder, then export the copy"
    )
    with pytest.raises(Refused) as refused:
        load.load(ranking)
    assert str(refused.value).endswith(f"; {advice}")
    (folder / "pytorch_model.bin").rename(tmp_path / "pytorch_model.bin")  # what of the Hub is never downloaded
    with pytest.raises(Refused) as refused:
        load.load(ranking)
    assert str(refused.value).endswith(f"download it again with them, or, where it has others alone, {advice}")
    (tmp_path / "pytorch_model.bin").rename(folder / "pytorch_model.bin")
    transformers.BertForSequenceClassification.from_pretrained(folder).save_pretrained(folder)  # of a copy
    source = load.load(ranking)
    assert source.settings["function"] == "none"
    assert source.load_model().num_labels == 1


def test_disk_space_is_asked_of_the_folder_that_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def disk_usage(folder: Path) -> SimpleNamespace:
        asked.append(folder)
        return SimpleNamespace(free=2_900_000_000)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    with pytest.raises(Refused, match=r"needs about 3.00 GB at .*, 2.90 GB are free"):
        load._check_disk(tmp_path / "not" / "yet", 1_000_000_000)
    assert asked == [tmp_path]
