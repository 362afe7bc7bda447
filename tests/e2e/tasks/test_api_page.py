"""Every payload of docs/api.md is answered, and the reply has the form that stands below it.

And what else holds for every text task, on the bundles of these tests.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

import pytest

from benchmarks.zoo.text import HEADS
from engine.backends.fake import FakeEngine
from engine.batching.feed import run_rows
from engine.tasks import task_class
from tests.pages import page

PAGE = page("docs/api.md")
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


@pytest.mark.parametrize("tag", ["text-classification", "token-classification", "fill-mask", "sparse-encoder"])
def test_a_long_list_is_answered_in_parts(zoo: Any, tag: str):
    """What a stream sends: each part like a request of its own, errors by the place in the whole."""
    served = zoo(tag, "bert").served
    texts = [f"text {number} with a [MASK]" for number in range(5)]
    task = served.task
    parts = task.split(task.parse({"texts": texts}), 2)
    assert [part.items for part in parts] == [texts[:2], texts[2:4], texts[4:]]
    assert [part.first for part in parts] == [0, 2, 4]
    (whole,) = task.split(task.parse({"text": texts[0]}), 2)
    assert whole.items == texts[:1]


@pytest.mark.parametrize("tag", HEADS)
def test_the_fake_engine_serves_every_task(zoo: Any, tag: str):
    served = zoo(tag, "bert").served
    engine = FakeEngine.from_bundle(served.bundle)
    for example in served.task.examples:
        request = served.task.parse(dict(example))
        assert served.task.postprocess(request, run_rows(engine, served.task.preprocess(request)))
