"""What holds for all exports here, and the endpoint of workers."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.emulator import EmulatorThread
from export.__main__ import main
from tests import models
from tests.exports import Export, Result


@pytest.fixture(scope="session", autouse=True)
def _speed_decides_nothing() -> Iterator[None]:
    """The models are tiny: which form of int8 runs faster on one says nothing, and differs from run to run."""
    from export.precision import ladder_cpu

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ladder_cpu, "_STATIC_WORTH", float("inf"))
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small are done before a second thread has woken up; on a busy machine waiting for it takes longer."""
    import engine.backends.onnxruntime as backend

    torch = sys.modules.get(
        "torch"
    )  # where it is still to come, as in exports of their own process, it reads the variable
    before = torch.get_num_threads() if torch else 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(backend, "cpu_quota", lambda: 1)
        if torch:
            torch.set_num_threads(1)
        yield
    if torch:
        torch.set_num_threads(before)


@pytest.fixture
def emulator() -> Iterator[EmulatorThread]:
    with EmulatorThread(long_poll_s=2.0) as running:
        yield running


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.tiny_bert(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture(scope="session")
def bert_bundle(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "bert"
    assert main([str(bert), "--task", "feature-extraction", "--out", str(out)]) == 0
    return out


@pytest.fixture
def model(bert: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(bert, tmp_path / "tiny-bert"))


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Export]:
    """`main` on a model; afterwards there is a bundle or no trace of one."""
    out = tmp_path / "out" / "bundle"

    def run(model: Path | str, *options: str) -> Result:
        code = main([str(model), "--task", "feature-extraction", "--out", str(out), *options])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    yield run
    left = sorted(path.name for path in out.parent.iterdir()) if out.parent.exists() else []
    assert left in ([], ["bundle"])
