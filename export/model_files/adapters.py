"""LoRA and its relatives (PEFT): merged into the weights, so that the bundle is one plain model.

The parity gate then compares with PEFT, which runs the adapter beside the weights. Cheap checks on JSON files come
first. Rule: nothing is unpickled.
"""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.command.arguments import file_path
from export.command.said import first_line
from export.errors import Refused, refusal_of
from export.model_files.hub import Located, locate, refuse_pointer
from export.model_files.json_files import read_json
from export.model_files.sentence_files import MODULES

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_TASKS = {
    "FEATURE_EXTRACTION": "feature-extraction",
    "QUESTION_ANS": "question-answering",
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
}


@dataclass(frozen=True)
class Adapter:
    """An adapter that has been found and fits by what its files say."""

    name: str
    folder: Path
    revision: str | None
    sha256: str
    """Of its weights."""
    task: str | None
    """The tag that it was trained for, where it says one."""
    whole: tuple[str, ...]
    """Modules that it brings whole, such as a classifier, so that the base may lack them."""

    @property
    def pinned(self) -> str:
        """As --adapter takes it."""
        return f"{self.name}@{self.revision}" if self.revision else self.name

    def brings(self, tensor: str) -> str | None:
        """The module that it brings whole and that a tensor of that name is of."""
        return next((one for one in self.whole if f".{one}." in f".{tensor}"), None)


def find_adapters(asked: Sequence[str], base: Located, files: Sequence[str] = ()) -> tuple[Adapter, ...]:
    """The adapters `asked` for, each a folder, ID or ID@REVISION, for the model `base`. Raises Refused.

    `files` are patterns of what else is fetched with one.
    """
    return tuple(_find(one, base, files) for one in asked)


def files_beside(adapters: Sequence[Adapter]) -> Path | None:
    """The folder of the last adapter that sentence-transformers saved, whose files say more than the base's own do.

    It is what the library loads: the base gives the weights alone.
    """
    return next((one.folder for one in reversed(adapters) if (one.folder / MODULES).is_file()), None)


def _find(asked: str, base: Located, files: Sequence[str]) -> Adapter:
    name, _, revision = (asked, "", "") if file_path(asked).is_dir() else asked.partition("@")
    try:
        found = locate(name, revision or None, [CONFIG, WEIGHTS, *files], "@REVISION")
    except Refused as refusal:
        raise type(refusal)(f"--adapter {asked}: {refusal}") from None
    config = read_json(found.folder / CONFIG)
    if not config:
        raise Refused(
            f"the adapter {found.name} has no {CONFIG}; a folder as PEFT's save_pretrained writes it is needed"
        )
    _refuse_other_library(found.name, config)
    if not (found.folder / WEIGHTS).is_file():
        raise Refused(
            f"the adapter {found.name} has no {WEIGHTS}, and pickled weights are never loaded; save it again with "
            "PEFT's save_pretrained"
        )
    refuse_pointer(found.folder / WEIGHTS)
    kind = config.get("peft_type")
    if kind in ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT"):
        raise Refused(
            f"the adapter {found.name} is {kind}, which weights cannot take in; LoRA and its relatives can be"
        )
    trained_on = str(config.get("base_model_name_or_path") or "")
    if base.revision is not None and _is_id(trained_on) and trained_on.lower() != base.name.lower():
        raise Refused(
            f"the adapter {found.name} was trained on {trained_on}, not on {base.name}; export {trained_on} with it, "
            f"or change base_model_name_or_path in its {CONFIG} if they are the same model"
        )
    return Adapter(
        name=found.name,
        folder=found.folder,
        revision=found.revision,
        sha256=hashlib.sha256((found.folder / WEIGHTS).read_bytes()).hexdigest(),
        task=_TASKS.get(str(config.get("task_type"))),
        whole=tuple(config.get("modules_to_save") or ()) + _heads(config),
    )


def _is_id(name: str) -> bool:
    return name.count("/") <= 1 and not name.startswith((".", "/", "~")) and bool(name) and not Path(name).is_dir()


def _heads(config: Any) -> tuple[str, ...]:
    """What PEFT saves whole for a task, said or not."""
    heads = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}
    return heads.get(str(config.get("task_type")), ())


def refuse_adapter(folder: Path, model: str, asked: str) -> None:
    """Raise Refused where `folder`, asked for as a model, holds an adapter and no whole weights."""
    weights = (*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin"))
    if any(not file.name.startswith("adapter_") for file in weights):
        return
    config = read_json(folder / CONFIG)
    if config:
        _refuse_other_library(model, config)
        base = config.get("base_model_name_or_path") or "MODEL"
        raise Refused(f"{model} is an adapter; export its model with it: {base} --adapter {asked}")


def _refuse_other_library(name: str, config: Mapping[str, Any]) -> None:
    if not config.get("peft_type"):
        raise Refused(
            f"the adapter {name} is of another library than PEFT ({CONFIG} has no peft_type), such as AdapterHub, and "
            "its layers fit into no weights; export one that PEFT's save_pretrained wrote, or a model with it merged"
        )


@contextmanager
def weights_alone() -> Iterator[None]:
    """Inside the block, transformers loads a folder's own weights though an adapter's files lie beside them.

    By itself it would load the base that these name, from wherever that is, with the adapter.
    """
    from transformers import modeling_utils
    from transformers.models.auto import auto_factory

    before = auto_factory.find_adapter_config_file, modeling_utils.find_adapter_config_file
    auto_factory.find_adapter_config_file = modeling_utils.find_adapter_config_file = lambda *_, **__: None
    try:
        yield
    finally:
        auto_factory.find_adapter_config_file, modeling_utils.find_adapter_config_file = before


def check_labels(model: Any, adapters: Sequence[Adapter]) -> None:
    """Raise Refused where a classifier that an adapter brings, by its tensors' shapes, has other labels than `model`.

    A base that was never a classifier's has two. Shapes are enough: no values are needed.
    """
    labels = model.config.num_labels
    there = {name: tuple(values.shape) for name, values in model.state_dict().items()}
    for adapter in adapters:
        for key, shape in _brought(adapter).items():
            name = key.removeprefix("base_model.model.")
            head, own = adapter.brings(name), there.get(name)
            if head and own and own != shape and own == (labels, *shape[1:]):
                named = f"{shape[0]} label{'' if shape[0] == 1 else 's'}"
                raise Refused(
                    f"the adapter {adapter.name} brings a {head} for {named}, and the model's config.json has "
                    f"{labels}; export a copy of the model whose config.json has the adapter's {named} as id2label "
                    "and label2id"
                )


def _brought(adapter: Adapter) -> Mapping[str, tuple[int, ...]]:
    """The shapes of its tensors."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(adapter.folder / WEIGHTS, framework="np") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise Refused(f"{adapter.folder / WEIGHTS} cannot be read ({first_line(error)}); download it again") from error


def merge(model: Any, adapters: Sequence[Adapter], last_beside: bool = False) -> Any:
    """`model`, a PreTrainedModel in float32, with every adapter merged into its weights. Raises Refused.

    The last one stays beside them where `last_beside` says so, as PEFT runs it.
    """
    for number, adapter in enumerate(adapters, 1):
        adapted = None
        try:
            adapted = _adapt(model, adapter)
            if last_beside and number == len(adapters):
                return adapted.get_base_model()
            _separate(adapted)
            model = adapted.merge_and_unload(safe_merge=True)
        except (AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
            why = first_line(error)
            own = Refused(f"the adapter {adapter.name} cannot be merged into the weights ({why}); choose another one")
            raise refusal_of(error) or (own if adapted is not None else Refused(_other_base(adapter, why))) from error
    return model


def _adapt(model: Any, adapter: Adapter) -> Any:
    from peft import PeftModel, get_peft_model_state_dict

    brought = _brought(adapter)
    adapted = PeftModel.from_pretrained(model, str(adapter.folder), local_files_only=True)
    expected = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    foreign = sorted(set(brought) - expected - set(adapted.state_dict()))
    lacking = sorted(expected - set(brought))
    head = next(filter(None, map(adapter.brings, foreign)), None)
    if head and not any(f".{name}".endswith(f".{head}") for name, _ in model.named_modules()):
        raise Refused(
            f"the adapter {adapter.name} brings a {head}, and {type(model).__name__} has none; name the --task that it "
            "was trained for"
        )
    if foreign or lacking:
        what = f"it brings {foreign[0]}" if foreign else f"it lacks {lacking[0]}"
        raise Refused(_other_base(adapter, f"{what}, which does not fit"))
    return adapted


def _separate(adapted: Any) -> None:
    """Give every weight that an adapter's layer shares with another module storage of its own, in place.

    PEFT's layers leave the other module as it is: the decoder of tied embeddings, another copy of a layer. Merging
    adds to the values where they are, and so to both.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    named = adapted.named_parameters(remove_duplicate=False)
    # An `original_module` is what PEFT keeps of a module that it replaces.
    uses = Counter(values.data_ptr() for name, values in named if ".original_module." not in name)
    for layer in adapted.modules():
        base = getattr(layer, "base_layer", None) if isinstance(layer, BaseTunerLayer) else None
        if base is None or isinstance(base, BaseTunerLayer):
            continue
        if any(uses[values.data_ptr()] > 1 for values in base.parameters()):
            layer.base_layer = copy.deepcopy(base)


def _other_base(adapter: Adapter, why: str) -> str:
    return f"the adapter {adapter.name} does not belong to this model ({why}); export the model that it was trained on"
