"""Stage 1: find the model, and refuse what cannot become a bundle before its weights are read.

Cheap checks on JSON files come first, what needs transformers comes after, and weights are downloaded last.
"""

from __future__ import annotations

import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

from export.errors import Refused
from export.recipe import Recipe
from export.sentence_files import SentenceFiles, read_json, read_sentence_files
from export.source import Source, first_line, quiet

LONGEST_DEFAULT = 8192
"""Tokens. Models that name no limit, or a huge one, get this: attention's cost grows with the square of the length."""

DISK_FACTOR = 3
"""Disk space needed, in sizes of the fp32 weights: the traced graph, ONNX Runtime's optimised copy, the bundle."""

_SMALL_FILES = ["*.json", "*.txt", "*.model"]
_WEIGHTS = ["*.safetensors"]
_CODE = ["*.py"]
_OTHER_FORMATS = ["onnx/*", "openvino/*"]
_TEXT_INPUTS = {"input_ids", "attention_mask", "token_type_ids", "position_ids"}


def load(recipe: Recipe) -> Source:
    """Find the model of `recipe` and check that it fits the task. Raises Refused."""
    root, model, revision = _locate(recipe)
    files = read_sentence_files(root, recipe.pooling)
    folder = root / files.transformer
    _check_files(folder, model, recipe.trust_remote_code)
    with quiet():
        config, auto_class, architecture, positions = _check_architecture(folder, model, recipe)
        tokenizer = _fast_tokenizer(folder, model, files, recipe)
    if revision is not None:
        _download(recipe.model, revision, [*_SMALL_FILES, *_WEIGHTS])
    weights_bytes = _weights_bytes(folder, model)
    _check_disk(recipe.out, weights_bytes)
    return Source(
        folder=folder,
        model=model,
        revision=revision,
        task=recipe.task,
        auto_class=auto_class,
        architecture=architecture,
        config=config,
        tokenizer=tokenizer,
        pooling=files.pooling,
        normalize=files.normalize,
        max_length=_max_length(recipe.max_length, files.max_length or tokenizer.model_max_length, positions),
        prompts=files.prompts,
        default_prompt=files.default_prompt,
        weights_bytes=weights_bytes,
        trust_remote_code=recipe.trust_remote_code,
    )


def _locate(recipe: Recipe) -> tuple[Path, str, str | None]:
    """Folder, name and commit of the model; its weights may not be there yet."""
    folder = Path(recipe.model).expanduser()
    if folder.is_dir():
        if recipe.revision is not None:
            raise Refused(f"--revision is for ids on the Hub, {recipe.model} is a folder; leave it out")
        return folder, folder.resolve().name, None
    if folder.is_absolute() or recipe.model.startswith((".", "~")) or recipe.model.count("/") > 1:
        raise Refused(f"no model: the folder {recipe.model} does not exist; check the path, or give a Hub id")
    small_files = _SMALL_FILES + (_CODE if recipe.trust_remote_code else [])
    snapshot = _download(recipe.model, recipe.revision, small_files)
    return snapshot, recipe.model, snapshot.name


def _download(model: str, revision: str | None, patterns: list[str]) -> Path:
    """The snapshot of a Hub repository; its folder is named after the commit."""
    from huggingface_hub import errors, snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from requests import RequestException

    disable_progress_bars()
    at = f" at revision {revision}" if revision else ""
    try:
        return Path(
            snapshot_download(model, revision=revision, allow_patterns=patterns, ignore_patterns=_OTHER_FORMATS)
        )
    except errors.HFValidationError:
        raise Refused(f"no model: {model!r} is neither a folder nor a valid Hub id (owner/name)") from None
    except errors.GatedRepoError:
        raise Refused(f"{model} is gated; accept its terms on the Hub and set HF_TOKEN") from None
    except errors.RevisionNotFoundError:
        raise Refused(f"{model} has no revision {revision}; leave --revision out for main") from None
    except errors.RepositoryNotFoundError:
        raise Refused(
            f"no model: {model} is neither a folder here nor on the Hub; check the spelling, or set HF_TOKEN if private"
        ) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HfHubHTTPError, RequestException):
        raise Refused(
            f"no model: there is no folder {model}, it is not in the local Hub cache{at}, and the Hub cannot be "
            "reached (or HF_HUB_OFFLINE is set); go online, or give the path of a folder"
        ) from None


def _check_files(folder: Path, model: str, trust_remote_code: bool) -> None:
    """What config.json and its neighbours tell without transformers."""
    config = read_json(folder / "config.json")
    if not config:
        raise Refused(f"{model} has no config.json; a model folder as `save_pretrained` writes it is needed")
    custom = [n for n in ("config.json", "tokenizer_config.json") if "auto_map" in read_json(folder / n)]
    if custom and not trust_remote_code:
        raise Refused(
            f"{model} brings its own Python code ({custom[0]} has auto_map); read it, then allow it with "
            "--trust-remote-code"
        )
    if "quantization_config" in config:
        raise Refused(f"{model} is quantized already; export the model that it was made from")
    has_safetensors = any(folder.glob("*.safetensors"))
    if not has_safetensors and any(folder.glob("pytorch_model*.bin")):
        raise Refused(_pickled(model))


def _pickled(model: str) -> str:
    return (
        f"{model} has no *.safetensors, and pickled weights (pytorch_model.bin) are never loaded, for they can run "
        "code; convert it in a sandbox with AutoModel.from_pretrained(...).save_pretrained(folder), then export that "
        "folder"
    )


def _check_architecture(folder: Path, model: str, recipe: Recipe) -> tuple[Any, str, str, int | None]:
    """Config, auto class, model class and positions of a model that task and exporter both take."""
    import torch
    import transformers
    from optimum.exporters.onnx import model_configs  # noqa: F401  (registers what the exporter supports)
    from optimum.exporters.tasks import TasksManager
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    raw = read_json(folder / "config.json")
    kind, custom = raw.get("model_type"), "auto_map" in raw
    if kind is None or (kind not in CONFIG_MAPPING_NAMES and not custom):
        raise Refused(f"{model} is of type {kind}, which transformers {transformers.__version__} does not know")
    config = transformers.AutoConfig.from_pretrained(
        folder, trust_remote_code=recipe.trust_remote_code, local_files_only=True
    )
    auto_class = _auto_class(recipe.task)
    known = getattr(transformers, auto_class)._model_mapping._model_mapping
    if kind not in known and not custom:
        raise Refused(f"{model} ({kind}) does not fit {recipe.task}: {auto_class} cannot load it")
    try:
        supported = TasksManager.get_supported_tasks_for_model_type(kind, "onnx", library_name="transformers")
    except KeyError:
        supported = {}
    if recipe.task not in supported:
        raise Refused(
            f"{model} ({kind}) has no ONNX exporter for {recipe.task} in optimum; no bundle can be made of it"
        )
    if config.is_encoder_decoder:
        raise Refused(f"{model} ({kind}) does not fit {recipe.task}: it is an encoder with a decoder")
    foreign = [name for name in supported[recipe.task](config).inputs if name not in _TEXT_INPUTS]
    if foreign:
        raise Refused(f"{model} ({kind}) does not fit {recipe.task}: it reads {', '.join(foreign)}, not just text")
    with torch.device("meta"):  # shapes only
        empty = getattr(transformers, auto_class).from_config(config, trust_remote_code=recipe.trust_remote_code)
    return config, auto_class, type(empty).__name__, _positions(config, empty)


def _auto_class(task: str) -> str:
    return str(import_module(f"engine.tasks.{task.replace('-', '_')}").TASK.auto_class)


def _positions(config: Any, model: Any) -> int | None:
    """Positions that a text may fill; None when the architecture has no limit.

    RoBERTa and its relatives count from padding_idx + 1, so that many of the table's entries are never used. They
    are told by a module that has both an index of padding and a table of positions, as sentence-transformers does.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:  # XLNet says -1
        return None
    for module in model.modules():
        padding = getattr(module, "padding_idx", None)
        if isinstance(padding, int) and hasattr(module, "position_embeddings"):
            return positions - padding - 1
    return positions


def _fast_tokenizer(folder: Path, model: str, files: SentenceFiles, recipe: Recipe) -> Any:
    from tokenizers import normalizers
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, use_fast=True, trust_remote_code=recipe.trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError, ImportError, TypeError) as error:
        raise Refused(f"{model} has no tokenizer that can be loaded: {first_line(error)}") from error
    if not tokenizer.is_fast:
        raise Refused(
            f"{model} has no tokenizer.json, and its {type(tokenizer).__name__} cannot be converted into one; "
            "the worker needs that file"
        )
    if tokenizer.truncation_side != "right":
        raise Refused(f"{model} cuts long texts at the front (truncation_side), the worker only at the end")
    if files.lowercase:
        # Where sentence-transformers puts it; Python's str.lower differs, for example in Greek final sigma.
        backend = tokenizer.backend_tokenizer
        steps = backend.normalizer
        steps = list(steps) if isinstance(steps, normalizers.Sequence) else [steps] if steps else []
        if not any(isinstance(step, normalizers.Lowercase) for step in steps):
            backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])
    return tokenizer


def _weights_bytes(folder: Path, model: str) -> int:
    """Size of all weights as float32, read from the headers of the files."""
    from math import prod

    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise Refused(_pickled(model))
    total = 0
    for file in files:
        try:
            with safe_open(file, framework="np") as tensors:
                total += sum(4 * prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
        except SafetensorError as error:
            raise Refused(f"{file} cannot be read ({first_line(error)}); download the model again") from error
    return total


def _check_disk(out: Path, weights_bytes: int) -> None:
    existing = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    free, needed = shutil.disk_usage(existing).free, DISK_FACTOR * weights_bytes
    if free < needed:
        raise Refused(
            f"the export needs about {needed / 1e9:.1f} GB at {existing}, {free / 1e9:.1f} GB are free; "
            "free some space or name a folder on another disk with --out"
        )


def _max_length(asked: int | None, of_files: int, positions: int | None) -> int:
    """The longest row in tokens: what was asked for, else the smallest limit that applies."""
    if asked is None:
        return min(of_files, positions or LONGEST_DEFAULT, LONGEST_DEFAULT)
    if positions is not None and asked > positions:
        raise Refused(f"--max-length {asked} is more than the {positions} positions that the model has")
    return asked
