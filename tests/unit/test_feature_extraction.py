import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.bundle import open_bundle
from engine.config import Limits, Settings
from engine.errors import AnswerTooLarge, InvalidInput
from engine.tasks import load_task
from engine.tasks import payload as check
from engine.tasks.feature_extraction import FeatureExtraction
from handler.reply import encode
from tests.bundles import DIMENSION, MAX_LENGTH


@pytest.fixture
def task(small_bundle: Path) -> FeatureExtraction:
    found = load_task(open_bundle(small_bundle), Limits(max_items=100, max_chars=1000))
    assert isinstance(found, FeatureExtraction)
    return found


def test_the_pipelines_name_takes_a_text_or_a_list(task: FeatureExtraction):
    assert task.parse({"inputs": "a"}) == task.parse({"text": "a"})
    assert task.parse({"inputs": ["a", "b"], "normalize": False}) == task.parse(
        {"texts": ["a", "b"], "normalize": False}
    )


def test_typed_clients_send_null_for_the_forms_that_they_leave_open(task: FeatureExtraction):
    nulls = dict.fromkeys(("text", "texts", "inputs", "input", "openai_route", "openai_input"))
    for form in ({"text": "a"}, {"texts": ["a", "b"]}, {"inputs": "a"}, {"input": "a", "model": "m"}):
        assert task.parse(nulls | form) == task.parse(form)
    route = {"openai_route": "/v1/embeddings", "openai_input": {"input": "a", "dimensions": None}}
    assert task.parse(nulls | route) == task.parse(route)


@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        (None, "`input` must be an object, got null"),
        ("text", "`input` must be an object, got a string"),
        ({}, "needs either `text`"),
        ({"text": "a", "texts": ["b"]}, "or `texts` (a list of them), not both"),
        ({"text": ["a"]}, "`text` must be a string, got a list, which goes into `texts`"),
        ({"text": None}, "`text` must be a string, got null"),
        ({"text": None, "texts": None}, "needs either `text`"),
        ({"text": "a", "inputs": "b"}, "needs either `text`"),
        ({"inputs": 3}, "`inputs` must be a string, got a number"),
        ({"texts": "a"}, "`texts` must be a list of strings, got a string"),
        ({"texts": []}, "`texts` must hold 1 to 100 strings, got 0"),
        ({"texts": ["a"] * 101}, "`texts` must hold 1 to 100 strings, got 101"),
        ({"texts": ["a", 3]}, "`texts[1]` must be a string, got a number"),
        ({"text": "a" * 1001}, "`text` has 1001 characters, allowed are 1000"),
        ({"text": "a", "normalise": True}, "unknown field `normalise`; known are `dimensions`"),
        ({"text": "a", "timing": True}, "`truncate`, and in every job `progress`, `stream`, `timings`"),
        ({"text": "a", "normalize": float("nan")}, "`normalize` must be true or false, got a number"),
        ({"text": "a", "truncate": 1}, "`truncate` must be true or false"),
        ({"text": "a", "dimensions": float("nan")}, "`dimensions` must be a whole number from 1 to 8, got nan"),
        ({"text": "a", "dimensions": "3"}, '`dimensions` must be a whole number from 1 to 8, got "3"'),
        ({"text": "a", "dimensions": True}, "`dimensions` must be a whole number"),
        ({"text": "a", "dimensions": 9}, "`dimensions` must be a whole number from 1 to 8, got 9"),
        ({"text": "a", "encoding_format": "hex"}, "`encoding_format` must be one of float, base64, got hex"),
        ({"text": "a", "encoding_format": {}}, "`encoding_format` must be one of float, base64"),
        ({"text": "a", "prompt_name": "x"}, "`prompt_name` must be one of: document, query; got x"),
        ({"text": "a", "prompt_name": []}, "`prompt_name` must be one of: document, query; got []"),
        (
            {"openai_route": "/v1/chat/completions", "openai_input": {}},
            "the path, or `openai_route`, must be /v1/embeddings or /v1/models, got /v1/chat/completions",
        ),
        ({"openai_route": "/v1/embeddings"}, "`openai_input` must be an object, got null"),
        ({"openai_route": "/v1/embeddings", "openai_input": {}}, "a request for embeddings needs `input`, a string"),
        ({"openai_route": "/v1/embeddings", "openai_input": {"input": [1, 2]}}, "token ids are not supported"),
        ({"openai_route": "/v1/embeddings", "openai_input": {"input": "a", "n": 2}}, "unknown field `n`"),
        ({"input": "a", "text": "a"}, "unknown field `text`"),
        ({"input": [1, 2]}, "token ids are not supported (LangChain's OpenAIEmbeddings sends strings with check_emb"),
        ({"input": "a", "modality": "image"}, "`modality` must be one of text, got image"),
        ({"text": "a", "modality": "text"}, "unknown field `modality`"),
        ({"input": "a", "model": 1}, "`model` must be a string, got a number"),
    ],
)
def test_bad_input_gets_a_sentence_that_says_what_is_allowed(task: FeatureExtraction, payload: Any, sentence: str):
    with pytest.raises(InvalidInput) as error:
        task.parse(payload)
    assert sentence in str(error.value)


def answer(task: FeatureExtraction, payload: Any, vectors: Any) -> Any:
    request = task.parse(payload)
    rows = task.preprocess(request)
    assert len(rows) == len(vectors)
    return task.postprocess(request, [{"embedding": np.array(vector, np.float32)} for vector in vectors])


A, B = [3.0, 4.0, *[0.0] * 6], [0.0, 0.0, *[1.0] * 6]


def test_one_text_and_a_list_are_answered_in_kind(task: FeatureExtraction):
    single = answer(task, {"text": "the fox"}, [A])
    assert np.allclose(single["embedding"], np.array(A) / 5)
    assert single["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    several = answer(task, {"texts": ["the fox", "dog"], "normalize": False}, [A, B])
    assert np.array_equal(several["embeddings"], np.array([A, B]))
    assert several["dimensions"] == DIMENSION
    assert several["usage"]["prompt_tokens"] == 7


def test_a_shortened_vector_is_normalised_after_the_cut(task: FeatureExtraction):
    reply = answer(task, {"text": "a", "dimensions": 1}, [A])
    assert reply["dimensions"] == 1
    assert np.array_equal(reply["embedding"], [1.0])


def test_fewer_numbers_make_a_smaller_reply(task: FeatureExtraction):
    vectors = np.random.default_rng(0).standard_normal((20, 8), np.float32)
    sizes = [
        len(encode({"output": answer(task, {"texts": ["a"] * 20, "normalize": False, "dimensions": many}, vectors)}))
        for many in (8, 7, 4)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3


@pytest.mark.parametrize(
    ("changes", "ways"),
    [
        ({}, "send fewer texts at once, or ask for `encoding_format` base64, or ask for a `stream`"),
        ({"encoding_format": "base64"}, "send fewer texts at once, or ask for a `stream`"),
        ({"input": ["a"] * 20}, "send fewer texts at once, or ask for `encoding_format` base64"),
    ],
)
def test_what_runpods_queue_does_not_take_is_refused_before_it_is_computed(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], ways: str
):
    payload = {"texts": ["a"] * 20} | changes
    if "input" in payload:
        del payload["texts"]
    vectors = np.random.default_rng(0).standard_normal((20, 8), np.float32)
    tasks = {loop: load_task(open_bundle(small_bundle), Settings(worker_loop=loop)) for loop in ("events", "http")}
    queued: Any = tasks["events"]
    on_http: Any = tasks["http"]
    size = len(encode({"output": answer(queued, payload, vectors)}))
    monkeypatch.setattr("engine.tasks.payload.LARGEST_REPLY", 800)
    with pytest.raises(AnswerTooLarge, match=f"that RunPod takes; {ways}$") as error:
        queued.preprocess(queued.parse(payload))
    assert 800 < error.value.size < size
    assert len(queued.preprocess(queued.parse({**payload, "dimensions": 3}))) == 20
    for part in queued.split(queued.parse(payload), 5):
        assert len(queued.preprocess(part)) == 5
    answer(on_http, payload, vectors)


def test_a_zero_vector_stays_zero(task: FeatureExtraction):
    assert np.array_equal(answer(task, {"text": "a"}, [[0.0] * 8])["embedding"], [0.0] * 8)


def test_base64_is_little_endian_float32(task: FeatureExtraction):
    reply = answer(task, {"text": "a", "encoding_format": "base64", "normalize": False}, [A])
    assert np.array_equal(np.frombuffer(base64.b64decode(reply["embedding"]), "<f4"), A)


def test_the_openai_reply(task: FeatureExtraction):
    body = {"input": ["a", "b"], "model": "m", "user": "me", "encoding_format": "float"}
    (reply,) = answer(task, {"openai_route": "/v1/embeddings", "openai_input": body}, [A, B])
    assert (reply["object"], reply["model"], reply["usage"]["total_tokens"]) == ("list", "m", 6)
    assert [entry["index"] for entry in reply["data"]] == [0, 1]
    assert {entry["object"] for entry in reply["data"]} == {"embedding"}


def test_what_the_infinity_worker_takes_and_replies(task: FeatureExtraction):
    """https://github.com/runpod-workers/worker-infinity-embedding: the body of OpenAI's route without it, no list."""
    vector = [one / 5 for one in A]
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    for text, more in (("a", {}), (["a"], {}), ("a", {"modality": "text"})):
        reply = answer(task, {"model": "BAAI/bge-small-en-v1.5", "input": text, **more}, [A])
        reply["data"][0]["embedding"] = reply["data"][0]["embedding"].tolist()
        assert reply == {
            "object": "list",
            "model": "BAAI/bge-small-en-v1.5",
            "data": [{"object": "embedding", "index": 0, "embedding": pytest.approx(vector)}],
            "usage": usage,
        }


def test_a_long_text_is_cut_or_refused_as_asked(task: FeatureExtraction):
    text = "a " * 100
    (row,) = task.preprocess(task.parse({"text": text}))
    assert row.length == MAX_LENGTH
    with pytest.raises(
        InvalidInput, match=f"text 1 has more than {MAX_LENGTH} tokens, the most that the bundle takes; "
    ):
        task.preprocess(task.parse({"texts": ["a", text], "truncate": False}))


def test_a_prompt_is_put_before_the_text(task: FeatureExtraction):
    (plain,) = task.preprocess(task.parse({"text": "fox"}))
    (prompted,) = task.preprocess(task.parse({"text": "fox", "prompt_name": "query"}))
    (whole,) = task.preprocess(task.parse({"text": "the quick fox"}))
    assert prompted.length == whole.length == plain.length + 2
    assert np.array_equal(prompted.feeds["input_ids"], whole.feeds["input_ids"])


@pytest.mark.parametrize(
    ("prompts", "name", "prefix"),
    [
        ({}, "query", ""),
        ({}, "document", ""),
        ({"query": "q: "}, "query", "q: "),
        ({"query": "q: "}, "document", ""),
        ({"query": "q: ", "passage": ""}, "document", ""),
        ({"query": "q: ", "passage": "p: "}, "document", "`prompt_name` must be one of: passage, query; got document"),
        ({"s2p_query": "q: "}, "query", "`prompt_name` must be one of: s2p_query; got query"),
    ],
)
def test_every_model_knows_query_and_document_unless_it_names_them_otherwise(
    prompts: dict[str, str], name: str, prefix: str
):
    config = {"prompts": prompts, "default_prompt": next(iter(prompts), None)}
    try:
        found = check.prompt({"prompt_name": name}, config)
    except InvalidInput as error:
        found = str(error)
    assert found == prefix


def test_the_examples_are_valid(task: FeatureExtraction):
    for example in task.examples:
        assert task.preprocess(task.parse(example))
