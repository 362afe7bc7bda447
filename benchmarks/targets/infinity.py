"""What RunPod's worker-infinity-embedding does: the stock SDK around infinity's torch engine, 300 jobs at once.

Run as a script, in an environment of requirements/peers-infinity.txt; MODEL_FOLDER names the model, CONCURRENCY the
jobs at once.
"""

import base64
import os

import runpod
from infinity_emb import AsyncEmbeddingEngine, EngineArgs  # type: ignore[import-not-found]  # has its own environment

engine = AsyncEmbeddingEngine.from_args(
    EngineArgs(
        model_name_or_path=os.environ["MODEL_FOLDER"],
        engine="torch",
        device=os.environ.get("DEVICE", "cpu"),
        model_warmup=False,
        lengths_via_tokenize=True,
    )
)


async def handler(job):  # type: ignore[no-untyped-def]  # as that worker has it
    """Embed one text, or several; the first job starts the engine's threads."""
    await engine.astart()
    if "texts" in job["input"]:
        embeddings, _ = await engine.embed(job["input"]["texts"])
        return {"embeddings": [base64.b64encode(one.astype("<f4").tobytes()).decode() for one in embeddings]}
    embeddings, _ = await engine.embed([job["input"]["text"]])
    return {"embedding": embeddings[0].tolist()}


if __name__ == "__main__":
    concurrency = int(os.environ["CONCURRENCY"])
    runpod.serverless.start({"handler": handler, "concurrency_modifier": lambda current: concurrency})
