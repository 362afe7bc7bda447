"""The memory of a large export: the limit itself (`make test-large`), and whether what measures it can be believed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import large
from benchmarks.results_file import read

_TREE = """
import subprocess, sys
if len(sys.argv) == 1:
    print("before", flush=True)
    subprocess.run([sys.executable, __file__, "child"], check=True)
    print("after", flush=True)
else:
    import time
    block = bytearray(b"x") * 200_000_000
    time.sleep(0.5)
"""


@pytest.mark.large
@pytest.mark.timeout(1800)
def test_an_export_in_half_precision_takes_four_times_the_weights_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("OMP_NUM_THREADS")  # the other exports here are of tiny models
    run = large.measured(tmp_path, "fp16")
    assert run.weights > 1.2e9
    assert run.export.peak <= large.LIMIT * run.weights, run.export.stages
    assert run.bundle > run.weights / 2
    assert 0 < float(run.boot.output[-1]) < 100


def test_a_tree_of_processes_is_watched_to_its_end(tmp_path: Path):
    script = tmp_path / "tree.py"
    script.write_text(_TREE)
    found = large.watch([sys.executable, str(script)])
    assert found.output == ["before", "after"]
    assert 200e6 < found.peak < 400e6
    assert found.stages["before"] < 100e6 < found.stages["after"] == found.peak
    assert found.seconds > 0.5


def test_a_step_that_fails_says_what_it_said():
    with pytest.raises(RuntimeError, match=r"(?s)ended with 3: .*no such luck"):
        large.watch([sys.executable, "-c", "import sys; print('no such luck', file=sys.stderr); sys.exit(3)"])


def test_the_committed_figures_keep_the_limit():
    results = read(large.RESULTS)
    (export,) = [one for one in results.measurements if one.target == "export fp16"]
    assert 1 < results.ratios(export)[0] <= large.LIMIT
