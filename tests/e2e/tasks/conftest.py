"""Models of the zoo, exported and served once a session, and what they are compared with."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from benchmarks.zoo.text import task_model
from export.__main__ import main
from tests.exports import pipeline_task
from tests.served import Served


@dataclass
class Entry:
    """A model, its bundle behind a handler, and transformers' pipeline on the same model."""

    pipeline_task: str
    folder: Path
    served: Served

    @cached_property
    def pipeline(self) -> Any:
        import transformers

        transformers.utils.logging.set_verbosity_error()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return transformers.pipeline(
                self.pipeline_task, model=str(self.folder), tokenizer=str(self.folder), device="cpu"
            )

    def expect(self, *arguments: Any, **options: Any) -> Any:
        """What the pipeline answers."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.pipeline(*arguments, **options)


Zoo = Callable[..., Entry]


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zoo]:
    """`zoo(task, architecture, **config)`."""
    made: dict[str, Entry] = {}

    def get(task: str, architecture: str, make: Callable[[Path], Path] | None = None, **config: Any) -> Entry:
        pipeline = pipeline_task(task)
        key = f"{task} {architecture} {sorted(config.items())} {make and make.__name__}"
        if key not in made:
            root = tmp_path_factory.mktemp("zoo")
            folder = task_model(root / "model", task, architecture, **config)
            folder = make(folder) if make else folder
            assert main([str(folder), "--task", task, "--out", str(root / "bundle")]) == 0
            made[key] = Entry(pipeline, folder, Served(root / "bundle"))
        return made[key]

    yield get
    for entry in made.values():
        entry.served.close()
        shutil.rmtree(entry.folder.parent)
