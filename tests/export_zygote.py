"""A process that has imported everything an export needs, and forks one that exports for every request.

Tests that kill exports need many of them, as processes of their own; each import would cost seconds. Nothing is
computed here before the fork, so that no library has threads yet.

A request is one line of JSON on stdin: argv, stdout and stderr (paths), and what to change in the child: `limits`
(resource.RLIMIT_... -> bytes), `set` ("module:NAME" -> value), `environ`. The answers are the child's process id, and
its exit code when it has ended (negative for a signal).
"""

from __future__ import annotations

import json
import os
import resource
import runpy
import sys
from importlib import import_module
from typing import Any

_IMPORTS = """torch transformers optimum.exporters.onnx onnx onnxruntime safetensors peft export.__main__ export.load
export.onnx_from_model export.optimize export.write export.parity export.precision.ladder export.int8.dynamic
export.int8.smooth export.command.closing_table export.tracing.dynamo rich.progress onnxruntime.quantization""".split()


def main() -> None:
    """Serve requests until stdin ends."""
    for name in _IMPORTS:
        import_module(name)
    # As in the other tests: the models are tiny, and which form of int8 is faster on one differs from run to run,
    # and a second thread wakes up too late.
    import_module("export.precision.ladder_cpu").__dict__["_STATIC_WORTH"] = float("inf")
    import_module("engine.backends.onnxruntime").__dict__["cpu_quota"] = lambda: 1
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _export(request)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _export(request: dict[str, Any]) -> None:
    for number, path in ((1, request["stdout"]), (2, request["stderr"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), number)
    os.environ.update(request.get("environ", {}))
    for name, value in request.get("set", {}).items():
        module, _, attribute = name.partition(":")
        setattr(import_module(module), attribute, value)
    for name, size in request.get("limits", {}).items():
        resource.setrlimit(getattr(resource, name), (size, size))
    sys.argv = ["export", *request["argv"]]
    code = 70
    try:
        runpy.run_module("export", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
