"""Every payload of docs/api.md is answered, and the reply has the form that stands below it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.zoo.text import HEADS
from engine.tasks import task_class

PAGE = Path("docs/api.md").read_text()
SECTIONS = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def examples(tag: str) -> list[tuple[Any, Any]]:
    """Payload and reply of a section, in pairs; none without the section, which a test below misses."""
    blocks = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", SECTIONS.get(tag, ""), re.DOTALL)]
    return list(zip(blocks[::2], blocks[1::2], strict=True))


def form(value: Any) -> Any:
    """What is compared: names of fields and kinds of values; a list by its first item, weights of tokens by none."""
    if isinstance(value, dict):
        return {name: "weights" if name == "embedding" else form(item) for name, item in value.items()}
    if isinstance(value, list):
        return [form(value[0])]
    return type(value).__name__


CASES = [(tag, payload, reply) for tag in HEADS for payload, reply in examples(tag)]


@pytest.mark.parametrize(("tag", "payload", "reply"), CASES)
def test_the_payload_is_answered_in_this_form(zoo: Any, tag: str, payload: Any, reply: Any):
    assert set(payload) == {"input"}
    found = json.loads(json.dumps(zoo(tag, "bert").served.ask(payload["input"])))
    assert form(found) == form(reply)


@pytest.mark.parametrize("tag", HEADS)
def test_every_option_is_described(zoo: Any, tag: str):
    assert examples(tag), f"docs/api.md needs a section `## {tag}` with a payload and its reply in json blocks"
    known = set(getattr(task_class(tag), "option_names", ())) - {"truncate"}
    assert known <= set(re.findall(r"`([a-z_]+)`", SECTIONS[tag]))


@pytest.mark.parametrize("tag", HEADS)
def test_the_tasks_own_examples_are_answered(zoo: Any, tag: str):
    entry = zoo(tag, "bert")
    for example in entry.served.task.examples:
        assert entry.served.ask(dict(example))
