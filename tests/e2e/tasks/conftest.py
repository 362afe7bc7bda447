"""Models of the zoo on texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.zoo.text import task_model
from tests.zoo import Zoo, exported_zoo


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zoo]:
    """`zoo(task, architecture, make, **config)`; `make` changes the model that was written."""

    def written(
        folder: Path, task: str, architecture: str, make: Callable[[Path], Path] | None = None, **config: Any
    ) -> tuple[Path, tuple[()]]:
        task_model(folder, task, architecture, **config)
        return make(folder) if make else folder, ()

    yield from exported_zoo(tmp_path_factory, written)
