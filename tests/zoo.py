"""Models of benchmarks/zoo, exported and served once a session, and transformers' pipeline on the same model."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from export.__main__ import main
from tests.exports import pipeline_task
from tests.served import Served


@dataclass
class Entry:
    """A model, its bundle behind a handler, and the pipeline."""

    pipeline_task: str
    folder: Path
    served: Served
    options: Mapping[str, Any]
    """Of the pipeline."""

    @cached_property
    def pipeline(self) -> Any:
        import transformers

        transformers.utils.logging.set_verbosity_error()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return transformers.pipeline(self.pipeline_task, model=str(self.folder), device="cpu", **self.options)

    def expect(self, *arguments: Any, **options: Any) -> Any:
        """What the pipeline answers."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.pipeline(*arguments, **options)


Zoo = Callable[..., Entry]


def exported_zoo(
    factory: pytest.TempPathFactory, make: Callable[..., tuple[Path, Sequence[str]]], **options: Any
) -> Iterator[Zoo]:
    """For a fixture: a function of a task, an architecture and what else `make` takes behind the folder for a model.

    `make` writes the model, and returns its folder and options of the export; `options` are the pipeline's.
    """
    made: dict[str, Entry] = {}

    def get(task: str, architecture: str, *more: Any, **config: Any) -> Entry:
        name = pipeline_task(task)
        key = f"{task} {architecture} {[getattr(one, '__name__', one) for one in more]} {sorted(config.items())}"
        if key not in made:
            root = factory.mktemp("zoo")
            folder, arguments = make(root / "model", task, architecture, *more, **config)
            assert main([str(folder), "--task", task, "--out", str(root / "bundle"), *arguments]) == 0
            made[key] = Entry(name, folder, Served(root / "bundle"), options)
        return made[key]

    yield get
    for entry in made.values():
        entry.served.close()
        shutil.rmtree(entry.folder.parent)
