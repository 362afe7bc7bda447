"""What the quick run is for: a worker that got worse is found out, and one that did not is left in peace.

Each regression is planted from outside, by a sitecustomize.py that only the worker's interpreter obeys; worker,
emulator and measurement are the real ones, on a small bundle and short.
"""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from benchmarks.__main__ import main
from benchmarks.results_file import read
from tests import bundles

pytestmark = pytest.mark.alone
REPOSITORY = Path(__file__).parents[2]
PARTS = ("load-fake", "batching", "soak")
SHORT = (
    "--rounds 4 --seconds 0.15 --idle-jobs 4 --bulk-rows 200 --soak-jobs 1000"
    # Of what is timed; a machine that runs other tests as well is noisier than a tenth.
    " --effect 0.3"
).split()

SITE = """
import sys
if sys.orig_argv[1:3] == ["-m", "handler"]:
    sys.path.insert(0, {repository!r})
    {plant}
"""

PLANTS = {
    "a sleep of 2 ms in the handler": (
        "load-fake",
        "load",
        """
    import time
    from handler.handler import Handler
    healthy = Handler._reply
    async def reply(self, *arguments):
        time.sleep(0.002)
        return await healthy(self, *arguments)
    Handler._reply = reply
""",
    ),
    "padding doubled": (
        "batching",
        "batching",
        """
    from engine.bucket import Ladder
    healthy = Ladder.fit
    Ladder.fit = lambda self, batch, length: healthy(self, batch, min(2 * length, self.largest.length))
""",
    ),
    "a batcher of one row": (
        "batching",
        "batching",
        """
    from engine.batching.batch_queue import BatchQueue
    healthy = BatchQueue.__init__
    BatchQueue.__init__ = lambda self, **limits: healthy(self, **{**limits, "max_rows": 1})
""",
    ),
    "a buffer leaked with every job": (
        "soak",
        "soak",
        """
    from handler.handler import Handler
    healthy, kept = Handler._reply, []
    async def reply(self, *arguments):
        kept.append(b"x" * 100_000)
        return await healthy(self, *arguments)
    Handler._reply = reply
""",
    ),
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token a word and rows as long as they come, so that texts are as long as the demo's model finds them."""
    config: dict[str, Any] = {
        "pooling": "mean", "dimension": 8, "max_length": 256, "normalize": True, "prompts": {}, "default_prompt": None,
    }  # fmt: skip
    words = Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = bundles.toy_tokenizer().post_processor
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundles, "toy_tokenizer", lambda: words)
        return bundles.write_small_bundle(tmp_path_factory.mktemp("quick") / "bundle", task_config=config)


@pytest.fixture(scope="module")
def healthy(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a worker without any plant."""
    out = tmp_path_factory.mktemp("quick") / "healthy.json"
    assert is_quiet(bundle, "--parts", *PARTS, "--json", out)
    return out


def run(bundle: Path, *options: object) -> int:
    return main(["quick", *SHORT, "--bundle", str(bundle), *(str(one) for one in options)])


def is_quiet(bundle: Path, *options: object) -> bool:
    """Whether a run raises no alarm, at the third attempt at the latest: other work on the machine may raise some."""
    return any(run(bundle, *options) == 0 for _ in range(3))


def test_a_second_healthy_run_raises_no_alarm(bundle: Path, healthy: Path, capsys: pytest.CaptureFixture[str]):
    assert is_quiet(bundle, "--parts", *PARTS, "--baseline", healthy), capsys.readouterr().out
    printed = capsys.readouterr().out
    assert "budgets kept" in printed
    assert "0 worse" in printed


FAILS_NOW_AND_THEN = """
    from itertools import count
    from handler.handler import Handler
    healthy, number = Handler._reply, count()
    async def reply(self, payload, *arguments):
        if "health" not in payload and next(number) % 5 == 4:
            raise RuntimeError("planted")
        return await healthy(self, payload, *arguments)
    Handler._reply = reply
"""


def test_jobs_that_fail_fail_the_run(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """What is answered is answered in time, so that no budget is exceeded."""
    site = SITE.format(repository=str(REPOSITORY), plant=FAILS_NOW_AND_THEN.strip())
    (tmp_path / "sitecustomize.py").write_text(site)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert run(bundle, "--parts", *PARTS) == 1
    printed = capsys.readouterr().out
    assert "jobs failed at ours-fake, 1 client" in printed
    for part in PARTS:
        assert f"FAILED {part}: " in printed
    assert "wrong answer: a job ended FAILED" in printed


@pytest.mark.parametrize("plant", PLANTS)
def test_budgets_and_comparison_name_what_got_worse(
    plant: str,
    bundle: Path,
    healthy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    part, scenario, code = PLANTS[plant]
    (tmp_path / "sitecustomize.py").write_text(SITE.format(repository=str(REPOSITORY), plant=code.strip()))
    for _ in range(3):
        with monkeypatch.context() as patch:
            patch.setenv("PYTHONPATH", str(tmp_path))
            assert run(bundle, "--parts", part, "--baseline", healthy, "--json", tmp_path / "planted.json") == 1
        printed = capsys.readouterr().out
        assert f"OVER BUDGET {scenario}: " in printed
        if "The floor itself is more than" not in printed:
            break
        healthy = tmp_path / "healthy.json"  # other work on the machine began or ended in between
        run(bundle, "--parts", part, "--json", healthy)
        capsys.readouterr()
    assert f"WORSE {scenario}: " in printed
    assert len(read(tmp_path / "planted.json").measurements) > 0
