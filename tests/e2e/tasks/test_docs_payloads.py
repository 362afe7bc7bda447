"""The payloads that the pages on sound and on tasks without a model show are answered."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.zoo.audio import tiny_ast, tiny_speech
from engine.audio.example import recording
from engine.batching.passage import Passage
from engine.batching.stats import Stats
from engine.bundle import open_bundle
from engine.config import Limits
from engine.images.examples import LANDSCAPE
from engine.tasks import load_task
from engine.tasks.api_proxy import ApiProxy
from export.__main__ import main
from handler.handler import Handler
from tests.served import Served
from tests.tls_server import TlsServer, certificate, content


def payloads(page: str, task: str, media: str = "") -> Iterator[dict[str, Any]]:
    """The inputs below the heading `task` of a page, with `media` for every `...`."""
    section = Path("docs", page).read_text().split(f"\n## {task}\n")[1].split("\n## ")[0]
    for line in section.splitlines():
        if line.startswith('    {"input": '):
            yield json.loads(line.replace('"..."', json.dumps(media)))["input"]


@pytest.mark.parametrize("task", ["audio-classification", "automatic-speech-recognition"])
def test_sound(tmp_path: Path, task: str):
    model = tmp_path / "model"
    tiny_ast(model) if task == "audio-classification" else tiny_speech(model, "hubert", "ForCTC")
    assert main([str(model), "--out", str(tmp_path / "bundle")]) == 0
    served = Served(tmp_path / "bundle")
    shown = list(payloads("audio.md", task, recording(1.2)))
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
        list(payloads("without-a-model.md", "image-transform", LANDSCAPE)),
    )
    assert (one["width"], one["height"], one["format"]) == (640, 480, "jpeg")
    assert [(reply["width"], reply["height"], reply["format"]) for reply in many] == [(64, 64, "webp")] * 2


def test_api_proxy(tmp_path: Path):
    server = TlsServer(certificate(tmp_path))
    for path in ("/items", "/status"):
        server.answers[path] = content(b'{"ok": true}', Content_Type="application/json")
    limits = Limits(fetch_hosts=(server.host,), upstream_url=server.url())
    one, many = answers(ApiProxy(limits, server.network()), list(payloads("without-a-model.md", "api-proxy")))
    server.close()
    assert [one, *many] == [{"status": 200, "json": {"ok": True}}] * 3
