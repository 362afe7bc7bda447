"""What somebody who adds a task is told where its files do not fit: docs/adding-a-task.md."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import export.tasks
from engine.bundle import Bundle, open_bundle
from engine.config import Limits, Settings
from engine.errors import BundleError, WorkerFault
from engine.tasks import load_task
from engine.tasks.feature_extraction import FeatureExtraction
from engine.tasks.items import ItemsTask, Part
from engine.tensors import Row
from engine.text.task import TextTask
from export import own_task
from export.errors import Refused
from export.gate.answers import _figures
from export.gate.cases import _reference, _rows, cases_of
from export.gate.measures import Measure
from export.gate.reply import check_reply
from export.load import load
from export.nodes import set_outputs
from export.recipe import Recipe
from export.tasks import export_task
from export.tasks.base import ExportTask, Probe
from export.tasks.feature_extraction import FeatureExtractionExport
from export.text import TextExport, prompt_of, row_tokens, run
from handler.boot import boot
from handler.reply import to_json
from handler.startup.timeline import Timeline
from tests.bundles import toy_model
from tests.models import tiny_bert


@pytest.mark.parametrize(
    ("payload", "inputs", "said"),
    [
        (
            {"review": "x"},
            [{}],
            "unknown field `review`; known are .*; let FeatureExtractionExport.probe make payloads",
        ),
        (
            {"texts": ["a", "b"]},
            [{}],
            "makes 2 rows of the probe 'odd', for which FeatureExtractionExport has 1 inputs",
        ),
    ],
)
def test_halves_that_do_not_fit_together_are_told_apart(small_bundle: Path, payload, inputs, said: str):
    task = load_task(open_bundle(small_bundle))
    with pytest.raises(Refused, match=said):
        _rows(task, Probe("odd", payload, inputs), export_task("feature-extraction"))


def test_a_task_without_probe_is_told_of_probes(small_bundle: Path):
    task = load_task(open_bundle(small_bundle))
    with pytest.raises(Refused, match="let ImageClassificationExport.probes make payloads that `parse` takes"):
        _rows(task, Probe("odd", {"review": "x"}, [{}]), export_task("image-classification"))


def test_numbers_beside_a_text_reach_pytorch_as_they_are():
    feeds = {"input_ids": np.array([1, 2], np.int32), "features": np.array([0.5, -1.25], np.float32)}
    row = row_tokens(Row(feeds, 2))
    assert row["input_ids"].tolist() == [[1, 2]]
    assert str(row["input_ids"].dtype) == "torch.int64"
    assert row["features"].tolist() == [[0.5, -1.25]]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model of texts that has prompts."""
    prompts = {"query": "Query: ", "document": ""}
    model = tiny_bert(tmp_path_factory.mktemp("bert"), prompts=prompts)
    return load(Recipe(str(model), "feature-extraction", Path()))


@pytest.mark.parametrize("tag", [tag for tag in export.tasks.TAGS if isinstance(export_task(tag), TextExport)])
def test_the_probe_of_a_task_that_is_built_on_another_is_asked(tokens: Any, tag: str):
    base: Any = type(export_task(tag))

    class Own(base):
        def probe(self, source: Any, label: str, text: str) -> Probe:
            return Probe(label, {"review": text}, [])

    pairs = {("text", "text_pair")}  # of the examples of a task that has some
    payloads = [probe.payload for probe in Own().probes(tokens)]
    assert {tuple(name for name in payload if name != "prompt_name") for payload in payloads} - pairs == {("review",)}


@pytest.mark.parametrize("options", [("prompt_name",), ()])
def test_the_probe_of_an_embedding_is_asked_once_a_prompt(
    tokens: Any, monkeypatch: pytest.MonkeyPatch, options: Sequence[str]
):
    class Own(FeatureExtractionExport):
        def probe(self, source: Any, label: str, text: str) -> Probe:
            return Probe(label, {"review": text}, [{"text": prompt_of(source) + text.lower()}])

    monkeypatch.setattr(FeatureExtraction, "option_names", options)
    text = "What is the answer?"
    expected = {
        "query": ({"review": text, "prompt_name": "query"}, [{"text": "Query: what is the answer?"}]),
        "document": ({"review": text, "prompt_name": "document"}, [{"text": "what is the answer?"}]),
    }
    asked = {probe.label: (probe.payload, probe.inputs) for probe in Own().probes(tokens) if "prompt" in probe.label}
    assert asked == {f"prompt {name}": found for name, found in expected.items() if options}


def test_a_tokenizer_that_panics_costs_its_job_alone(small_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    class PanicException(BaseException):  # pyo3's, of a thread pool that could not be made, is no Exception either
        pass

    def panic(payload: object) -> None:
        raise PanicException("ThreadPoolBuildError")

    worker = boot(Settings(bundle=small_bundle, engine="fake"), Timeline())
    monkeypatch.setattr(worker.handler._task, "parse", panic)
    reply = asyncio.run(worker.handler.handle({"id": "a", "input": {"text": "a"}}))
    worker.batcher.close()
    assert reply == {"error": "worker fault: PanicException: ThreadPoolBuildError"}


def test_a_method_that_is_missing_is_named():
    with pytest.raises(NotImplementedError, match="ItemsTask has no method `answer`, which every task must have"):
        ItemsTask(Limits()).answer("a", Part([]), [], {})
    with pytest.raises(Refused, match=r"own_task\.py: OwnTask has no method `input_axes`, which every task must have"):
        list(OwnTask().input_axes())


class OwnTask(ExportTask):
    """Of a fork."""

    tag = "own-task"
    measures = (Measure("difference", 1e-4, 0.1),)


def test_a_misspelt_name_is_told():
    class Misspelt(OwnTask):
        exportr = "text-classification"

    class Unjudged(ExportTask):
        tag = "own-task"

    class Traced(OwnTask):
        exporter = "text-clasification"

    own_task.check_class(OwnTask())
    with pytest.raises(Refused, match="Misspelt has `exportr`, which nothing asks for; did you mean `exporter`"):
        own_task.check_class(Misspelt())
    with pytest.raises(Refused, match="Unjudged has no `measures`, so that no answer could fail the gate"):
        own_task.check_class(Unjudged())
    with pytest.raises(Refused, match="which is no task of optimum; did you mean 'text-classification'"):
        own_task.check_exporter(Traced())


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        ([("embedding", "float33", ("batch", 8))], "embedding is declared as 'float33', which is no dtype of numpy's"),
        ([("embedding", "bfloat16", ("batch", 8))], "embedding is declared as 'bfloat16', which is no dtype of numpy"),
        ([("embeding", "float32", ("batch", 8))], "declares embeding, which no node makes; did you mean embedding"),
        (
            [("embedding", "int32", ("batch", 8))],
            r"declares embedding as int32 \(batch, 8\); the graph makes it float32 \(\?, 8\)",
        ),
        ([("embedding", "float32", ("batch", 7))], r"as float32 \(batch, 7\); the graph makes it float32 \(\?, 8\)"),
        ([("embedding", "float32", ("batch",))], r"as float32 \(batch\); the graph makes it float32 \(\?, 8\)"),
        ([("embedding", "float32", ("batch", "lenght"))], "with an axis of another kind: 'lenght' is no axis; known"),
        ([("embedding", "float32", (1, 8))], 'its first axis is "batch", a row of answers each'),
        ([("embedding", "float32", ("batch", 8))], ""),
        ([("embedding", "float32", ("batch", "length"))], ""),
    ],
)
def test_what_a_head_declares_has_to_be_what_the_graph_makes(outputs: Any, said: str):
    class Task(OwnTask):
        def head(self, graph: Any, source: Any) -> None:
            set_outputs(graph, outputs)

    source: Any = SimpleNamespace(task=Task())
    if not said:
        own_task.add_head(toy_model(), source)
        return
    with pytest.raises(Refused, match=r"export/tasks/own_task\.py: Task\.head.*" + said):
        own_task.add_head(toy_model(), source)


@pytest.mark.parametrize("figures", [0.5, [0.5, 0.5]])
def test_a_compare_that_returns_no_figure_for_each_measure(figures: Any):
    class Task(OwnTask):
        def compare(self, *_: Any) -> Any:
            return figures

    source: Any = SimpleNamespace(task=Task())
    with pytest.raises(Refused, match=r"Task\.compare must return 1 figures, one for each of `measures`; it returned"):
        _figures(source, {}, {})


class Replying(FeatureExtractionExport):
    def probes(self, source: Any) -> Any:
        yield Probe("first", {"text": "the quick brown fox"}, [])


def check(bundle: Path) -> None:
    source: Any = SimpleNamespace(task=Replying())
    check_reply(source, open_bundle(bundle))


def test_a_task_that_fails_on_what_the_graph_gives(small_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    check(small_bundle)
    monkeypatch.setattr("engine.vectors.OUTPUT", "embeding")
    said = (
        r"FeatureExtraction\.postprocess fails at line \d+ on what the model gives: KeyError: 'embeding'; the payload"
    )
    with pytest.raises(Refused, match=r"engine/tasks/feature_extraction\.py: " + said):
        check(small_bundle)


def test_examples_that_the_task_itself_refuses(small_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(FeatureExtraction, "examples", ({"review": "x"},))
    said = (
        r"engine/tasks/feature_extraction\.py: FeatureExtraction\.examples\[0\] is no job that the task takes: "
        r"unknown field `review`; known are .*; change it"
    )
    with pytest.raises(Refused, match=said):
        check(small_bundle)


def with_graphs(bundle: Path, *names: str) -> Bundle:
    """The bundle, as if its graph were several."""
    opened = open_bundle(bundle)
    (graph,) = opened.manifest.graphs.values()
    return replace(opened, manifest=replace(opened.manifest, graphs=dict.fromkeys(names, graph)))


def test_a_text_task_names_its_graph(small_bundle: Path):
    class Query(TextTask):
        graph = "query"

    bundle = with_graphs(small_bundle, "query", "document")
    said = "the bundle of the task feature-extraction has no graph model; let `graph` of its class .* query, document"
    with pytest.raises(BundleError, match=said):
        TextTask.from_bundle(bundle, Limits())
    task = Query.from_bundle(bundle, Limits())
    assert [row.graph for row in task.preprocess(task.parse({"texts": ["a", "b"]}))] == ["query", "query"]


class Probing(OwnTask):
    def probes(self, source: Any) -> Any:
        yield Probe("one", {"text": "the fox"}, [{}])

    def reference(self, *_: Any) -> Any:
        return {}


@pytest.mark.parametrize(
    ("graphs", "said"),
    [
        (("model",), ""),
        (
            ("model", "document"),
            "rows for the graphs model, and `graphs` are document, model; each of these needs a row",
        ),
    ],
)
def test_every_graph_is_compared_with_something(small_bundle: Path, graphs: Sequence[str], said: str):
    source: Any = SimpleNamespace(task=Probing(), load_model=lambda **_: None)
    bundle = with_graphs(small_bundle, *graphs)
    if not said:
        assert cases_of(source, bundle, [])
        return
    with pytest.raises(Refused, match=rf"own_task\.py: Probing\.probes give {said}"):
        cases_of(source, bundle, [])


@pytest.fixture(scope="module")
def model() -> Any:
    import transformers

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    return transformers.BertModel(transformers.BertConfig(vocab_size=8, **sizes)).eval()


def answered(model: Any, token: int, reference: Callable[[Any, Any], Any]) -> None:
    """The reference to a row of one token, of a task whose `reference` is this."""

    class Task(OwnTask):
        def reference(self, source: Any, model: Any, inputs: Any) -> Any:
            return reference(model, inputs)

    import torch

    source: Any = SimpleNamespace(task=Task(), model="org/name")
    with torch.inference_mode():
        _reference(source, model, {"input_ids": torch.tensor([[token]])}, "the probe 'one'")


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        (lambda model, inputs: [][0], "IndexError: list index out of range"),
        (lambda model, inputs: dict(inputs)["logit"], "KeyError: 'logit'"),
        (lambda model, inputs: run(model, inputs, "logit"), "KeyError: 'logit'"),
        (lambda model, inputs: inputs["input_ids"].reshape(3), "RuntimeError: shape .* is invalid for input of size 1"),
        (lambda model, inputs: model(**inputs)[0].numpy(force=1), "TypeError: .*must be bool"),
    ],
)
def test_a_reference_that_fails_is_not_the_models_fault(model: Any, reference: Any, said: str):
    where = r"export/tasks/own_task\.py: Task\.reference fails at line \d+ on the probe 'one': "
    with pytest.raises(Refused, match=where + said + r".*; correct it, or what makes the inputs \(input_ids\)"):
        answered(model, 1, reference)


def test_what_the_model_fails_on_is_told_as_that(model: Any):
    for reference in (lambda model, inputs: model(**inputs), lambda model, inputs: run(model, inputs, "x")):
        with pytest.raises(Refused, match="org/name fails in PyTorch on the probe 'one': index out of range in self"):
            answered(model, 99, reference)
    with pytest.raises(TypeError, match="unexpected keyword argument 'ids'"):
        answered(model, 1, lambda model, inputs: model(ids=inputs["input_ids"]))


@pytest.mark.parametrize(("value", "is_broken"), [(np.nan, True), (np.inf, True), (-np.inf, False), (1e38, False)])
def test_a_model_that_answers_with_no_numbers_is_broken(model: Any, value: float, is_broken: bool):
    answer = {"tokens": np.ones(2, np.int32), "scores": np.array([1, value], np.float32)}
    if not is_broken:
        answered(model, 1, lambda model, inputs: answer)
        return
    with pytest.raises(
        Refused, match="org/name answers NaN or infinity in PyTorch on the probe 'one': its weights are broken; downl"
    ):
        answered(model, 1, lambda model, inputs: answer)


VALUES = [
    ({"a": [1, 2.5, None, True, ("x",)]}, ""),
    ({"a": np.ones(2, np.float32), "b": np.int64(1)}, ""),
    ({"a": {"b": {1, 2}}}, "reply['a']['b'] is a set"),
    ([{1: "a"}], "reply[0] has the key 1, which is no text"),
    ({"a": [0.0, float("nan")]}, "reply['a'][1] is nan"),
    ({"a": np.array([np.inf])}, "reply['a'] holds NaN or infinity"),
    ({"a": np.array([1j])}, "reply['a'] is an array of complex128"),
    (b"bytes", "reply is a bytes"),
]


@pytest.mark.parametrize(("reply", "obstacle"), VALUES)
def test_a_reply_is_refused_where_the_worker_would_not_write_it(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch, reply: Any, obstacle: str
):
    monkeypatch.setattr(FeatureExtraction, "postprocess", lambda *_: reply)
    if not obstacle:
        to_json(reply)
        check(small_bundle)
        return
    with pytest.raises(WorkerFault):
        to_json(reply)
    with pytest.raises(Refused) as refused:
        check(small_bundle)
    assert f"FeatureExtraction.postprocess returns what JSON cannot carry: {obstacle}; give numbers" in str(
        refused.value
    )
