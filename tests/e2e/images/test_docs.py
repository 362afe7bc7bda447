"""The payloads that docs/images.md shows are answered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.zoo.images import HEADS
from tests.pages import page

PAGE = page("docs/images.md")


def payloads(task: str, image: str) -> Iterator[dict[str, Any]]:
    """The inputs below the heading `task`, with `image` for every `...`."""
    section = PAGE.split(f"\n## {task}\n")[1].split("\n## ")[0]
    for line in section.splitlines():
        if line.startswith('    {"input": '):
            yield json.loads(line.replace('"..."', json.dumps(image)))["input"]


@pytest.mark.parametrize("task", HEADS)
def test_payloads(zoo: Any, images: list[str], task: str):
    served = zoo(task, HEADS[task][1][0]).served
    shown = list(payloads(task, images[0]))
    assert len(shown) >= 2
    for payload, reply in zip(shown, served.ask_all(shown), strict=True):
        many = payload.get("images") or payload.get("texts")
        if many and isinstance(reply, list):
            assert len(reply) == len(many)
        assert reply


def test_examples(zoo: Any):
    for task, (_, architectures) in HEADS.items():
        served = zoo(task, architectures[0]).served
        served.ask_all([dict(example) for example in type(served.task).examples])
