"""docs/adding-a-task.md, done as it says: in a copy of the project, with the files and commands that stand there."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.zoo.text import task_model

PAGE = Path("docs/adding-a-task.md").read_text()
FILES = dict(re.findall(r"^`(\S+\.py)`:\n\n```python\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL))
(COMMANDS,) = re.findall(r"^## Try it\n\n```\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL)
MOST_LINES = 80


def code_lines() -> int:
    return sum(bool(line.strip()) for content in FILES.values() for line in content.splitlines())


def test_the_walk_takes_fewer_lines_than_it_promises():
    assert len(FILES) == 2
    assert code_lines() < MOST_LINES


def test_the_other_input_lacks_no_name(tmp_path: Path):
    """Its two parts, behind the files that they belong to."""
    _, _, section = PAGE.partition("## Another input")
    parts = re.findall(r"^```python\n(.*?)```", section, re.MULTILINE | re.DOTALL)
    for part, (name, content) in zip(parts, FILES.items(), strict=True):
        (tmp_path / Path(name).name).write_text(content + part)
        command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout


def test_the_walk(tmp_path: Path):
    project = tmp_path / "project"
    for name in ("engine", "export", "handler"):
        shutil.copytree(name, project / name)
    shutil.copy("pyproject.toml", project)
    for name, content in FILES.items():
        assert not Path(name).exists()
        (project / name).write_text(content)
    lint = [sys.executable, "-m", "ruff", "check", *FILES]
    assert subprocess.run(lint, cwd=project, timeout=60).returncode == 0
    model = task_model(tmp_path / "model", "text-classification", "bert")
    listed, exported, answered = (
        subprocess.run(
            re.sub(r"\bpython\b", sys.executable, command.replace("MODEL", str(model))),
            shell=True,
            cwd=project,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        for command in COMMANDS.strip().splitlines()
    )
    assert "moderation  " in listed.stdout
    assert "Which labels of a text are over a threshold." in listed.stdout
    assert exported.returncode == 0, exported.stderr
    assert "difference at most" in exported.stdout
    assert answered.returncode == 0, answered.stdout + answered.stderr
    (result,) = re.findall(r"Job result: (.*)", answered.stdout)  # the SDK prints it as Python does
    reply = ast.literal_eval(result)["output"]
    assert reply["flagged"] is True
    assert set(reply["labels"]) == {"good", "bad", "mixed", "none"}
