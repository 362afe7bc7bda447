"""LoRA and its relatives (PEFT): merged into the weights, so that the bundle is one plain model.

The parity gate then compares with the merged model in PyTorch. Cheap checks on JSON files come first. Rule: nothing is
unpickled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.arguments import file_path
from export.errors import Refused, refusal_of
from export.hub import Located, locate, refuse_pointer
from export.json_files import read_json
from export.said import first_line
from export.sentence_files import MODULES

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


def is_adapter(folder: Path) -> str | None:
    """The base model that the adapter in `folder` names, "" where it names none; None where there is no adapter."""
    config = read_json(folder / CONFIG)
    return str(config.get("base_model_name_or_path") or "") if config else None


def merge(model: Any, adapters: Sequence[Adapter]) -> Any:
    """`model`, a PreTrainedModel in float32, with every adapter merged into its weights. Raises Refused."""
    for adapter in adapters:
        model = _merge(model, adapter)
    return model


def _merge(model: Any, adapter: Adapter) -> Any:
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(adapter.folder / WEIGHTS, framework="np") as tensors:
            brought = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        _check_labels(model, adapter, brought)
        adapted = PeftModel.from_pretrained(model, str(adapter.folder), local_files_only=True)
        expected = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
        foreign = sorted(set(brought) - expected - set(adapted.state_dict()))
        lacking = sorted(expected - set(brought))
        if foreign or lacking:
            what = f"it brings {foreign[0]}" if foreign else f"it lacks {lacking[0]}"
            raise Refused(_other_base(adapter, f"{what}, which does not fit"))
        return adapted.merge_and_unload(safe_merge=True)
    except SafetensorError as error:
        raise Refused(f"{adapter.folder / WEIGHTS} cannot be read ({first_line(error)}); download it again") from error
    except (AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise refusal_of(error) or Refused(_other_base(adapter, first_line(error))) from error


def _check_labels(model: Any, adapter: Adapter, brought: Mapping[str, tuple[int, ...]]) -> None:
    """Raises Refused where a classifier that the adapter brings, by its tensors' shapes, has other labels than `model`.

    A base that was never a classifier's has two.
    """
    labels = model.config.num_labels
    there = {name: tuple(values.shape) for name, values in model.state_dict().items()}
    for key, shape in brought.items():
        name = key.removeprefix("base_model.model.")
        head = next((one for one in adapter.whole if f".{one}." in f".{name}"), None)
        own = there.get(name)
        if head and own and own != shape and own == (labels, *shape[1:]):
            raise Refused(
                f"the adapter {adapter.name} brings a {head} for {shape[0]} labels, and the model's config.json has "
                f"{labels}; export a copy of the model whose config.json has the adapter's {shape[0]} labels as "
                "id2label and label2id"
            )


def _other_base(adapter: Adapter, why: str) -> str:
    return f"the adapter {adapter.name} does not belong to this model ({why}); export the model that it was trained on"
