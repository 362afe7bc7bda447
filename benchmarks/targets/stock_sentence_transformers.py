"""What a fork of RunPod's worker template becomes: the stock SDK around sentence-transformers.

Run as a script; MODEL_FOLDER names the model, CONCURRENCY the jobs at once.
"""

import base64
import os

import runpod
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(os.environ["MODEL_FOLDER"], device=os.environ.get("DEVICE", "cpu"))


def handler(job):  # type: ignore[no-untyped-def]  # as a user would write it
    """Embed one text, or several."""
    if "texts" in job["input"]:
        vectors = model.encode(job["input"]["texts"], show_progress_bar=False)
        return {"embeddings": [base64.b64encode(one.astype("<f4").tobytes()).decode() for one in vectors]}
    return {"embedding": model.encode([job["input"]["text"]], show_progress_bar=False)[0].tolist()}


if __name__ == "__main__":
    concurrency = int(os.environ["CONCURRENCY"])
    runpod.serverless.start({"handler": handler, "concurrency_modifier": lambda current: concurrency})
