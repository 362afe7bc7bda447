"""A rented GPU pod, through the RunPod SDK's own functions. Rule: whatever happens, it is terminated.

The pod is found by its name, which nothing else bears, so that one whose creation was interrupted, or whose answer got
lost, is ended as well. Should this machine die, the pod's own time limit ends it (export/pods/server.py).
"""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from export.errors import Refused, Unavailable
from export.pods.server import PORT, TIME_LIMIT, TOKEN

_ENDING_ATTEMPTS = 6
_GRACE_S = 60.0
"""How much longer than ours the pod's own time limit is."""


@dataclass(frozen=True)
class Pod:
    """A pod that runs export/pods/server.py."""

    id: str
    token: str
    api: Any

    def is_alive(self) -> bool:
        """Whether RunPod still has it and wants it to run. An API that does not answer is no sign of death."""
        try:
            found = self.api.get_pod(self.id)
        except Exception:  # the SDK's, requests', JSON's
            return True
        return bool(found) and found.get("desiredStatus") == "RUNNING"


def load_api() -> Any:
    """The SDK. Raises Refused without an API key: neither RUNPOD_API_KEY nor `runpod config` has one."""
    import runpod

    runpod.api_key = os.environ.get("RUNPOD_API_KEY") or runpod.api_key
    if not runpod.api_key:
        raise Refused("no RunPod API key; set RUNPOD_API_KEY to one that may create pods")
    return runpod


def hourly_price(api: Any, gpu_type: str, cloud: str) -> float:
    """What one such GPU costs, in dollars an hour. Raises Refused when RunPod has none, or tells no price."""
    try:
        with _refusals():
            found = api.get_gpu(gpu_type)
    except ValueError:
        raise Refused(f"RunPod knows no GPU {gpu_type!r}; `runpod.get_gpus()` lists their ids") from None
    price = found.get("securePrice" if cloud == "SECURE" else "communityPrice")
    if not price:
        raise Refused(f"RunPod offers no {gpu_type} in its {cloud.lower()} cloud now; choose another GPU or cloud")
    return float(price)


@contextmanager
def rented(api: Any, gpu_type: str, image: str, *, cloud: str, disk_gb: int, time_limit_s: float) -> Iterator[Pod]:
    """A pod with one GPU while the block runs. Raises Refused when it cannot be created, or cannot be ended.

    Unavailable when the same may pass later.
    """
    name = f"plan-{secrets.token_hex(6)}"
    token = secrets.token_hex(32)
    limit = f"{time_limit_s + _GRACE_S:.0f}"
    try:
        with _refusals():
            created = api.create_pod(
                name,
                image,
                gpu_type,
                cloud_type=cloud,
                start_ssh=False,
                support_public_ip=False,
                container_disk_in_gb=disk_gb,
                docker_args="python -u -m export.pods.server",
                ports=f"{PORT}/http",
                env={TOKEN: token, TIME_LIMIT: limit},
            )
        if not created:
            raise Unavailable(f"RunPod has no {gpu_type} free now; try again, or choose another GPU or cloud")
        yield Pod(created["id"], token, api)
    finally:
        _end(api, name)


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn what the API says, or that it says nothing, into Refused."""
    from runpod.error import RunPodError

    try:
        yield
    except RunPodError as error:
        raise Refused(f"RunPod refused: {error}") from error
    except OSError as error:
        raise Unavailable(f"RunPod's API cannot be reached ({type(error).__name__}); try again") from error


def _end(api: Any, name: str) -> None:
    """Terminate every pod called `name` and see that it is gone. Signals wait until that is done."""
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        failure = ""
        for attempt in range(_ENDING_ATTEMPTS):
            try:
                left = [pod["id"] for pod in api.get_pods() if pod["name"] == name]
                if not left:
                    return
                for pod_id in left:
                    api.terminate_pod(pod_id)
                failure = "it does not go"
            except Exception as error:  # the network, the API: none may leave a pod running
                failure = f"{type(error).__name__}: {error}"
            if attempt:  # the first time it is looked again at once
                time.sleep(min(2 ** (attempt - 1), 10))
        raise Refused(f"the pod {name} may still run and cost money ({failure}); terminate it in RunPod's console")
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
