"""The payloads that the pages on sound and on tasks without a model show are answered."""

import ast
import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest

import engine.tasks
from benchmarks.zoo.audio import tiny_ast, tiny_speech
from engine.audio.example import recording
from engine.batching.passage import Passage
from engine.batching.stats import Stats
from engine.bundle import open_bundle
from engine.config import Limits
from engine.images.examples import LANDSCAPE
from engine.tasks import load_task
from engine.tasks.api_proxy import ApiProxy
from export.__main__ import export, main
from export.recipe import Recipe
from handler.handler import Handler
from tests.pages import page
from tests.served import Served
from tests.tls_server import TlsServer, certificate, content

PAGE = page("docs/without-a-model.md")


def payloads(text: str, task: str, media: str = "") -> Iterator[dict[str, Any]]:
    """The inputs below the heading `task` of a page's text, with `media` for every `...`."""
    section = text.split(f"\n## {task}\n")[1].split("\n## ")[0]
    for line in section.splitlines():
        if line.startswith('    {"input": '):
            yield json.loads(line.replace('"..."', json.dumps(media)))["input"]


@pytest.mark.parametrize("task", ["audio-classification", "automatic-speech-recognition"])
def test_sound(tmp_path: Path, task: str):
    model = tmp_path / "model"
    tiny_ast(model) if task == "audio-classification" else tiny_speech(model, "hubert", "ForCTC")
    assert main([str(model), "--out", str(tmp_path / "bundle")]) == 0
    served = Served(tmp_path / "bundle")
    shown = list(payloads(page("docs/audio.md"), task, recording(1.2)))
    replies = served.ask_all(shown)
    served.close()
    assert len(shown) > 2
    for payload, reply in zip(shown, replies, strict=True):
        one = reply[0] if "audios" in payload else reply
        assert len(one) == payload.get("top_k", len(one))
        assert ("chunks" in one) == ("return_timestamps" in payload)


def answers(task: Any, shown: list[dict[str, Any]]) -> list[Any]:
    handler = Handler(task, Passage(Stats()), dict)
    return [asyncio.run(handler.handle({"id": "1", "input": payload})) for payload in shown]


def test_image_transform(tmp_path: Path):
    assert main(["--task", "image-transform", "--out", str(tmp_path / "bundle")]) == 0
    one, many = answers(
        load_task(open_bundle(tmp_path / "bundle")),
        list(payloads(PAGE, "image-transform", LANDSCAPE)),
    )
    assert (one["width"], one["height"], one["format"]) == (640, 480, "jpeg")
    assert [(reply["width"], reply["height"], reply["format"]) for reply in many] == [(64, 64, "webp")] * 2


def code_in(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)```", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def own_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The task of docs/without-a-model.md, in a bundle."""
    (code,) = code_in(PAGE)
    (name,) = re.findall(r"`engine/tasks/(\w+)\.py`:", PAGE)
    (tag,) = re.findall(r"^python -m export --task (\S+) --out bundle$", PAGE, re.MULTILINE)
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setattr(engine.tasks, "TASKS", (*engine.tasks.TASKS, tag))
    monkeypatch.setattr(engine.tasks, "__path__", [*engine.tasks.__path__, str(tmp_path)])
    export(Recipe("", tag, tmp_path / "bundle"))
    return load_task(open_bundle(tmp_path / "bundle"))


def test_a_task_of_ones_own(own_task: Any):
    """One item, a list, a stream in two parts, a mistake: none of its items has a row."""
    (job,) = re.findall(r"--test_input '(.*)'", PAGE)
    (reply,) = re.findall(r"the second answers `(.*?)`", PAGE)
    payload = json.loads(job)["input"]
    one, many, wrong = answers(own_task, [payload, {"texts": ["a b a", "c"]}, {"text": 1}])
    assert one == ast.literal_eval(reply)
    assert many == [{"a": 2, "b": 1}, {"c": 1}]
    assert wrong["error"].startswith("invalid input: `text` must be a string")
    bodies: list[bytes] = []

    async def keep(body: bytes) -> None:
        bodies.append(body)

    handler = Handler(own_task, Passage(Stats()), dict)
    asyncio.run(handler.body({"id": "1", "input": {"texts": ["a"] * 65, "stream": True, "progress": True}}, keep))
    assert [len(json.loads(body)["output"]) for body in bodies] == [64, 1]
    assert own_task.answers_in(own_task.parse({"texts": ["a"] * 65}), 0) == 65


def test_the_handler_before_answers_like_the_task_after(own_task: Any):
    before, after = code_in(page("docs/from-a-handler.md"))
    names: dict[str, Any] = {}
    exec(before.partition("runpod.serverless.start")[0], names)
    for payload in ({"text": "to be or not to be"}, {"text": "a b a", "top_k": 1}):
        assert answers(own_task, [payload]) == [names["handler"]({"input": payload})]
    undocumented = re.sub(r'^ +""".*\n', "", code_in(PAGE)[0], flags=re.MULTILINE)
    for method in after.split("\n\n\n"):
        assert indent(method.rstrip(), "    ") in undocumented


def test_api_proxy(tmp_path: Path):
    server = TlsServer(certificate(tmp_path))
    for path in ("/items", "/status"):
        server.answers[path] = content(b'{"ok": true}', Content_Type="application/json")
    limits = Limits(fetch_hosts=(server.host,), upstream_url=server.url())
    one, many = answers(ApiProxy(limits, server.network()), list(payloads(PAGE, "api-proxy")))
    server.close()
    assert [one, *many] == [{"status": 200, "json": {"ok": True}}] * 3
