"""Stage 1: find the model, and refuse what cannot become a bundle before its weights are read.

Cheap checks on JSON files come first, what needs transformers comes after, and weights are downloaded last.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.sizes import readable
from export.command.said import first_line, quiet
from export.errors import Refused, Unavailable, refusal_of
from export.exporters import Exporter, choose_exporter
from export.gate.data import check_payload_file
from export.gate.limits import GateLimits
from export.infer import claimed, infer_task
from export.model_files.adapters import Adapter, check_labels, files_beside, find_adapters, refuse_adapter
from export.model_files.backbones import settle_backbone
from export.model_files.hub import download, locate, refuse_pointer
from export.model_files.json_files import read_json
from export.model_files.newer_config import in_older_words
from export.model_files.own_code import CODE, fetch_code, refuse_code, refuse_fast_paths
from export.model_files.sentence_files import MODULES, conversion
from export.model_files.weight_files import WHOLE, parts_of, weight_files
from export.other_task import advice, auto_class, is_for_another
from export.own_task import check_online
from export.precision.options import wanted
from export.recipe import TASK_OPTIONS, Recipe
from export.source import Source
from export.tasks import export_task
from export.tokenizer.vocabulary import check_last_token, check_tokens, rows_of

if TYPE_CHECKING:
    from export.tasks.base import ExportTask

DISK_FACTOR = 3
"""Disk space needed, in sizes of the fp32 weights: the traced graph, ONNX Runtime's optimised copy, the bundle."""

_SMALL_FILES = ["*.json", "*.jinja", "*.txt", "*.model"]
_WEIGHTS = ["*model*.safetensors"]
"""Not what Mistral's repositories have besides (consolidated.safetensors, as much again), nor MMS's adapters."""
_LAYERS = ["*_Dense/model.safetensors"]  # of sentence-transformers, beside an adapter
_ORIGINAL = "original_max_position_embeddings"


def load(recipe: Recipe) -> Source:
    """Find the model of `recipe` and check that it fits the task. Raises Refused."""
    if recipe.parity_data is not None:
        check_payload_file(recipe.parity_data)
    base = locate(recipe.model, recipe.revision, _SMALL_FILES + (CODE if recipe.trust_remote_code else []))
    root, model = base.folder, base.name
    asked = f"{recipe.model}@{recipe.revision}" if recipe.revision else recipe.model  # as --adapter takes it
    _check_is_model(root, model, asked, base.is_complete)
    adapters = find_adapters(recipe.adapters, base, _SMALL_FILES + _LAYERS)
    beside = files_beside(adapters)
    of_adapters = [claimed(beside) if beside else None, *(adapter.task for adapter in adapters)]
    task = export_task(recipe.task or next(filter(None, of_adapters), None) or infer_task(root, model))
    check_online(task.tag)
    _check_options(recipe, task)
    GateLimits(recipe.parity_thresholds).of(task, "fp32")
    layout = task.layout(beside or root, recipe)
    folder = root if beside else root / layout.transformer
    _check_files(folder, model, recipe.trust_remote_code)
    if beside and not recipe.trust_remote_code:
        refuse_code(beside, f"the adapter of {model}")
    code = fetch_code(folder, model) if recipe.trust_remote_code else {}
    with quiet():
        config, is_changed, auto, architecture, positions, embedded, exporter = _check_architecture(
            folder, model, task, recipe, adapters
        )
        task.check(model, config)
        of_tokens = beside if beside and (beside / "tokenizer_config.json").is_file() else folder
        processors = task.processors(of_tokens, model, layout, recipe)
        taken_out = check_tokens(model, processors.get("tokenizer"), embedded)
    if not base.is_complete:
        download(model, base.revision, [*_SMALL_FILES, *_WEIGHTS, *(f"*{part}" for part in parts_of(folder))])
    refuse_adapter(folder, model, asked)
    weights_bytes = _weights_bytes(folder, model)
    _check_disk(recipe.out, weights_bytes)
    return Source(
        folder=folder,
        model=model,
        revision=base.revision,
        task=task,
        auto_class=auto,
        architecture=architecture,
        config=config,
        is_changed=is_changed,
        max_length=task.max_length(recipe, layout, processors, config, positions),
        weights_bytes=weights_bytes,
        trust_remote_code=recipe.trust_remote_code,
        settings=layout.settings,
        exporter=exporter.name,
        exporter_why=exporter.why,
        other_exporter=exporter.other,
        adapters=adapters,
        code=code,
        taken_out=tuple(taken_out),
        positions=positions,
        **processors,
    )


def _check_is_model(root: Path, model: str, asked: str, is_complete: bool) -> None:
    """Raises Refused for a folder of something else: better said before the task is guessed.

    Weights that are not fetched yet may be an adapter's alone, or a model's.
    """
    has_config = (root / "config.json").is_file()
    if is_complete or not has_config:
        refuse_adapter(root, model, asked)
    if has_config:
        config = read_json(root / "config.json")
        kind = config.get("model_type")
        if kind == "timm_wrapper" or (kind is None and "pretrained_cfg" in config):
            raise Refused(
                f"{model} is a model of the timm package, which a bundle cannot hold; choose one of transformers' own "
                "architectures (docs/models.md)"
            )
        return
    if (root / MODULES).is_file():
        return
    what = "is empty" if not any(root.iterdir()) else "has no config.json"
    raise Refused(f"{model} {what}; a model folder as `save_pretrained` writes it is needed")


def _check_options(recipe: Recipe, task: ExportTask) -> None:
    for option in TASK_OPTIONS:
        if getattr(recipe, option) is not None and option not in task.options:
            raise Refused(f"--{option.replace('_', '-')} means nothing to {task.tag}; leave it out")
    if recipe.pooling is not None and recipe.pooling not in task.poolings:
        raise Refused(f"--pooling {recipe.pooling} is not for {task.tag}; choose one of {', '.join(task.poolings)}")
    if any(one.startswith("int8") for one in wanted(recipe).values()) and len(task.graphs) > 1:
        raise Refused(f"--precision int8 is for bundles of one graph, {task.tag} has {len(task.graphs)}; leave it out")


def _check_files(folder: Path, model: str, trust_remote_code: bool) -> None:
    """What config.json and its neighbours tell without transformers."""
    config = read_json(folder / "config.json")
    if not config:
        raise Refused(
            f"{model} has no config.json; a model folder as `save_pretrained` writes it is needed, which a module of "
            "PyTorch alone can become, too (docs/export.md, A module of your own)"
        )
    if not trust_remote_code:
        refuse_code(folder, model)
    if "quantization_config" in config:
        if config["quantization_config"] is None:
            raise Refused(f"{model}'s config.json has quantization_config null, which transformers fails on; remove it")
        raise Refused(f"{model} is quantized already; export the model that it was made from")
    _refuse_other_weights(folder, model)


def _refuse_other_weights(folder: Path, model: str) -> list[Path]:
    """The files of weights that are there. Raises Refused for pickled ones, and for what Git LFS has in their place."""
    files = sorted(folder.glob("*.safetensors"))
    if not files and any(folder.glob("pytorch_model*.bin")):
        raise Refused(
            f"{model} has no *.safetensors, and pickled weights (pytorch_model.bin) are never loaded, for they can run "
            f"code; {conversion(folder)}"
        )
    for file in (*files, folder / "tokenizer.json"):
        refuse_pointer(file)
    return files


def _weights_files(folder: Path, model: str) -> list[Path]:
    """The files of weights that are loaded. Raises Refused where one is missing."""
    files = _refuse_other_weights(folder, model)
    if not files:
        raise Refused(
            f"{model} has no weights (*.safetensors), the one format that is read; download it again with them, or, "
            f"where it has others alone, {conversion(folder)}"
        )
    parts = [] if (folder / WHOLE).is_file() else parts_of(folder)
    if lacking := [part for part in parts if not (folder / part).is_file()]:
        raise Refused(
            f"{model} lacks {len(lacking)} of {len(parts)} files of weights, {lacking[0]} for one; download it again"
        )
    return weight_files(folder)


def _check_architecture(
    folder: Path, model: str, task: ExportTask, recipe: Recipe, adapters: Sequence[Adapter]
) -> tuple[Any, bool, str, str, int | None, int | None, Exporter]:
    """Config, whether it is changed, auto class, class, positions, tokens and exporter of a model that fits."""
    import transformers
    from transformers.integrations.accelerate import init_empty_weights
    from transformers.modeling_utils import no_init_weights
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

    raw = read_json(folder / "config.json")
    kind, custom = raw.get("model_type"), "auto_map" in raw
    if kind is None or (kind not in CONFIG_MAPPING_NAMES and not custom):
        raise Refused(
            f"{model} is of type {kind}, which transformers {transformers.__version__} does not know; choose another "
            "model, or save your own with its code, by register_for_auto_class, for --trust-remote-code "
            "(docs/export.md, A module of your own)"
        )
    with _blaming_config(model, custom):
        newer = {} if custom else in_older_words(raw, CONFIG_MAPPING[kind], model)
        if newer:
            config = CONFIG_MAPPING[kind].from_dict({**raw, **newer})
        else:
            config = transformers.AutoConfig.from_pretrained(
                folder, trust_remote_code=recipe.trust_remote_code, local_files_only=True
            )
    if custom:
        refuse_fast_paths(config, model)
    is_changed = bool(newer) | (not custom and settle_backbone(config, model))
    held = next(iter(raw.get("architectures") or ()), "")
    name = auto_class(kind, task, custom)
    if name is None:
        names = " nor ".join(task.auto_classes())
        hint = held and f"; {advice(config, held, task)}"
        raise Refused(f"{model} ({kind}) does not fit {task.tag}: {names} cannot load it{hint}")
    exporter = choose_exporter(kind, model, task, config, recipe.exporter)
    shown = copy.deepcopy(config)
    shown.pruned_heads = {}  # taking heads out needs values
    # Parameters without data, and all else with it: as from_pretrained does it, so that a model's own code may read
    # values of what it computes meanwhile.
    with _blaming_config(model, custom), no_init_weights(), init_empty_weights():
        empty = getattr(transformers, name).from_config(shown, trust_remote_code=recipe.trust_remote_code)
    check_labels(empty, adapters)
    check_last_token(model, empty, config, [adapter.folder for adapter in adapters])
    if not task.traces_itself and empty.main_input_name not in task.input_axes():
        fix = "try another --task" if is_for_another(config, held, task) else "no task here takes it"
        raise Refused(
            f"{model} ({kind}) does not fit {task.tag}: it reads {empty.main_input_name}, not just {task.reads}; {fix}"
        )
    sizes = _positions(config, empty), rows_of(empty, config)
    return config, is_changed, name, type(empty).__name__, *sizes, exporter


@contextmanager
def _blaming_config(model: str, custom: bool) -> Iterator[None]:
    """Make a refusal of what transformers, or the model's own code, raises over config.json, whatever that is."""
    try:
        yield
    except Exception as error:
        own = Refused(f"{model}'s config.json is none that a model can be made of: {first_line(error)}")
        if isinstance(error, ImportError):  # what the code asks for is not installed
            said = first_line(error)
            lacks = f"{model} needs another package: {said.partition('. ')[0]}; install it, or choose another model"
            own = Unavailable(f"{model}'s own code does not load: {said}" if custom else lacks)
        raise refusal_of(error) or own from error


def _positions(config: Any, model: Any) -> int | None:
    """Positions that a text may fill; None when the architecture has no limit.

    RoBERTa and its relatives count from padding_idx + 1, so that many of the table's entries are never used. They
    are told by a module that has both an index of padding and a table of positions, as sentence-transformers does.
    Longrope (Phi-3) turns by other frequencies where a text is longer than the original positions, which it sees in
    Python, so that a graph has those of short texts alone. Dynamic scaling does so above all positions. DeBERTa with
    relative positions alone has no table: its number is the length of a text where no file says another. MPT, whose
    table of ALiBi has an end, calls its number otherwise.
    """
    if getattr(config, "position_biased_input", True) is False:
        return None
    positions = getattr(config, "max_position_embeddings", getattr(config, "max_seq_len", None))
    if not isinstance(positions, int) or positions < 1:  # XLNet says -1
        return None
    scaling = getattr(config, "rope_scaling", None) or getattr(config, "rope_parameters", None)
    if isinstance(scaling, dict) and "long_factor" in scaling:
        originals = (getattr(config, _ORIGINAL, None), scaling.get(_ORIGINAL))
        positions = min([positions, *(one for one in originals if isinstance(one, int) and one > 0)])
    for module in model.modules():
        padding = getattr(module, "padding_idx", None)
        if isinstance(padding, int) and hasattr(module, "position_embeddings"):
            return positions - padding - 1
    return positions


def _weights_bytes(folder: Path, model: str) -> int:
    """Size of all weights as float32, read from the headers of the files."""
    from math import prod

    from safetensors import SafetensorError, safe_open

    total = 0
    for file in _weights_files(folder, model):
        try:
            with safe_open(file, framework="np") as tensors:
                total += sum(4 * prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            if refusal_of(error) is not None:  # of memory
                raise
            raise Refused(f"{file} cannot be read ({first_line(error)}); download the model again") from error
    return total


def _check_disk(out: Path, weights_bytes: int) -> None:
    existing = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    free, needed = shutil.disk_usage(existing).free, DISK_FACTOR * weights_bytes
    if free < needed:
        raise Unavailable(
            f"the export needs about {readable(needed)} at {existing}, {readable(free)} are free; "
            "free some space or name a folder on another disk with --out"
        )
