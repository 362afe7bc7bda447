"""A model that has been found and checked: what the stages after `load` work from."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.errors import Refused, Untraceable, refusal_of

if TYPE_CHECKING:
    from export.adapters import Adapter
    from export.tasks.base import ExportTask


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
    """Why it; empty where it simply comes first for such models."""
    other_exporter: str = ""
    """What traces it where that one cannot."""
    adapters: tuple[Adapter, ...] = ()
    """To be merged into the weights."""

    def load_model(self) -> Any:
        """The model in float32 with plain attention and its adapters merged, ready to run.

        Plain attention is what the reference is defined by, and traces into the smaller graph of the two that ONNX
        Runtime fuses further. Raises Refused when weights are missing or unreadable.
        """
        import torch
        import transformers

        with quiet():
            try:
                model, found = getattr(transformers, self.auto_class).from_pretrained(
                    self.folder,
                    dtype=torch.float32,
                    attn_implementation="eager",
                    use_safetensors=True,
                    trust_remote_code=self.trust_remote_code,
                    local_files_only=True,
                    output_loading_info=True,
                )
            except (OSError, ValueError, RuntimeError) as error:
                if refusal_of(error) is not None:  # of memory
                    raise
                raise Refused(f"{self.model} cannot be loaded: {first_line(error)}") from error
        # transformers fills missing weights with random numbers. Some are not part of the graph.
        unused = (*self.task.may_miss, *(name for adapter in self.adapters for name in adapter.whole))
        missing = sorted(name for name in found["missing_keys"] if not any(part in name for part in unused))
        if missing:
            held = self.config.architectures or [self.architecture]
            why = f"it holds a {held[0]}, so --task may be another"
            raise Refused(
                f"{self.model} lacks {len(missing)} weights of {self.architecture}, {missing[0]} for one; "
                f"{'the checkpoint does not belong to its config.json' if self.architecture in held else why}"
            )
        if self.adapters:
            from export.adapters import merge

            with quiet():
                model = merge(model, self.adapters)
        return model.eval()


def untraceable(source: Source, error: Exception) -> Refused:
    """What the exporter of `source` failed with, as the refusal that it amounts to."""
    from export.exporters import CALLED

    if (refused := refusal_of(error)) is not None:  # of the disk or memory
        return refused
    reason = first_line(error)
    return Untraceable(
        f"{source.model} ({source.architecture}) cannot be traced by {CALLED[source.exporter]}: {reason}", reason
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what transformers and optimum say beside errors off the terminal, inside the block only."""
    import torch  # noqa: F401  (without it transformers has a warning to say before the import fails)
    from optimum.utils import logging as optimum_logging
    from transformers.utils import logging as transformers_logging

    libraries = (transformers_logging, optimum_logging)
    levels, has_bars = [one.get_verbosity() for one in libraries], transformers_logging.is_progress_bar_enabled()
    for one in libraries:
        one.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # Deprecations inside the libraries and notes on tracing: nothing a user can act on. What would be wrong
            # with the result, the parity gate measures.
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(libraries, levels, strict=True):
            one.set_verbosity(level)
        if has_bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def unlogged(level: int) -> Iterator[None]:
    """Inside the block, nothing up to `level` of Python's own logging is told."""
    before = logging.root.manager.disable
    logging.disable(level)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def needing(model: str, what: str) -> Iterator[None]:
    """Make a refusal of what transformers or tokenizers raise over a file that `what` is made of, whatever that is."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of the tokenizers library
            raise
        said = f"{model} has no {what}: {first_line(error)}; its folder needs what save_pretrained writes"
        raise refusal_of(error) or Refused(said) from error


def first_line(error: BaseException) -> str:
    """What an exception of a library says, cut to one line: of weights that do not fit, the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if line.startswith("size mismatch")), lines[0])[:300]
