"""Tasks on sound, answer for answer like transformers.pipeline on the same model: exported, served, asked."""

import base64
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.zoo.audio import LABELS, RATE, tiny_ast, tiny_speech
from engine.config import Limits, Settings
from engine.errors import InvalidInput
from export.__main__ import main
from tests.architectures import few
from tests.audio_files import encoded, sounds
from tests.served import Served

BY_DAY = ("wav2vec2", "wav2vec2-large", "ast")
CTC = few(["wav2vec2", "wav2vec2-large", "hubert", "unispeech"], BY_DAY)
RELATIVES = ["unispeech-sat", "wavlm"]
CLASSIFIERS = few(["wav2vec2", "wav2vec2-large", "hubert", "ast"], BY_DAY)

# WavLM's own attention mixes kinds of masks.
pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning")


class Pair:
    """A served bundle and transformers' pipeline on the same model."""

    def __init__(self, folder: Path, make: Callable[[Path], Path], *options: str) -> None:
        import transformers

        model = make(folder / "model")
        assert main([str(model), "--out", str(folder / "bundle"), *options]) == 0
        self.served = Served(folder / "bundle")
        tag = self.served.bundle.manifest.task
        self.pipeline = transformers.pipeline(tag, model=str(model), device="cpu")
        self.pipeline.call_count = -1_000_000  # it warns of being called one by one

    def close(self) -> None:
        self.served.close()


@pytest.fixture(scope="module")
def pair_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, str], Pair]]:
    """Makes each pair once: architecture and head."""
    pairs: dict[tuple[str, str], Pair] = {}

    def get(architecture: str, head: str) -> Pair:
        if (architecture, head) not in pairs:
            folder = tmp_path_factory.mktemp(architecture)
            if architecture == "ast":
                pairs[architecture, head] = Pair(folder, tiny_ast)
            else:
                length = ("--max-length", "5")
                pairs[architecture, head] = Pair(folder, lambda model: tiny_speech(model, architecture, head), *length)
        return pairs[architecture, head]

    yield get
    for pair in pairs.values():
        pair.close()


@pytest.fixture(params=CTC)
def ctc(request: pytest.FixtureRequest, pair_of: Callable[[str, str], Pair]) -> Pair:
    return pair_of(request.param, "ForCTC")


@pytest.fixture(params=CLASSIFIERS)
def classifier(request: pytest.FixtureRequest, pair_of: Callable[[str, str], Pair]) -> Pair:
    return pair_of(request.param, "ForSequenceClassification")


@pytest.fixture
def served(pair_of: Callable[[str, str], Pair]) -> Served:
    """Any speech recognition will do."""
    return pair_of("wav2vec2", "ForCTC").served


def as_json(reply: Any) -> Any:
    """Tuples as lists, which is what JSON makes of them."""
    if isinstance(reply, dict):
        return {key: as_json(value) for key, value in reply.items()}
    return [as_json(value) for value in reply] if isinstance(reply, list | tuple) else reply


# Classification


def assert_same_labels(found: Any, expected: Any) -> None:
    assert [one["label"] for one in found] == [one["label"] for one in expected]
    scores, wanted = ([one["score"] for one in reply] for reply in (found, expected))
    np.testing.assert_allclose(scores, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"function_to_apply": "sigmoid"}, {"function_to_apply": "none"}])
def test_labels_equal_the_pipelines(classifier: Pair, options: dict[str, Any]):
    for samples in sounds().values():
        expected = classifier.pipeline(samples.copy(), **options)
        # So far apart that their order means something.
        assert min(a["score"] - b["score"] for a, b in pairwise(expected)) > 1e-5
        assert_same_labels(classifier.served.ask({"audio": encoded(samples), **options}), expected)


def test_labels_of_a_batch_are_those_of_one(classifier: Pair):
    everything = [encoded(samples) for samples in sounds().values()]
    alone = [classifier.served.ask({"audio": one}) for one in everything]
    assert len({reply[0]["label"] for reply in alone} | {reply[1]["label"] for reply in alone}) > 1
    together = classifier.served.ask({"audios": everything})
    for found, expected in zip(together, alone, strict=True):
        assert_same_labels(found, expected)
    for found, expected in zip(classifier.served.ask_all([{"inputs": one} for one in everything]), alone, strict=True):
        assert_same_labels(found, expected)


# Speech recognition


@pytest.mark.parametrize("timestamps", [None, "char", "word"])
def test_text_and_timestamps_equal_the_pipelines(ctc: Pair, timestamps: str | None):
    options = {} if timestamps is None else {"return_timestamps": timestamps}
    texts = set()
    for samples in sounds().values():
        expected = as_json(ctc.pipeline(samples.copy(), **options))
        assert ctc.served.ask({"audio": encoded(samples), **options}) == expected
        texts.add(expected["text"])
    assert len(texts) == len(sounds())


@pytest.mark.parametrize("architecture", RELATIVES)
def test_relatives_answer_as_the_pipeline_does(pair_of: Callable[[str, str], Pair], architecture: str):
    pair = pair_of(architecture, "ForCTC")
    expected = [as_json(pair.pipeline(samples.copy(), return_timestamps="word")) for samples in sounds().values()]
    everything = [encoded(samples) for samples in sounds().values()]
    assert pair.served.ask({"audios": everything, "return_timestamps": "word"}) == expected


@pytest.mark.parametrize(
    "windows",
    [
        {"chunk_length_s": 1.0},
        {"chunk_length_s": 0.5, "stride_length_s": 0.1},
        {"chunk_length_s": 0.7, "stride_length_s": [0.2, 0.05]},
        {"chunk_length_s": 0.33, "stride_length_s": [0, 0.11]},
        {"chunk_length_s": 2, "stride_length_s": 0},
    ],
)
def test_long_speech_in_windows_equals_the_pipelines(ctc: Pair, windows: dict[str, Any]):
    for name in ("long", "chirp", "mixed"):
        samples = sounds()[name]
        expected = as_json(ctc.pipeline(samples.copy(), return_timestamps="word", **windows))
        found = ctc.served.ask({"audio": encoded(samples), "return_timestamps": "word", **windows})
        assert found == expected
    assert found["chunks"]


def test_text_of_a_batch_is_that_of_one(ctc: Pair):
    """Rows of other lengths beside it change nothing, whatever the model's normalisation."""
    everything = [encoded(samples) for samples in sounds().values()]
    alone = [ctc.served.ask({"audio": one, "return_timestamps": "char"}) for one in everything]
    assert ctc.served.ask({"audios": everything, "return_timestamps": "char"}) == alone
    payloads = [{"audio": one, "return_timestamps": "char"} for one in everything]
    assert ctc.served.ask_all(payloads) == alone


def test_only_tokens_leave_the_graph(ctc: Pair):
    graph = ctc.served.bundle.manifest.graphs["model"]
    assert [(spec.name, spec.dtype, spec.shape) for spec in graph.outputs] == [("tokens", "int32", ("batch", "length"))]
    assert {spec.name: spec.shape for spec in graph.inputs} == {
        "input_values": ("batch", "320*length+399"),
        "input_length": ("batch",),
    }


# Payloads


def test_a_data_uri_and_other_formats_give_the_same_text(served: Served):
    samples = sounds()["chirp"]
    expected = served.ask({"audio": encoded(samples, subtype="PCM_16")})
    for kind in ("WAV", "FLAC"):
        content = encoded(samples, kind=kind, subtype="PCM_16")
        assert served.ask({"audio": f"data:audio/{kind.lower()};base64,{content}"}) == expected


def test_another_rate_is_resampled(served: Served):
    samples = np.repeat(sounds()["tone"], 2)  # holds higher tones too, which resampling takes out
    reply = served.ask({"audio": encoded(samples, 2 * RATE), "return_timestamps": "char"})
    assert reply["chunks"][-1]["timestamp"][1] <= len(sounds()["tone"]) / RATE


@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        ({}, "needs either `audio` (base64, a data URI"),
        ({"audio": 3}, "`audio` must be base64, a data URI (`data:...;base64,...`) or an https URL, got a number"),
        ({"audios": []}, f"`audios` must hold 1 to {Settings().max_items} items, got 0"),
        ({"audio": "https://example.org/a.wav"}, "`audio`: this worker does not fetch URLs"),
        ({"audios": ["aGVsbG8gd29ybGQ="]}, "`audios[0]` is not a WAV, FLAC, Ogg or MP3 recording"),
        ({"audio": "$", "language": "en"}, "unknown field `language`; known are `audio`, `audios`, `chunk_length_s`"),
        ({"audio": "$", "return_timestamps": True}, "`return_timestamps` must be one of char, word, got True"),
        ({"audio": "$", "stride_length_s": 1}, "`stride_length_s` goes with `chunk_length_s`"),
        ({"audio": "$", "chunk_length_s": -1}, "`chunk_length_s` must be a number from 0 to 86400, got -1"),
        ({"audio": "$", "chunk_length_s": 10}, "`chunk_length_s` must be at most 5.0"),
        ({"audio": "$", "chunk_length_s": 1, "stride_length_s": 0.5}, "must be more than both sides"),
        ({"audio": "$", "chunk_length_s": 1, "stride_length_s": [1]}, "a number or a list of two, got 1"),
        ({"audio": "$", "chunk_length_s": 1, "stride_length_s": "x"}, 'must be a number from 0 to 86400, got "x"'),
        (
            {"audio": "a minute", "chunk_length_s": 1, "stride_length_s": 0.49},
            "windows that overlap so far hold `audio` more than 16 times over; lower `stride_length_s`",
        ),
        ({"audio": "six seconds"}, "`audio` lasts 6 s, the model takes 5.0"),
        ({"audio": "ten milliseconds"}, "`audio` lasts 0.01 s, the model needs at least 0.025 s"),
        ({"audio": "ten milliseconds", "chunk_length_s": 1}, "the model needs at least 0.025 s"),
    ],
)
def test_what_is_wrong_gets_a_sentence(served: Served, payload: dict[str, Any], sentence: str):
    lengths = {"$": 0.5, "six seconds": 6, "a minute": 60, "ten milliseconds": 0.01}
    if payload.get("audio") in lengths:
        silence = np.zeros(int(lengths[payload["audio"]] * RATE), np.float32)
        payload = {**payload, "audio": encoded(silence)}
    assert sentence in served.refusal(payload)


def test_limits_are_the_workers(served: Served):
    task = type(served.task).from_bundle(served.bundle, Limits(max_audio_s=0.2, max_media_bytes=1000))
    with pytest.raises(InvalidInput, match="`audio` has 8080 bytes, allowed are 1000"):
        task.preprocess(task.parse({"audio": base64.b64encode(bytes(8080)).decode()}))
    task = type(served.task).from_bundle(served.bundle, Limits(max_audio_s=0.2))
    with pytest.raises(InvalidInput, match="`audio` is longer than the 0.2 s"):
        task.preprocess(task.parse({"audio": encoded(sounds()["chirp"])}))


def test_the_examples_are_answered(served: Served, pair_of: Callable[[str, str], Pair]):
    for example in type(served.task).examples:
        assert isinstance(served.ask(example), list) == ("audios" in example)
    classes = pair_of("ast", "ForSequenceClassification").served
    for example in type(classes.task).examples:
        assert len(np.shape(classes.ask(example))) == 1 + ("audios" in example)


# The export


def test_models_that_would_see_padding_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = tiny_speech(tmp_path / "sew", "sew", "ForCTC")
    assert main([str(model), "--out", str(tmp_path / "bundle")]) == 2
    assert (
        "sew is a sew; the worker takes audio-spectrogram-transformer, data2vec-audio, hub" in capsys.readouterr().err
    )
    model = tiny_speech(tmp_path / "hubert", "hubert", "ForCTC", conv_pos_batch_norm=True)
    assert main([str(model), "--out", str(tmp_path / "bundle")]) == 2
    assert "hubert has conv_pos_batch_norm in its config.json" in capsys.readouterr().err


def test_a_length_for_spectrograms_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(tiny_ast(tmp_path / "ast")), "--out", str(tmp_path / "bundle"), "--max-length", "9"]) == 2
    assert "--max-length means nothing to a model that reads spectrograms" in capsys.readouterr().err


def test_labels_are_the_models(classifier: Pair):
    assert sorted(one["label"] for one in classifier.served.ask({"audio": encoded(sounds()["tone"])})) == sorted(LABELS)
