"""From what a handler returns or raises to the body that RunPod gets. Rule: pure; the only place that converts numpy.

The rules are the stock SDK's (its run_job) unless a line says otherwise.
"""

from __future__ import annotations

import json
import math
import sys
import traceback
from typing import Any

import orjson

from engine.errors import WorkerError, WorkerFault, in_words

ERROR = b'{"error":'
"""How the body of a job that failed begins, and no other does."""
_CARRIED = frozenset((str, int, bool, type(None)))  # whatever their value


def to_json(value: Any) -> Any:
    """`value` with numpy arrays and scalars as lists and numbers.

    Raises WorkerFault for anything that JSON cannot carry, NaN and infinity included: Python would write them as
    words that no other reader takes.
    """
    if isinstance(value, dict):
        return {_key(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    refuse_no_json(value)
    return value.tolist() if _is_numpy(value) else value


def _is_numpy(value: Any) -> bool:
    # Where numpy was never imported nothing is an array; the process of the job loop lives without it.
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic))


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise WorkerFault(f"the answer has the key {key!r}; keys must be strings")
    return key


def body_of_json(value: Any) -> dict[str, Any]:
    """The body for a task's reply: values of JSON's own, or arrays that `encode` takes.

    A dict with "error" fails the job; "refresh_worker" asks RunPod to stop the worker after it.
    """
    if not isinstance(value, dict):
        return {"output": value}
    if "error" not in value and "refresh_worker" not in value:
        return {"output": value}
    value = dict(value)  # a task may answer with one object again and again
    error, refresh = value.pop("error", None), value.pop("refresh_worker", None)
    body: dict[str, Any] = {"error": error} if error else {}  # first: see ERROR
    if value or not (error or refresh):
        body["output"] = value
    if refresh:
        body["stopPod"] = True
    return body


def body_of_error(error: BaseException, *, debug: bool = False) -> dict[str, Any]:
    """The body for an exception: one sentence that says whose fault it is.

    The stock SDK sends the traceback, paths and all, to the caller; here only `debug` adds it.
    """
    sentence = error.sentence() if isinstance(error, WorkerError) else f"worker fault: {in_words(error)}"
    ours = isinstance(error, WorkerFault) or not isinstance(error, WorkerError)
    if debug and ours:
        sentence += "\n" + "".join(traceback.format_exception(error))
    return {"error": sentence}


def too_late(seconds: float) -> WorkerFault:
    """What a job is told that was given up after `seconds`."""
    return WorkerFault(f"the job took longer than {seconds} s (JOB_TIMEOUT_S)")


def encode(body: dict[str, Any]) -> bytes:
    """The body as it is posted; numpy arrays are written directly, float32 with the digits that give it back.

    Raises WorkerFault for what JSON cannot carry.
    """
    refuse_no_json(body)
    try:
        return orjson.dumps(body, _contiguous, orjson.OPT_SERIALIZE_NUMPY)
    except TypeError:
        # Lone surrogates, integers over 64 bits, arrays of another byte order; or keys that are no strings.
        return json.dumps(to_json(body), ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _contiguous(value: Any) -> Any:
    """For orjson: a part of an array as one that it writes; others would take more digits for it, and far longer."""
    if _is_numpy(value) and not value.flags.c_contiguous:
        return value.copy()
    raise TypeError


def refuse_no_json(value: Any) -> None:
    """Raise WorkerFault where `value` holds what JSON cannot carry; keys are left to whoever writes it.

    orjson would write more: dates, UUIDs, members of enumerations, dataclasses with null for NaN; `to_json`, where it
    writes what orjson does not, and the stock SDK have no form for these.
    """
    if isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            if type(item) not in _CARRIED:
                refuse_no_json(item)
        return
    if isinstance(value, float):
        finite = math.isfinite(value)
    elif _is_numpy(value):
        if value.dtype.kind not in "fiub":
            raise WorkerFault(f"the answer holds an array of {value.dtype}, which JSON cannot carry")
        finite = value.dtype.kind != "f" or bool(sys.modules["numpy"].isfinite(value).all())
    elif value is None or isinstance(value, str | int):
        finite = True
    else:
        raise WorkerFault(f"the answer holds a {type(value).__name__}, which JSON cannot carry")
    if not finite:
        raise WorkerFault("the answer holds NaN or infinity")
