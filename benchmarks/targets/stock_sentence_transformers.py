"""What a fork of RunPod's worker template becomes: the stock SDK around sentence-transformers.

Run as a script; MODEL_FOLDER names the model, CONCURRENCY the jobs at once.
"""

import os

import runpod
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(os.environ["MODEL_FOLDER"], device="cpu")


def handler(job):  # type: ignore[no-untyped-def]  # as a user would write it
    """Embed one text."""
    return {"embedding": model.encode([job["input"]["text"]])[0].tolist()}


if __name__ == "__main__":
    concurrency = int(os.environ["CONCURRENCY"])
    runpod.serverless.start({"handler": handler, "concurrency_modifier": lambda current: concurrency})
