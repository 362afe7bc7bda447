"""Every payload of docs/api.md is answered, and the reply has the form that stands below it."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
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


def alike(found: Any, shown: Any, labels: Collection[str] = ()) -> bool:
    """Whether names of fields and kinds of values are the same; of a list by its first item, of weights of tokens not.

    In place of `labels`, the model's own, the page may show others.
    """
    if isinstance(found, dict) and isinstance(shown, dict):
        if labels and set(found) <= set(labels):
            return all(alike(one, other, labels) for one in found.values() for other in shown.values())
        return set(found) == set(shown) and all(
            name == "embedding" or alike(found[name], shown[name], labels) for name in found
        )
    if isinstance(found, list) and isinstance(shown, list):
        return len(found) == len(shown) == 0 or bool(found and shown and alike(found[0], shown[0], labels))
    return type(found) is type(shown)


CASES = [(tag, payload, reply) for tag in HEADS for payload, reply in examples(tag)]


@pytest.mark.parametrize(("tag", "payload", "reply"), CASES)
def test_the_payload_is_answered_in_this_form(zoo: Any, tag: str, payload: Any, reply: Any):
    assert set(payload) == {"input"}
    served = zoo(tag, "bert").served
    found = json.loads(json.dumps(served.ask(payload["input"])))
    assert alike(found, reply, served.bundle.manifest.task_config.get("labels", ())), (found, reply)


@pytest.mark.parametrize(
    ("shown", "is_alike"),
    [
        ({"flagged": True, "labels": {"insult": 0.9}}, True),
        ({"flagged": True, "labels": {"insult": 0.9, "threat": 0.7}}, True),
        ({"flagged": True, "labels": {}}, True),
        ({"flagged": True, "labels": {"insult": "high"}}, False),
        ({"flagged": True, "labels": ["insult"]}, False),
        ({"flagged": 1, "labels": {"insult": 0.9}}, False),
        ({"flag": True, "labels": {"insult": 0.9}}, False),
        ({"flagged": True}, False),
    ],
)
def test_the_page_of_a_task_that_answers_by_label_may_show_others(shown: Any, is_alike: bool):
    """As docs/adding-a-task.md's does, over a threshold; the zoo's models have LABEL_0 and so on."""
    found = {"flagged": True, "labels": {"LABEL_0": 0.6, "LABEL_2": 0.5}}
    assert alike(found, shown, ["LABEL_0", "LABEL_1", "LABEL_2"]) == is_alike
    assert alike({"replies": [found]}, {"replies": [shown]}, ["LABEL_0", "LABEL_1", "LABEL_2"]) == is_alike
    assert not alike(found, shown)


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
