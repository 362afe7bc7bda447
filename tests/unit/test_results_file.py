import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu, large, models, tasks
from benchmarks.__main__ import main
from benchmarks.results_file import Measurement, Results, commit_of, environment, read, write
from benchmarks.zoo.case import Stages


def _measurement(target="ours", repeats=(100.0, 120.0), floor=None):
    return Measurement("load", target, "1 client", "jobs_per_s", "jobs/s", "higher", repeats, floor)


def test_a_file_reads_back_as_it_was_written(tmp_path):
    results = Results(
        environment(), {"seed": 0}, (_measurement(floor=("floor", "1 client", "jobs_per_s")),), {"a": [1]}
    )
    write(tmp_path / "sub" / "r.json", results)
    again = read(tmp_path / "sub" / "r.json")
    assert again.measurements == results.measurements
    assert again.details == {"a": [1]}
    assert again.environment["commit"] == results.environment["commit"]


def test_the_commit_is_named_where_there_is_git(monkeypatch: pytest.MonkeyPatch):
    """A source archive has none, nor has every machine."""
    if Path(".git").exists() and shutil.which("git"):
        assert environment()["commit"]
    monkeypatch.setenv("PATH", "/nowhere")
    assert environment()["commit"] is None


def test_ratios_are_of_the_same_round():
    ours = _measurement(repeats=(50.0, None, 90.0), floor=("floor", "1 client", "jobs_per_s"))
    results = Results({}, {}, (ours, _measurement("floor", (100.0, 100.0, 120.0))))
    assert results.ratios(ours) == (0.5, 0.75)
    assert results.ratios(_measurement()) == ()


def test_a_missing_figure_has_no_median():
    assert math.isnan(_measurement(repeats=(None, None)).median)
    assert _measurement(repeats=(None, 3.0)).median == 3.0


@pytest.mark.parametrize("text", ["[]", "{}", '{"schema_version": 99}', "no json"])
def test_another_file_is_refused_with_what_to_do(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ValueError, match="measure it anew"):
        read(tmp_path / "r.json")


_LOOP = {"target": "ours", "point": "rate 1", "offered_per_s": [1.0], "reached_per_s": [1.0]}


@pytest.mark.parametrize(
    "damage",
    [
        {"environment": None},
        {"environment": {"versions": "1.0"}},
        {"environment": {"targets": {"ours": None}}},
        {"options": None},
        {"options": []},
        {"details": None},
        {"details": {"open_loop": [{}]}},
        {"details": {"open_loop": [{**_LOOP, "target": 1}]}},
        {"details": {"open_loop": [{**_LOOP, "reached_per_s": [None]}]}},
        {"details": {"load": {"open_loop": [{**_LOOP, "offered_per_s": "1"}]}}},
        {"details": {"counts": [{"target": "ours", "point": "idle", "jobs": [1]}]}},
        {"details": {"counts": {"target": "ours"}}},
        {"details": {"knee": {}}},
        {"details": {"stages": {"ours": []}}},
        {"details": {"coldstart": {"stages": {"ours": {"warm": {"verify": [None, "x"]}}}}}},
        {"measurements": {"a": 1}},
        {"measurements": ["x"]},
        *({"measurements": [{"repeats": repeats}]} for repeats in (["a"], None, 1.0)),
        {"measurements": [{"floor": ["floor", "idle"]}]},
        {"measurements": [{"floor": "abc"}]},
        {"measurements": [{"target": None}]},
        {"measurements": [{"better": "faster"}]},
        {"measurements": [{"unknown": 1}]},
    ],
    ids=str,
)
def test_a_damaged_file_is_a_sentence(damage: dict[str, Any], tmp_path: Path):
    path = tmp_path / "r.json"
    write(path, Results({}, {}, (_measurement(),), {"open_loop": [_LOOP]}))
    whole = json.loads(path.read_text())
    if isinstance(found := damage.get("measurements"), list) and isinstance(found[0], dict):
        damage = {"measurements": [{**whole["measurements"][0], **found[0]}]}
    path.write_text(json.dumps({**whole, **damage}))
    with pytest.raises(ValueError, match=r"r\.json is not a results file of this suite \(.+\); measure it anew"):
        read(path)


@pytest.mark.parametrize("command", ["compare {0} {0}", "recommend {0} --p99-ms 50 --price-per-hour 1", "report {0}"])
def test_the_commands_name_a_damaged_file(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "r.json").write_text(
        '{"schema_version": 1, "environment": null, "options": null, "measurements": ["x"]}'
    )
    assert main(command.format(tmp_path / "r.json").split()) == 2
    assert "r.json is not a results file of this suite" in capsys.readouterr().err


def test_a_file_that_nests_too_deep_is_a_sentence(tmp_path: Path):
    (tmp_path / "r.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"r\.json is not a results file of this suite"):
        read(tmp_path / "r.json")


@pytest.mark.parametrize("text", ["{}", "[]", '{"steps": [1]}', '{"steps": {}}', "x"])
def test_damaged_steps_of_an_earlier_call_are_a_sentence(text: str, tmp_path: Path):
    (tmp_path / "gpu.json").write_text(text)
    with pytest.raises(ValueError, match=r"gpu\.json is no summary of this command; move it away"):
        gpu._earlier(tmp_path / "gpu.json", set())
    (tmp_path / "gpu.json").write_text('{"steps": [{"name": "tests"}, {"name": "plan"}]}')
    assert gpu._earlier(tmp_path / "gpu.json", {"tests"}) == [{"name": "plan"}]


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match=r"a\.json is not text in UTF-8 \(invalid start byte\); name another file"):
        read(tmp_path / "a.json")


@pytest.mark.timeout(20)
def test_a_file_without_an_end_is_not_read():
    with pytest.raises(ValueError, match="/dev/zero is not a file"):
        read(Path("/dev/zero"))


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    """A file may not grow beyond 2,000 bytes here, as on a disk that is full."""
    path, few = tmp_path / "results.json", Results({}, {}, (_measurement(),))
    write(path, few)
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from benchmarks.results_file import Results, write\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "write(Path(sys.argv[1]), Results({}, {'texts': ['a' * 5000]}, ()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert f"{path} cannot be written (File too large)" in done.stderr
    assert read(path) == few
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_written_through_and_a_device_stays_one(tmp_path):
    (tmp_path / "here.json").symlink_to(tmp_path / "there.json")
    (tmp_path / "nowhere.json").symlink_to("/dev/null")
    for name in ("here.json", "nowhere.json"):
        write(tmp_path / name, Results({}, {}, ()))
        assert (tmp_path / name).is_symlink()
    assert read(tmp_path / "there.json") == Results({}, {}, ())
    assert not Path("/dev/null").is_file()


def test_two_states_of_changed_files_are_two_versions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("code", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.py").write_text("a")
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.com"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], check=True)
    clean = commit_of("code")
    assert clean and len(clean) == 12
    (tmp_path / "other" / "a.py").write_text("b")
    assert commit_of("code") == clean
    found: list[str | None] = [clean]
    for name, text in (("a.py", "b"), ("a.py", "c"), ("new.py", "d"), ("new.py", "e")):
        (tmp_path / "code" / name).write_text(text)
        assert commit_of("code") == commit_of("code")
        found.append(commit_of("code"))
    assert len(set(found)) == 5
    assert all(one and one.startswith(f"{clean}-dirty-") for one in found[1:])


def test_rows_that_were_not_measured_anew_keep_their_environment(tmp_path, monkeypatch):
    """One file each, of which a run may renew a single row."""
    path = tmp_path / "zoo.json"
    row = {"task": "t", "refused": "no", "difference": None}
    for commit, names in (("a", "xyz"), ("b", "x"), ("b", "y"), ("c", "x")):
        monkeypatch.setattr(models, "environment", lambda commit=commit: {"commit": commit})
        models.record([{**row, "architecture": name} for name in names], path)
    found = read(path)
    assert found.environment == {"commit": "c"}
    assert found.details["earlier"] == [
        {"environment": {"commit": "b"}, "rows": ["y"]},
        {"environment": {"commit": "a"}, "rows": ["z"]},
    ]
    models.record([{**row, "architecture": name} for name in "yz"], path)
    assert read(path).details["earlier"] == []

    results = Results({}, {}, (), {"models": {}})
    for commit, task in (("a", "x"), ("b", "y")):
        monkeypatch.setattr(tasks, "environment", lambda commit=commit: {"commit": commit})
        case = Stages(task, "small", lambda root: root, {})
        results = tasks.with_stages(results, case, [{("ours", task): {"engine_us": 1.0}}], 1)
    assert results.environment == {"commit": "b"}
    assert results.details["earlier"] == [{"environment": {"commit": "a"}, "rows": ["x"]}]

    path = tmp_path / "large.json"
    watched = large.Watched(1.0, 1)
    for commit, precision in (("a", "fp32"), ("b", "fp16")):
        monkeypatch.setattr(large, "environment", lambda commit=commit: {"commit": commit})
        large.record(large.Run(precision, 1, 1, watched, watched), path)
    assert read(path).details["earlier"] == [{"environment": {"commit": "a"}, "rows": ["fp32"]}]
