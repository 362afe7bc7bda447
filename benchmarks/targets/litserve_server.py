"""sentence-transformers behind LitServe, with its dynamic batching on: up to 32 requests, waiting 10 ms for company.

Run as a script, in an environment of requirements/peers-litserve.txt: MODEL_FOLDER PORT. DEVICE is cpu or cuda: left to
itself LitServe takes a GPU that it is not shown.
"""

import base64
import os
import sys

import litserve  # type: ignore[import-not-found]  # has its own environment
from sentence_transformers import SentenceTransformer


class Embedding(litserve.LitAPI):
    """A request holds one text, or several, as a job of ours does."""

    def setup(self, device):  # type: ignore[no-untyped-def]  # as LitServe's documentation has it
        """Load the model, once in each worker process."""
        self.model = SentenceTransformer(sys.argv[1], device=device)

    def decode_request(self, request):  # type: ignore[no-untyped-def]
        """The texts of one request."""
        return request["texts"] if "texts" in request else [request["text"]]

    def batch(self, inputs):  # type: ignore[no-untyped-def]
        """Requests are of different lengths: predict joins their texts."""
        return inputs

    def predict(self, requests):  # type: ignore[no-untyped-def]
        """The vectors of each request."""
        found = iter(self.model.encode([text for texts in requests for text in texts], show_progress_bar=False))
        return [[next(found) for _ in texts] for texts in requests]

    def unbatch(self, output):  # type: ignore[no-untyped-def]
        """A result for each request."""
        return output

    def encode_response(self, vectors):  # type: ignore[no-untyped-def]
        """Numbers for one text; base64 for several, which as numbers would take longer to write than to compute."""
        if len(vectors) == 1:
            return {"embedding": vectors[0].tolist()}
        return {"embeddings": [base64.b64encode(one.astype("<f4").tobytes()).decode() for one in vectors]}


if __name__ == "__main__":
    served = Embedding(max_batch_size=32, batch_timeout=0.01)
    server = litserve.LitServer(served, accelerator=os.environ["DEVICE"], timeout=180)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", generate_client_file=False)
