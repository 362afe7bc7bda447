"""fill-mask answers like transformers' pipeline."""

from __future__ import annotations

from typing import Any

import onnx
import pytest

from benchmarks.zoo.text import ARCHITECTURES
from engine.config import Limits
from engine.errors import AnswerTooLarge, InvalidInput
from engine.tasks import load_task
from handler.reply import encode
from tests.same import assert_same

TASK = "fill-mask"


def texts(entry: Any) -> list[str]:
    mask = entry.pipeline.tokenizer.mask_token
    return [
        f"Paris is the {mask} of France.",
        f"it's {mask}, isn't it?",
        f"机器学习 {mask} café",
        f"{mask} works. " + "My brother Wolfgang works for Acme Corporation in Berlin. " * 20,
    ]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_likeliest_tokens(zoo: Any, architecture: str):
    entry = zoo(TASK, architecture)
    cut = {"tokenizer_kwargs": {"truncation": True}}
    asked = texts(entry)
    found = entry.served.ask({"texts": asked})
    assert_same(found, entry.expect(asked, **cut))
    assert_same(entry.served.ask_all([{"text": text} for text in asked]), found, 1e-5)
    assert_same(entry.served.ask({"text": asked[0], "top_k": 40}), entry.expect(asked[0], top_k=40))
    assert found[0][0]["score"] > 2 / 260  # not a uniform guess


@pytest.mark.parametrize("architecture", ["bert", "roberta", "albert", "modernbert"])
def test_several_masks(zoo: Any, architecture: str):
    entry = zoo(TASK, architecture)
    mask = entry.pipeline.tokenizer.mask_token
    text = f"Paris {mask} the {mask} of {mask}."
    assert_same(entry.served.ask({"text": text}), entry.expect(text))
    both = [f"the {mask} fox", text]
    assert_same(entry.served.ask({"texts": both, "top_k": 2}), entry.expect(both, top_k=2))


@pytest.mark.parametrize("architecture", ["bert", "roberta", "xlm-roberta"])
@pytest.mark.parametrize("targets", ["cat", ["cat", "a", "London", "quantum"], ["a", "a"]], ids=str)
def test_targets(zoo: Any, architecture: str, targets: Any):
    entry = zoo(TASK, architecture)
    text = texts(entry)[0]
    assert_same(entry.served.ask({"text": text, "targets": targets}), entry.expect(text, targets=targets))


def test_more_than_runpod_takes_is_refused_before_it_is_made(zoo: Any, monkeypatch: pytest.MonkeyPatch):
    """By what the answer would hold, about."""
    served = zoo(TASK, "bert").served
    many = {"texts": ["The [MASK] fox. " * 20] * 100, "top_k": 100}
    with pytest.raises(AnswerTooLarge, match="more than the 20.0 MB that RunPod takes; lower `top_k`") as error:
        served.task.preprocess(served.task.parse(many))
    assert 20_000_000 < error.value.size < 200_000_000
    for options in ({"top_k": 40}, {"targets": ["cat", "fox", "mat"]}):
        asked = {"texts": ["谁 the [MASK] fox.", "The [MASK], it is [MASK]!"], **options}
        size = len(encode({"output": served.ask(asked)}))
        for limit, is_made in ((size * 1.3, True), (size * 0.7, False)):
            monkeypatch.setattr("engine.tasks.fill_mask.LARGEST_REPLY", limit)
            monkeypatch.setattr("engine.tasks.payload.LARGEST_REPLY", limit)
            try:
                made = bool(served.task.preprocess(served.task.parse(asked)))
            except AnswerTooLarge:
                made = False
            assert made is is_made


def test_a_common_mask_stands_for_the_models_own(zoo: Any):
    for architecture in ("bert", "roberta"):
        entry = zoo(TASK, architecture)
        own = entry.served.ask({"text": texts(entry)[0]})
        for mask in ("<mask>", "[MASK]"):
            assert_same(entry.served.ask({"text": f"Paris is the {mask} of France."}), own, 1e-6)


def test_only_the_mask_is_projected_onto_the_vocabulary(zoo: Any):
    """Every architecture: the gather stands in front of the projection, and only the best tokens leave the graph."""
    for architecture in ARCHITECTURES:
        bundle = zoo(TASK, architecture).served.bundle
        outputs = {spec.name: spec.shape for spec in bundle.manifest.graphs["model"].outputs}
        assert outputs == {"scores": ("batch", 100), "tokens": ("batch", 100), "target_scores": ("batch", 100)}
        graph = onnx.load(bundle.file("graphs/model/fp32.onnx"), load_external_data=False).graph
        (gather,) = [node for node in graph.node if node.name == "fill/at"]
        readers = [node.op_type for node in graph.node if gather.output[0] in node.input]
        assert readers == ["MatMul"], architecture


@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        ({"text": "no mask"}, "text 0 has no [MASK] among its first 128 tokens"),
        ({"texts": ["a [MASK]", "a " * 200 + "[MASK]"]}, "text 1 has no [MASK] among its first 128 tokens"),
        ({"text": "a [MASK]", "top_k": 101}, "`top_k` must be a whole number from 1 to 100, got 101"),
        ({"text": "a [MASK]", "targets": []}, "`targets` must hold 1 to 100 strings, got 0"),
        ({"text": "a [MASK]", "targets": [""]}, "none of the `targets` is a token of the model"),
        ({"text": "a [MASK]", "target": "a"}, "unknown field `target`; known are `inputs`, `targets`"),
    ],
)
def test_refusals(zoo: Any, payload: Any, sentence: str):
    assert zoo(TASK, "bert").served.refusal(payload).startswith(f"invalid input: {sentence}")


def test_a_job_may_not_make_more_rows_than_may_wait(zoo: Any):
    task = load_task(zoo(TASK, "bert").served.bundle, Limits(max_queued_rows=10))
    assert len(task.preprocess(task.parse({"text": "[MASK] " * 10}))) == 10
    with pytest.raises(InvalidInput, match="more than 10 rows"):
        task.preprocess(task.parse({"text": "[MASK] " * 11}))
