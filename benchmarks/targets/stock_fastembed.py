"""A hand-written handler without PyTorch: the stock SDK around fastembed, which runs ONNX Runtime.

Run as a script, in an environment of requirements/peers-fastembed.txt; MODEL_FOLDER names a folder with model.onnx and
the tokenizer's files, POOLING, NORMALIZE and DIMENSION say what becomes of its output, CONCURRENCY the jobs at once.
"""

import base64
import os

import runpod
from fastembed import TextEmbedding  # type: ignore[import-not-found]  # has its own environment
from fastembed.common.model_description import ModelSource, PoolingType  # type: ignore[import-not-found]

TextEmbedding.add_custom_model(
    model="model",
    pooling=PoolingType[os.environ["POOLING"].upper()],
    normalization=os.environ["NORMALIZE"] == "1",
    sources=ModelSource(hf="model"),
    dim=int(os.environ["DIMENSION"]),
    model_file="model.onnx",
)
model = TextEmbedding("model", specific_model_path=os.environ["MODEL_FOLDER"], cuda=False)


def handler(job):  # type: ignore[no-untyped-def]  # as a user would write it
    """Embed one text, or several."""
    if "texts" in job["input"]:
        vectors = model.embed(job["input"]["texts"], batch_size=32)
        return {"embeddings": [base64.b64encode(one.astype("<f4").tobytes()).decode() for one in vectors]}
    return {"embedding": next(iter(model.embed([job["input"]["text"]]))).tolist()}


if __name__ == "__main__":
    concurrency = int(os.environ["CONCURRENCY"])
    runpod.serverless.start({"handler": handler, "concurrency_modifier": lambda current: concurrency})
