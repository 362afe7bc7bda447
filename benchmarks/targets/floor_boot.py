"""The least that a process can do before it embeds: imports, session, tokenizer; then one text.

Run as a script: GRAPH FUSED TOKENIZER THREADS TEXT, where FUSED is 1 when ONNX Runtime optimised the graph at export.
Prints a line of JSON when it is ready, in ms by stage, and another when the text is embedded.
"""

import json
import sys
import time

begin = time.perf_counter()
import numpy as np  # noqa: E402
import onnxruntime as ort  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

imported = time.perf_counter()
graph, fused, tokenizer_file, threads, text = sys.argv[1:]
options = ort.SessionOptions()
options.intra_op_num_threads = int(threads)
options.log_severity_level = 3
if fused == "1":
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
loaded = time.perf_counter()
tokenizer = Tokenizer.from_file(tokenizer_file)
ready = time.perf_counter()
stages = {"imports": imported - begin, "session": loaded - imported, "tokenizer": ready - loaded}
print(json.dumps({name: seconds * 1e3 for name, seconds in stages.items()}), flush=True)

encoding = tokenizer.encode(text)
values = {"input_ids": encoding.ids, "attention_mask": encoding.attention_mask, "token_type_ids": encoding.type_ids}
session.run(None, {tensor.name: np.array([values[tensor.name]], np.int32) for tensor in session.get_inputs()})
print(json.dumps({"first answer": (time.perf_counter() - ready) * 1e3}), flush=True)
