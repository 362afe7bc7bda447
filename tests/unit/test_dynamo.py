"""The second exporter: what it makes of a module, and that it sees a graph which holds at one shape only."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from export.errors import Refused, Untraceable
from export.exporters import Exporter, choose_exporter
from export.tracing.dynamo import trace
from export.tracing.whole_model import whole_model


def source(module: Any) -> Any:
    """A source whose model is `module`, with rows of 4 and 7 tokens."""
    import torch

    rows = [{"input_ids": torch.arange(1, 1 + length)[None], "foreign": torch.ones(1)} for length in (2, 4, 4, 7)]
    task = SimpleNamespace(
        traces_itself=False,
        input_axes=lambda: {"input_ids": ("int32", ("batch", "length"))},
        probes=lambda source: [SimpleNamespace(inputs=[row]) for row in rows],
    )
    return SimpleNamespace(
        task=task, load_model=lambda: module.eval(), model="m", architecture="Module", exporter="dynamo"
    )


def graph_of(module: Any, folder: Path) -> Path:
    of = source(module)
    folder.mkdir(exist_ok=True)
    return trace(of, whole_model(of), folder / "model.onnx")


def module(answer: Any) -> Any:
    import torch

    class Model(torch.nn.Module):
        main_input_name = "input_ids"

        def __init__(self) -> None:
            super().__init__()
            self.config = SimpleNamespace(use_cache=True, model_type="own")
            self.table = torch.nn.Embedding(20, 8)
            self.calls = 0

        def forward(self, input_ids: Any) -> dict[str, Any]:
            self.calls += 1
            return {"embedding": answer(self, self.table(input_ids)), "unused": None}

    torch.manual_seed(0)
    return Model()


def ids_and_numbers(forward: Any, axes: dict[str, Any], numbers: int = 2) -> Any:
    """A source of a model without a length: an id a row, and as many numbers."""
    import torch

    class Model(torch.nn.Module):
        main_input_name = "input_ids"  # as of every PreTrainedModel that does not say otherwise

        def __init__(self) -> None:
            super().__init__()
            self.config = SimpleNamespace(use_cache=True, model_type="own")
            self.table = torch.nn.Embedding(20, 2)

    Model.forward = forward
    rows = [{"user": torch.tensor([user]), "features": torch.rand(1, numbers)} for user in (3, 7)]
    of = source(Model())
    of.task.input_axes = lambda: axes
    of.task.probes = lambda source: [SimpleNamespace(inputs=[row]) for row in rows]
    of.task.tag = "own"
    return of


AXES = {"user": ("int32", ("batch",)), "features": ("float32", ("batch", 2))}


def test_a_model_whose_rows_have_no_length_is_traced(tmp_path: Path):
    import torch
    from onnxruntime import InferenceSession

    def forward(self: Any, user: Any, features: Any) -> dict[str, Any]:
        return {"score": (self.table(user) * features).sum(-1)}

    of = ids_and_numbers(forward, AXES)
    path = trace(of, whole_model(of), tmp_path / "model.onnx")
    user, features = torch.tensor([1, 2, 5]), torch.rand(3, 2)
    (score,) = InferenceSession(path).run(["score"], {"user": user.numpy(), "features": features.numpy()})
    assert score == pytest.approx(forward(of.load_model(), user, features)["score"].detach().numpy())


def test_probes_whose_inputs_the_model_does_not_take_are_refused():
    def forward(self: Any, person: Any) -> Any:
        raise AssertionError

    of = ids_and_numbers(forward, AXES)
    with pytest.raises(Refused, match=r"export/tasks/own\.py: .*\.probes .* both name; `forward` takes person"):
        whole_model(of)


def test_tensors_cannot_meet_ours_and_nothing_of_this_machine_is_in_it(tmp_path: Path):
    traced = onnx.load(graph_of(module(lambda model, values: values.mean(1)), tmp_path / "deep"))
    assert [tensor.name for tensor in (*traced.graph.input, *traced.graph.output)] == ["input_ids", "embedding"]
    inside = {name for node in traced.graph.node for name in node.output} - {"embedding"}
    assert all(name.startswith("traced/") for name in inside)
    assert not any(node.metadata_props or node.doc_string for node in traced.graph.node)
    assert traced.opset_import[0].version == 17


def test_a_model_for_one_length_is_refused(tmp_path: Path):
    import torch

    weights = torch.ones(7 * 8, 3)
    with pytest.raises(
        Untraceable, match="m .Module. cannot be traced by torch.export: mat1 and mat2 shapes cannot be"
    ):
        graph_of(module(lambda model, values: values.flatten(1) @ weights), tmp_path)


@pytest.mark.parametrize(
    "answer",
    [
        lambda model, values: values.mean(1) * float(int(values.shape[1])),  # the length as a constant
        lambda model, values: values.sum(1) + 10 * model.calls,
    ],
)
def test_a_graph_that_answers_otherwise_is_refused(tmp_path: Path, answer: Any):
    with pytest.raises(
        Refused, match=r"traced (answers otherwise at \d x \d than where it was traced|does not run at)"
    ):
        graph_of(module(answer), tmp_path)


def test_an_operator_of_a_later_opset_is_refused(tmp_path: Path):
    import torch

    with pytest.raises(
        Refused, match="cannot be traced by torch.export: it needs Mish of ONNX's opset 18, and bundles"
    ):
        graph_of(module(lambda model, values: torch.nn.functional.mish(values).mean(1)), tmp_path)


def test_what_cannot_be_traced_is_one_sentence(tmp_path: Path):
    def by_value(model: Any, values: Any) -> Any:
        return values.mean(1) if values.sum().item() > 0 else values.sum(1)

    with pytest.raises(Untraceable, match="m .Module. cannot be traced by torch.export: ") as refused:
        graph_of(module(by_value), tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "tag", "asked", "expected"),
    [
        ("bert", "feature-extraction", "auto", Exporter("optimum", other="dynamo")),
        ("bert", "feature-extraction", "optimum", Exporter("optimum")),
        ("bert", "feature-extraction", "dynamo", Exporter("dynamo", "--exporter dynamo")),
        (
            "ernie",
            "feature-extraction",
            "auto",
            Exporter("dynamo", "optimum does not know ernie for feature-extraction"),
        ),
        ("t5", "feature-extraction", "auto", Exporter("dynamo", "optimum does not know t5 for feature-extraction")),
        ("vit", "image-classification", "auto", Exporter("torchscript", other="dynamo")),
        ("vit", "image-classification", "dynamo", Exporter("dynamo", "--exporter dynamo")),
        ("wav2vec2", "automatic-speech-recognition", "auto", Exporter("torchscript", other="dynamo")),
        ("audio-spectrogram-transformer", "audio-classification", "auto", Exporter("optimum", other="dynamo")),
    ],
)
def test_the_exporter_of_an_architecture(kind: str, tag: str, asked: str, expected: Exporter):
    assert chosen(kind, tag, asked) == expected


@pytest.mark.parametrize(
    ("kind", "tag", "asked", "sentence"),
    [
        (
            "ernie",
            "feature-extraction",
            "optimum",
            "no ONNX exporter for feature-extraction in optimum; try --exporter",
        ),
        ("bert", "feature-extraction", "torchscript", "cannot trace a bert for feature-extraction; leave it out, or"),
        ("vit", "image-classification", "optimum", "leave it out, or choose torchscript or dynamo"),
        ("t5", "text-classification", "dynamo", "it is an encoder with a decoder; export another architecture (docs/"),
        ("layoutlm", "feature-extraction", "auto", "it reads bbox, not just text; export another architecture (docs/"),
    ],
)
def test_an_exporter_that_does_not_fit_is_refused(kind: str, tag: str, asked: str, sentence: str):
    with pytest.raises(Refused) as refused:
        chosen(kind, tag, asked)
    assert sentence in str(refused.value)


def chosen(kind: str, tag: str, asked: str) -> Exporter:
    from transformers import AutoConfig

    from export.tasks import export_task

    return choose_exporter(kind, "m", export_task(tag), AutoConfig.for_model(kind), asked)
