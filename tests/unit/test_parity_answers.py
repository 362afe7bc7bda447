"""What the gate makes of a graph that does not run."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from engine.bundle import open_bundle
from engine.tensors import Row
from export.errors import ParityFailed, Refused
from export.gate.answers import Answer, answers_of, batches_of, summary_of
from export.gate.cases import Case, sample_cases
from export.gate.limits import GateLimits
from export.gate.measures import Measure
from export.parity import Gate, _judge_together, _together
from export.precision.candidates import of_bundle
from export.precision.options import FIRST
from export.precision.trials import summed
from export.tasks import export_task


def test_every_row_is_compared_alone_and_in_company():
    cases = [Case(str(number), Row({}, length), {}) for number, length in enumerate((5, 9, 2, 7, 1, 3, 4))]
    found = [[case.row.length for case in batch] for batch in batches_of(cases)]
    assert found == [[5], [9], [2], [7], [1], [3], [4], [1, 9], [5, 2, 7], [1, 3, 4]]


def test_a_graph_that_does_not_run_is_refused(small_bundle: Path):
    file = small_bundle / "graphs/model/fp32.onnx"
    model = onnx.load(file)
    last = model.graph.node[-1]
    name = last.output[0]
    last.output[0] = "before"
    model.graph.initializer.append(numpy_helper.from_array(np.array([7, 5, 3]), "never"))
    model.graph.node.append(helper.make_node("Reshape", ["before", "never"], ["odd"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 2]), "axes"))
    model.graph.node.append(helper.make_node("ReduceSum", ["odd", "axes"], [name]))
    onnx.save(model, file)
    (candidate,) = of_bundle(open_bundle(small_bundle))
    source: Any = SimpleNamespace(model="m", architecture="Toy", task=SimpleNamespace(measures_of_all=()))
    with pytest.raises(Refused) as refused:
        list(answers_of(source, candidate, []))
    said = str(refused.value)
    assert said.startswith("the graph of m (Toy) does not run: ONNX Runtime failed at ")
    assert said.endswith("; try another --exporter")


def test_one_limit_that_is_asked_for_leaves_the_others_as_they_were():
    task = export_task("feature-extraction")

    def held(limits: GateLimits, precision: str = "int8") -> list[float]:
        return [measure.limit for group in limits.of(task, precision) for measure in group]

    assert held(GateLimits(reserve=0.1)) == pytest.approx([0.982, 0.09, 0.73])
    assert held(GateLimits({"max_relative_difference": 0.05}, 0.1)) == pytest.approx([0.982, 0.05, 0.73])
    assert held(GateLimits({FIRST: 0.9}, 0.1)) == pytest.approx([0.9, 0.09, 0.73])
    given = GateLimits({FIRST: 0.9, "max_relative_difference": 1e-4})
    assert held(given.stricter(task, "fp32"), "fp32") == pytest.approx([0.99999, 1e-4, 0.99])


def test_what_is_no_number_is_the_worst_wherever_it_stands():
    measures = [Measure("cosine", 0.9, 0.9, at_least=True), Measure("difference", 0.1, 0.1)]
    case: Any = None
    answers = [Answer(case, "graph", figures) for figures in ((1.0, 0.0), (float("nan"), float("nan")), (0.5, 0.2))]
    for order in permutations(answers):
        summary = summary_of(order, measures)
        assert np.isnan([summary["min_cosine"], summary["max_difference"]]).all()
        figures = [{"min_cosine": one.figures[0], "max_difference": one.figures[1]} for one in order]
        graphs = {str(number): figure for number, figure in enumerate(figures)}
        worst = summed({"limits": figures[0], "graphs": graphs})
        assert np.isnan(list(worst.values())).all()
    assert summary_of(answers[::2], measures) == {
        "answers": 2,
        "min_cosine": 0.5,
        "mean_cosine": 0.75,
        "max_difference": 0.2,
    }


@pytest.mark.parametrize(
    ("precision", "given", "wrong", "passes"),
    [
        ("fp16", None, 20, True),
        ("fp16", None, 24, False),  # rounded as in parity.json it is 0.02
        ("int8", None, 100, True),
        ("int8", None, 149, False),
        ("int8", 0.017, 16, True),  # and this 0.02
        ("int8", 0.017, 18, False),
    ],
)
def test_all_rows_together_are_judged_by_figures_that_are_not_rounded(
    precision: str, given: float | None, wrong: int, passes: bool
):
    """Of 1,000 characters, each heard in one frame, `wrong` are others."""
    task = export_task("automatic-speech-recognition")
    source: Any = SimpleNamespace(task=task, config=SimpleNamespace(pad_token_id=0))
    tokens = np.zeros(2000, np.int32)
    tokens[::2] = np.arange(1000) % 29 + 1
    logits = np.zeros((2000, 32), np.float32)
    logits[np.arange(2000), tokens] = 1
    tokens[: 2 * wrong : 2] = 31
    found = {"tokens": tokens}
    no_probe: Any = None
    case = Case("sound", no_probe, {"logits": logits})
    answers = [Answer(case, "graph", task.compare(source, case.expected, found), found)]
    limits = {} if given is None else {"max_character_errors": given}
    _, of_all = GateLimits(limits).of(task, precision)
    together = {"graph": _together(answers, source, of_all)}
    assert together["graph"] == {"max_character_errors": pytest.approx(wrong / 1000)}
    if passes:
        _judge_together(together, source, of_all)
    else:
        with pytest.raises(ParityFailed, match="together differ from the reference .* character errors at most"):
            _judge_together(together, source, of_all)


def test_answers_that_are_wrong_together_do_not_pass_the_gate(small_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    texts = ["the quick brown fox", "a b c", "the lazy dog"]
    cases = sample_cases(open_bundle(small_bundle), "model", [(text, {"texts": [text]}) for text in texts])
    monkeypatch.setattr("export.parity.cases_of", lambda *_: cases)
    source: Any = SimpleNamespace(task=export_task("feature-extraction"))
    gate = Gate(source, small_bundle)
    assert gate.check()["graphs"]["graphs/model/fp32.onnx"]["min_neighbours"] == 1
    compared: list[int] = []

    def compare_all(_: Any, source: Any, expected: Any, found: Any) -> list[float]:
        compared.append(len(expected))
        return [0.5]

    monkeypatch.setattr(type(source.task), "compare_all", compare_all)
    with pytest.raises(
        ParityFailed, match=r"together differ from the reference \(required: neighbours at least 0\.99\)"
    ):
        gate.check()
    assert compared == [3]  # each once, though it was answered alone and in company
