"""docs/adding-a-task.md, done as it says: in a copy of the project, with the files and commands that stand there."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest

from benchmarks.zoo.text import task_model
from tests.pages import page

PAGE = page("docs/adding-a-task.md")
FILES = dict(re.findall(r"^`(\S+\.py)`:\n\n```python\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL))
(COMMANDS,) = re.findall(r"^## Try it\n\n```\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL)
OTHER_INPUT = re.findall(r"^```python\n(.*?)```", PAGE.partition("## Another input")[2], re.MULTILINE | re.DOTALL)
MOST_LINES = 80


def code_lines() -> int:
    return sum(bool(line.strip()) for content in FILES.values() for line in content.splitlines())


def test_the_walk_takes_fewer_lines_than_it_promises():
    assert len(FILES) == 2
    assert code_lines() < MOST_LINES


def project_with(folder: Path, files: dict[str, str], *more: str) -> Path:
    """A copy of the project with the task of these files; a fork may have one of that name."""
    for name in ("engine", "export", "handler", *more):
        shutil.copytree(name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy("pyproject.toml", folder)
    for name, content in files.items():
        (folder / name).write_text(content)
    return folder


def run(command: str, project: Path, model: Path) -> subprocess.CompletedProcess[str]:
    words = shlex.split(command)
    environ = {"HF_HUB_OFFLINE": "1"}
    while "=" in words[0]:
        name, _, environ[name] = words.pop(0).partition("=")
    known = {"python": sys.executable, "MODEL": str(model)}
    return subprocess.run(
        [known.get(word, word) for word in words],
        cwd=project,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=120,
    )


def reply_in(answered: subprocess.CompletedProcess[str]) -> Any:
    assert answered.returncode == 0, answered.stdout + answered.stderr
    (result,) = re.findall(r"Job result: (.*)", answered.stdout)  # the SDK prints it as Python does
    return ast.literal_eval(result)["output"]


def test_the_walk(tmp_path: Path):
    project = project_with(tmp_path / "my project", FILES)
    lint = [sys.executable, "-m", "ruff", "check", *FILES]
    assert subprocess.run(lint, cwd=project, timeout=60).returncode == 0
    model = task_model(tmp_path / "model", "text-classification", "bert")
    listed, exported, answered = (run(command, project, model) for command in COMMANDS.strip().splitlines())
    assert "moderation  " in listed.stdout
    assert "Which labels of a text are over a threshold." in listed.stdout
    assert exported.returncode == 0, exported.stderr
    assert "difference at most" in exported.stdout
    reply = reply_in(answered)
    assert reply["flagged"] is True
    assert set(reply["labels"]) == {"good", "bad", "mixed", "none"}


def project_of_another_input(folder: Path) -> Path:
    """A copy of the project, with the section's parts in the classes that they belong to."""
    files = {name: changed(content, part) for (name, content), part in zip(FILES.items(), OTHER_INPUT, strict=True)}
    return project_with(folder, files)


def test_the_other_input_passes_make_types(tmp_path: Path):
    project = project_of_another_input(tmp_path / "project")
    command = [sys.executable, "-m", "mypy", *FILES]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_walk_with_another_input(tmp_path: Path):
    """What the section says; then the command that the export prints."""
    project = project_of_another_input(tmp_path / "project")
    model = task_model(tmp_path / "model", "text-classification", "bert")
    exported = run(COMMANDS.splitlines()[1], project, model)
    assert exported.returncode == 0, exported.stderr
    (command,) = re.findall(r"^next +(.*)", exported.stdout, re.MULTILINE)
    assert "review" in command
    assert set(reply_in(run(command, project, model))) == {"flagged", "labels"}


def test_what_make_test_asks_for(tmp_path: Path):
    """The first step; what looks at every task then misses no more than the figures that the third writes."""
    project = project_with(tmp_path / "project", FILES, "benchmarks", "tests", "docs")
    models = project / "benchmarks/zoo/text.py"
    text = models.read_text()
    for name, line in (
        ("HEADS: ", '"moderation": ("AutoModelForSequenceClassification", labelled("insult", "threat")),'),
        ("_PAYLOADS: ", '"moderation": {"text": _TEXT},'),
    ):
        head, end, rest = text.partition(f"\n{name}")
        text = head + end + rest.replace("{\n", "{\n    " + line + "\n", 1)
    models.write_text(text)
    names = ("unit/test_tasks_page", "e2e/test_zoo", "e2e/test_plan_rtx")
    command = [sys.executable, "-m", "pytest", "-q", "--tb=line", "-k", "has_architectures or cover or among_them"]
    command += [f"tests/{name}.py" for name in names]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    missing = set(re.findall(r"^\S+: (\w*Error.*|assert.*)$", done.stdout, re.MULTILINE))
    assert missing <= {"AssertionError: run `python -m benchmarks tasks --task TAG`"}, done.stdout


def changed(content: str, part: str) -> str:
    """`content` with the statements of `part`: names and methods are the class's, the others stand above it."""
    above: list[str] = []
    inside: list[str] = []
    replaced: set[str] = set()
    for node in ast.parse(part).body:
        if isinstance(node, ast.Assign):
            replaced |= {name.id for name in ast.walk(node.targets[0]) if isinstance(name, ast.Name)}
        is_method = isinstance(node, ast.FunctionDef) and node.args.args[0].arg == "self"
        (inside if is_method or isinstance(node, ast.Assign) else above).append(ast.unparse(node))
    head, _, rest = content.partition("class ")
    body, _, end = rest.partition("\n\n\nTASK =")
    kept = [line for line in body.splitlines() if line.partition(" = ")[0].strip() not in replaced]
    whole = "\n".join(kept) + "\n\n" + indent("\n\n".join(inside), "    ")
    return "\n".join((head, *above, f"class {whole}", f"TASK ={end}"))
