"""The benchmark's encoder is BERT: transformers' own model answers the same with the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from benchmarks.bert_bundle import bert_bundle
from benchmarks.bert_graph import INPUTS, SHAPES, Shape, bert_graph, weights_of
from benchmarks.throughput import _torch as torch_of

TINY = Shape(2, 32, 4, 64, vocab_size=50, max_position_embeddings=24)


def test_the_graph_answers_like_transformers_bert_model():
    import torch
    import transformers

    weights = {name: values * 10 for name, values in weights_of(TINY).items()}  # so that attention is far from even
    model = transformers.BertModel(
        transformers.BertConfig(**vars(TINY), attn_implementation="eager"), add_pooling_layer=False
    ).eval()
    left = model.load_state_dict({name: torch.from_numpy(values) for name, values in weights.items()}, strict=False)
    assert not left.unexpected_keys
    assert not [name for name in left.missing_keys if "position_ids" not in name]

    rng = np.random.default_rng(0)
    ids, types = rng.integers(0, 50, (3, 24)), rng.integers(0, 2, (3, 24))
    mask = np.arange(24) < np.array([[24], [7], [1]])
    feeds = dict(zip(INPUTS, (values.astype(np.int32) for values in (ids, mask, types)), strict=True))
    graph = bert_graph(TINY, weights)
    onnx.checker.check_model(graph, full_check=True)
    (found,) = ort.InferenceSession(graph.SerializeToString()).run(None, feeds)

    with torch.inference_mode():
        vectors = model(**{name: torch.from_numpy(values.astype(np.int64)) for name, values in feeds.items()})[
            0
        ].numpy()
    expected = (vectors * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    assert np.abs(expected).max() > 0.1


@pytest.mark.parametrize(("name", "millions"), [("minilm", 22.6), ("bert-base", 108.9), ("bert-large", 334.1)])
def test_the_shapes_have_the_published_number_of_parameters(name: str, millions: float):
    """Of the published models without BERT's pooler, which an embedding does not need."""
    from benchmarks.bert_graph import _dims

    assert sum(np.prod(dims) for _, dims in _dims(SHAPES[name])) / 1e6 == pytest.approx(millions, abs=0.1)


def test_throughput_compares_its_bundle_with_pytorch_at_the_same_shape(tmp_path: Path):
    bundle = bert_bundle("tiny", tmp_path / "bundle", TINY)
    (command,) = torch_of(bundle, "python", "tensorrt", ["fp16"]).values()
    assert json.loads(command[-1])["shape"] == vars(TINY)
