"""A model that has been found and checked: what the stages after `load` work from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.command.said import first_line, quiet
from export.errors import Refused, Untraceable, refusal_of
from export.model_files.weight_files import weight_files

if TYPE_CHECKING:
    from export.model_files.adapters import Adapter
    from export.tasks.base import ExportTask

OPTIMUM, DYNAMO, TORCHSCRIPT = "optimum", "dynamo", "torchscript"
CALLED = {OPTIMUM: "optimum", DYNAMO: "torch.export", TORCHSCRIPT: "torchscript"}
"""Exporters, and what they are called in sentences."""


@dataclass(frozen=True)
class Source:
    """A model that can be exported, with everything that its files say. No weights are in memory."""

    folder: Path
    """Holds config.json, weights and tokenizer."""
    model: str
    revision: str | None
    task: ExportTask
    auto_class: str
    architecture: str
    config: Any
    """transformers' PretrainedConfig."""
    max_length: int
    weights_bytes: int
    """As float32."""
    trust_remote_code: bool
    tokenizer: Any = None
    """transformers' PreTrainedTokenizerFast; lowercases where the model's files ask for it."""
    processor: Any = None
    """transformers' image processor or feature extractor."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the task read from files of its own."""
    exporter: str = "optimum"
    """What traces it (export/exporters.py)."""
    exporter_why: str = ""
    """Why that one; empty where it is the first choice for such models."""
    other_exporter: str = ""
    """What traces the model where the first one cannot; empty where nothing does."""
    adapters: tuple[Adapter, ...] = ()
    """To be merged into the weights."""
    is_changed: bool = False
    """Whether `config` is another than config.json's: in older words, or without a stranger's weights for a part.

    See export/model_files/newer_config.py and export/model_files/backbones.py.
    """
    code: Mapping[str, str] = field(default_factory=dict)
    """Repositories that its code lies in, beside its own: name -> commit."""
    taken_out: tuple[str, ...] = ()
    """Added tokens that its tokenizer had and it has no embedding of."""
    positions: int | None = None
    """Those that it has; None where it has no limit."""

    def load_model(self, as_reference: bool = False) -> Any:
        """The model in float32 with plain attention and its adapters merged, ready to run.

        Plain attention is what the reference is defined by, and traces into the smaller graph of the two that ONNX
        Runtime fuses further. In the reference the last adapter stays beside the weights, so that the gate sees what
        merging changes. Raises Refused when weights are missing or unreadable.
        """
        import torch
        import transformers

        from export.model_files.adapters import merge, weights_alone

        brought = [name for adapter in self.adapters for name in adapter.whole]
        with quiet(), weights_alone():
            try:
                loaded = getattr(transformers, self.auto_class).from_pretrained(
                    self.folder,
                    dtype=torch.float32,
                    attn_implementation="eager",
                    use_safetensors=True,
                    trust_remote_code=self.trust_remote_code,
                    local_files_only=True,
                    output_loading_info=True,
                    # The base may have a head of its own, for other labels.
                    **({"ignore_mismatched_sizes": True} if brought else {}),
                    **({"config": self.config} if self.is_changed else {}),
                )
            except (OSError, ValueError, RuntimeError) as error:
                if refusal_of(error) is not None:  # of memory
                    raise
                raise Refused(f"{self.model} cannot be loaded: {first_line(error)}") from error
        # A model's own code may load it in a way of its own, and tell nothing.
        model, found = loaded if isinstance(loaded, tuple) else (loaded, {"missing_keys": self._missing(loaded)})
        # transformers fills missing weights with random numbers. Some are not part of the graph.
        unused = (*self.task.may_miss, *brought)
        lacking = (*found["missing_keys"], *found.get("mismatched_keys", ()))
        missing = sorted(name for name in lacking if not any(part in name for part in unused))
        if missing:
            from export.other_task import advice

            held = self.config.architectures or [self.architecture]
            if self.architecture in held:
                why = "the checkpoint does not belong to its config.json"
            else:
                why = advice(self.config, held[0], self.task)
            raise Refused(
                f"{self.model} lacks {len(missing)} weights of {self.architecture}, {missing[0]} for one; {why}"
            )
        if self.adapters:
            with quiet():
                model = merge(model, self.adapters, last_beside=as_reference)
        _ignore_switches(model)
        return model.eval()

    def _missing(self, model: Any) -> list[str]:
        """Parameters of `model` that the files have under no name, with or without a prefix."""
        stored = weight_names(self.folder)
        return [
            name
            for name, _ in model.named_parameters()
            if not any(f".{one}".endswith(f".{name}") or f".{name}".endswith(f".{one}") for one in stored)
        ]


def _ignore_switches(model: Any) -> None:
    """Undo what a config.json switches that changes no number, in place: answers as tuples, layers done in pieces.

    The gate reads answers by their names, and pieces of another size than the row's do not divide every row.
    """
    from transformers import PretrainedConfig

    for module in model.modules():
        if isinstance(config := getattr(module, "config", None), PretrainedConfig):
            config.return_dict, config.torchscript = True, False
        if getattr(module, "chunk_size_feed_forward", 0):
            module.chunk_size_feed_forward = 0


def weight_names(folder: Path) -> list[str]:
    """The names of all tensors in the safetensors files of `folder`."""
    from safetensors import safe_open

    names: list[str] = []
    for file in weight_files(folder):
        with safe_open(file, framework="np") as tensors:
            names.extend(tensors.keys())
    return names


def untraceable(source: Source, error: Exception) -> Refused:
    """What the exporter of `source` failed with, as the refusal that it amounts to."""
    if (refused := refusal_of(error)) is not None:  # of the disk or memory
        return refused
    reason = first_line(error)
    return Untraceable(
        f"{source.model} ({source.architecture}) cannot be traced by {CALLED[source.exporter]}: {reason}", reason
    )
