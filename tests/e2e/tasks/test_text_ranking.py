"""text-ranking answers like sentence-transformers' CrossEncoder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from engine.errors import InvalidInput
from export.errors import Refused
from export.load import load
from export.recipe import Recipe
from export.tasks import export_task
from tests.architectures import FEW_ARCHITECTURES
from tests.models import edit_json, write_json
from tests.same import assert_same

TASK = "text-ranking"
QUERY = "Where does Sarah live?"
DOCUMENTS = [
    "Sarah lives in London.",
    "The quick brown fox.",
    "",
    " In 2019, 3.5 million people lived in Berlin.\n",
    "机器学习 café",
    "My brother Wolfgang works for Acme Corporation in Berlin, again and again. " * 20,
]


def ranked(folder: Path, **options: Any) -> list[dict[str, Any]]:
    from sentence_transformers import CrossEncoder

    return list(CrossEncoder(str(folder), device="cpu").rank(QUERY, DOCUMENTS, **options))


@pytest.mark.parametrize("architecture", FEW_ARCHITECTURES)
def test_order_and_scores(zoo: Any, architecture: str):
    entry = zoo(TASK, architecture)
    expected = [{"index": one["corpus_id"], "relevance_score": one["score"]} for one in ranked(entry.folder)]
    reply = entry.served.ask({"query": QUERY, "documents": DOCUMENTS})
    assert_same(reply["results"], expected)
    assert reply["usage"]["prompt_tokens"] == reply["usage"]["total_tokens"] > 100
    alone = [entry.served.ask({"query": QUERY, "documents": [one]})["results"][0] for one in DOCUMENTS]
    for result in reply["results"]:
        assert_same(alone[result["index"]]["relevance_score"], result["relevance_score"], 1e-5)


def test_options(zoo: Any):
    entry = zoo(TASK, "bert")
    whole = entry.served.ask({"query": QUERY, "documents": DOCUMENTS})["results"]
    options = {"top_n": 2, "return_documents": True}
    found = entry.served.ask({"query": QUERY, "documents": [{"text": one} for one in DOCUMENTS], **options})["results"]
    assert_same(found, [{**one, "document": DOCUMENTS[one["index"]]} for one in whole[:2]], 1e-6)
    import torch

    raw = ranked(entry.folder, activation_fn=torch.nn.Identity())
    found = entry.served.ask({"query": QUERY, "documents": DOCUMENTS, "raw_scores": True})["results"]
    assert_same([one["relevance_score"] for one in found], [one["score"] for one in raw])


def test_what_the_infinity_worker_takes(zoo: Any):
    """https://github.com/runpod-workers/worker-infinity-embedding; here the most relevant comes first."""
    entry = zoo(TASK, "bert")
    theirs = {"model": "BAAI/bge-reranker-large", "query": QUERY, "docs": DOCUMENTS, "return_docs": True}
    found = entry.served.ask(theirs)
    assert found.pop("model") == "BAAI/bge-reranker-large"
    assert_same(found, entry.served.ask({"query": QUERY, "documents": DOCUMENTS, "return_documents": True}), 1e-6)
    nulls = {"return_docs": None, "documents": None, "return_documents": None}
    assert "document" not in entry.served.ask({**theirs, **nulls})["results"][0]
    for bad, sentence in (
        ({"documents": DOCUMENTS}, "unknown field `docs`"),
        ({"model": 1}, "`model` must be a string, got a number"),
        ({"docs": ["a", 5]}, r"`docs\[1\]` must be a string, got a number"),
        ({"docs": [{"a": 1}]}, r"`docs\[0\]` must be a string or "),
    ):
        with pytest.raises(InvalidInput, match=sentence):
            entry.served.task.parse({**theirs, **bad})


def test_the_rerank_route(zoo: Any):
    """As servers with Jina's form of it answer, https://docs.vllm.ai/en/stable/serving/openai_compatible_server.html."""
    entry = zoo(TASK, "bert")
    body = {"model": "m", "query": QUERY, "documents": DOCUMENTS, "top_n": 2, "return_documents": True}
    (found,) = entry.served.ask({"openai_route": "/v1/rerank", "openai_input": body})
    expected = entry.served.ask(body)
    assert [one.pop("document") for one in found["results"]] == [
        {"text": one.pop("document")} for one in expected["results"]
    ]
    assert_same(found, expected, 1e-6)
    for bad, sentence in (
        (
            {"openai_route": "/v1/embeddings", "openai_input": body},
            "the path, or `openai_route`, must be /v1/rerank or /v1/models, got /v1/embed",
        ),
        ({"openai_route": "/v1/rerank"}, "`openai_input` must be an object, got null"),
        ({"openai_route": "/v1/rerank", "openai_input": {}}, "^a request to rerank needs `query`"),
        (
            {"openai_route": "/v1/rerank", "openai_input": {**body, "timings": True}},
            "unknown field `timings`; known are `documents`, `model`, .*`truncate`$",
        ),
    ):
        with pytest.raises(InvalidInput, match=sentence):
            entry.served.task.parse(bad)


def old_form(folder: Path) -> Path:
    """As sentence-transformers before 4 wrote it."""
    edit_json(folder / "config.json", sbert_ce_default_activation_function="torch.nn.modules.linear.Identity")
    return folder


def new_form(folder: Path) -> Path:
    """As sentence-transformers 5 writes it: another activation, a shorter length, texts in lower case."""
    import torch
    from sentence_transformers import CrossEncoder

    out = folder.parent / "saved"
    CrossEncoder(str(folder), device="cpu", activation_fn=torch.nn.Identity(), max_length=20).save(str(out))
    edit_json(out / "sentence_bert_config.json", do_lower_case=True)
    return out


def folder_of_its_own(folder: Path) -> Path:
    """The same, with everything of the Transformer below the model's folder."""
    saved, out = new_form(folder), folder.parent / "nested"
    out.mkdir()
    for name in ("modules.json", "config_sentence_transformers.json"):
        (saved / name).rename(out / name)
    saved.rename(out / "0_Transformer")
    (module,) = json.loads((out / "modules.json").read_text())
    write_json(out / "modules.json", [{**module, "path": "0_Transformer"}])
    return out


@pytest.mark.parametrize("make", [old_form, new_form, folder_of_its_own])
def test_what_the_models_files_say(zoo: Any, make: Any):
    entry = zoo(TASK, "xlm-roberta", make)
    expected = [{"index": one["corpus_id"], "relevance_score": one["score"]} for one in ranked(entry.folder)]
    assert_same(entry.served.ask({"query": QUERY, "documents": DOCUMENTS})["results"], expected)
    assert entry.served.task.config["function"] == "none"


NONE, SIGMOID = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Sigmoid"
OLD = "sbert_ce_default_activation_function"


@pytest.mark.parametrize(
    "config",
    [
        {OLD: NONE},
        {OLD: NONE, "sentence_transformers": {"version": "4.0"}},
        {OLD: NONE, "sentence_transformers": {"version": "4.0", "activation_fn": None}},
        {OLD: NONE, "sentence_transformers": {"version": "4.0", "activation_fn": SIGMOID}},
        {"sentence_transformers": {"version": "4.0", "activation_fn": "torch.nn.Identity"}},
        {"sentence_transformers": {"version": "4.0"}},
    ],
)
def test_the_activation_is_the_one_that_the_library_takes(zoo: Any, tmp_path: Path, config: dict[str, Any]):
    from sentence_transformers import CrossEncoder

    folder = Path(shutil.copytree(zoo(TASK, "bert").folder, tmp_path / "model"))
    edit_json(folder / "config.json", **config)
    theirs = type(CrossEncoder(str(folder), device="cpu").activation_fn).__name__
    settings = export_task(TASK).layout(folder, Recipe(str(folder), TASK, tmp_path)).settings
    assert settings["function"] == {"Identity": "none", "Sigmoid": "sigmoid"}[theirs]


def test_a_layer_on_the_scores_is_refused(zoo: Any, tmp_path: Path):
    """It would turn the order of documents around."""
    import torch
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Dense

    entry = zoo(TASK, "bert")
    names = {"module_input_name": "scores", "module_output_name": "scores"}
    dense = Dense(1, 1, activation_function=torch.nn.Tanh(), **names)
    CrossEncoder(modules=[*CrossEncoder(str(entry.folder), device="cpu"), dense]).save_pretrained(str(tmp_path))
    with pytest.raises(Refused, match="modules.json lists Transformer, Dense; of a CrossEncoder a bundle holds one"):
        load(Recipe(str(tmp_path), None, tmp_path / "bundle"))


@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        ({"query": "a"}, "`input` needs `query` (a string) and `documents` (a list of strings)"),
        ({"query": 1, "documents": ["a"]}, "`query` must be a string, got a number"),
        ({"query": "a", "documents": "b"}, "`documents` must be a list of strings, got a string"),
        ({"query": "a", "documents": ["b", {"txt": "c"}]}, '`documents[1]` must be a string or {"text": ...} and'),
        (
            {"query": "a", "documents": ["b"], "top_k": 1},
            "unknown field `top_k`; known are `documents`, `model`, `query`",
        ),
        ({"query": "a", "documents": ["b"], "top_n": 0}, "`top_n` must be a whole number from 1"),
        ({"query": "a", "documents": None}, "`documents` must be a list of strings, got null"),
        (
            {"query": "a", "docs": ["b", "c", "d " * 200], "truncate": False},
            "`docs[2]` with its `query` has more than 128 tokens",
        ),
    ],
)
def test_refusals(zoo: Any, payload: Any, sentence: str):
    assert zoo(TASK, "bert").served.refusal(payload).startswith(f"invalid input: {sentence}")
