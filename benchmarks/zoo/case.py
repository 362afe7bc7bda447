"""A model of the zoo: what is exported, and what is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Case:
    """One task on one architecture, small: `make(folder)` writes the model."""

    task: str
    architecture: str
    make: Callable[[Path], Path]
    options: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the export's recipe that the model needs."""
    note: str = ""
    """What the small model keeps of the architecture's structure, or what its row should say."""
    refused: str = ""
    """Words of the sentence that a user gets, where no bundle can be made of it."""


@dataclass(frozen=True)
class Stages:
    """One task on a model large enough to be worth measuring, with the payload of one job of one row."""

    task: str
    model: str
    """In words, for the table."""
    make: Callable[[Path], Path]
    payload: dict[str, Any]
    why: str = ""
    """A sentence for the table, where more than a fifth of the job is outside the engine."""


def labelled(*names: str) -> dict[str, Any]:
    """What a config says of labels."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: at for at, name in enumerate(names)}}


def spread(model: Any, seed: int = 0) -> Any:
    """Biases start at zero and normalisation at one; a graph that drops them would go unseen. The generator used."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return generator
