"""The promise: a right answer to every job. Real weights, a real worker process, the real clients."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from benchmarks.emulator import EmulatorThread
from benchmarks.weights import minilm_folder
from benchmarks.worker_process import WorkerProcess
from handler.protocol import sdk
from tests.exports import exported_minilm

SCRIPTS = {
    "latin": "the of and to in is you that it he was for on are as with his they at be this have from or one had by",
    "chinese": "我们 今天 学习 中文 世界 和平 机器 语言 模型 快乐 山水 天气 非常 好",
    "arabic": "مرحبا بالعالم هذا نص قصير للاختبار اللغة العربية جميلة",
    "hebrew": "שלום עולם זה טקסט קצר לבדיקה",
    "emoji": "🙂 🚀 👩‍👩‍👧 🇩🇪 ❤️ 🧪",
}


def mixed_texts() -> list[str]:
    """200 texts of 1 to 600 words in five scripts, and what people forget: empty, blank, punctuation, one long word."""
    draw = random.Random(7)
    texts = ["", " ", "\n\t", "?!", "word", "x" * 3000, "naïve café ＡＢＣ", "a\u200bb", "😀" * 50]
    while len(texts) < 200:
        script = draw.choice(list(SCRIPTS))
        words = draw.choices(SCRIPTS[script].split(), k=draw.choice([1, 2, 5, 20, 80, 300, 600]))
        texts.append(" ".join(words))
    return texts


@pytest.fixture(scope="module")
def minilm_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """all-MiniLM-L6-v2, exported from its real weights by the README's command."""
    return exported_minilm(tmp_path_factory.mktemp("minilm"))


@pytest.fixture(scope="module")
def emulator() -> Iterator[EmulatorThread]:
    with EmulatorThread() as running:
        yield running


@pytest.fixture(scope="module")
def worker(emulator: EmulatorThread, minilm_bundle: Path) -> Iterator[WorkerProcess]:
    with WorkerProcess.ours(emulator, minilm_bundle) as running:
        yield running


@pytest.fixture(scope="module")
def endpoint(emulator: EmulatorThread, worker: WorkerProcess) -> Any:
    """RunPod's own client."""
    sdk.without_sleep()
    import runpod

    runpod.endpoint_url_base = emulator.endpoint_url_base
    return runpod.Endpoint(emulator.endpoint_id, api_key=emulator.api_key)


@pytest.fixture(scope="module")
def reference() -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(minilm_folder()), device="cpu")


def test_embeddings_equal_sentence_transformers(endpoint: Any, reference: Any):
    texts = mixed_texts()
    assert len(texts) == 200
    ours = np.array(endpoint.run_sync({"texts": texts})["embeddings"])
    theirs = reference.encode(texts, batch_size=16)
    assert ours.shape == theirs.shape == (200, 384)
    cosine = (ours * theirs).sum(axis=1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert cosine.min() >= 0.99999
    assert np.abs(ours - theirs).max() < 1e-4


def test_one_by_one_equals_all_at_once(endpoint: Any):
    texts = mixed_texts()[::20]
    together = np.array(endpoint.run_sync({"texts": texts})["embeddings"])
    alone = np.array([endpoint.run_sync({"text": text})["embedding"] for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_the_openai_client(emulator: EmulatorThread, endpoint: Any, reference: Any):
    base_url = f"{emulator.endpoint_url_base}/{emulator.endpoint_id}/openai/v1"
    with openai.OpenAI(base_url=base_url, api_key=emulator.api_key, max_retries=0) as client:
        texts = ["The cat sits on the mat.", "混合的文本 🙂"]
        # Without an encoding_format the client asks for base64 and decodes it.
        for chosen in (openai.omit, "float"):
            reply = client.embeddings.create(model="all-MiniLM-L6-v2", input=texts, encoding_format=chosen)
            vectors = np.array([entry.embedding for entry in reply.data])
            np.testing.assert_allclose(vectors, reference.encode(texts), atol=1e-4)
            assert [entry.index for entry in reply.data] == [0, 1]
            assert reply.usage.prompt_tokens == reply.usage.total_tokens > 10
            assert reply.model == "all-MiniLM-L6-v2"
        short = client.embeddings.create(model="m", input="one text", dimensions=64)
        assert np.linalg.norm(short.data[0].embedding) == pytest.approx(1, abs=1e-5)
        assert len(short.data[0].embedding) == 64
        with pytest.raises(openai.APIStatusError) as refused:
            client.embeddings.create(model="m", input=[1, 2, 3])
        (model,) = client.models.list().data
        assert (model.id, model.object) == (endpoint.run_sync({"health": True})["model"], "model")
        assert "token ids are not supported" in refused.value.response.text


def test_the_clients_other_calls(endpoint: Any):
    job = endpoint.run({"text": "a"})
    assert len(job.output(timeout=30)["embedding"]) == 384
    assert job.status() == "COMPLETED"
    assert endpoint.health()["jobs"]["completed"] >= 1
