"""A rented GPU pod. Rule: whatever happens, it is terminated.

The pod is ended by its id, and by its name, which nothing else bears, so that one whose creation was interrupted, or
whose answer got lost, is ended as well. RunPod may find either a moment late. Should this machine die, the pod's own
time limit ends it (export/pods/server.py).
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from export.command import interrupts
from export.command.said import first_line
from export.command.terminal import without_effect
from export.errors import Refused
from export.pods.api import Api, Unanswered
from export.pods.server import PORT, TIME_LIMIT, TOKEN

_ENDING_ATTEMPTS = 10
"""They take longer than the minute that RunPod counts requests over, and that a pod may take to appear."""
_ALIVE = ("PROVISIONING", "STARTING", "RUNNING")
_GRACE_S = 60.0
"""How much longer than ours the pod's own time limit is."""


@dataclass
class Pod:
    """A pod that runs export/pods/server.py."""

    id: str
    token: str
    api: Api
    was_seen: bool = False
    """Whether it has shown, so that it is gone where RunPod does not show it."""

    def is_alive(self) -> bool:
        """Whether RunPod still has it and wants it to run. An API that does not answer is no sign of death."""
        try:
            status = self.api.status(self.id)
        except Refused:
            return True
        if status is None:
            return not self.was_seen
        self.was_seen = True
        return status in _ALIVE


def load_api() -> Api:
    """Raises Refused without an API key: neither RUNPOD_API_KEY nor `runpod config` has one."""
    key = os.environ.get("RUNPOD_API_KEY", "").strip()
    if not key:
        import runpod

        key = (runpod.api_key or "").strip()
    if not key:
        raise Refused("no RunPod API key; set RUNPOD_API_KEY to one that may create pods")
    if not (key.isascii() and key.isprintable()):
        raise Refused("RUNPOD_API_KEY holds what no key does, such as quotes of a text; copy it from RunPod's console")
    return Api(key)


@contextmanager
def rented(
    api: Api, gpu_type: str, image: str, *, cloud: str, disk_gb: int, time_limit_s: float, registry: str = ""
) -> Iterator[Pod]:
    """A pod with one GPU while the block runs. `registry` is the id of the credential that pulls a private image.

    Raises Refused when it cannot be created, or cannot be ended; Unavailable when the same may pass later.
    """
    name = f"plan-{secrets.token_hex(6)}"
    token = secrets.token_hex(32)
    order = {
        "name": name,
        "image": image,
        "cloud": cloud,
        "disk": disk_gb,
        "args": "python -u -m export.pods.server",
        "ports": [f"{PORT}/http"],
        "env": {TOKEN: token, TIME_LIMIT: f"{time_limit_s + _GRACE_S:.0f}"},
        **({"registry": registry} if registry else {}),
    }
    pod, is_sure = None, False
    with ExitStack() as until_ended:
        try:
            try:
                with interrupts.held():  # until it is known whether there is one
                    pod = Pod(api.create(gpu_type, order), token, api)
                interrupts.check()
                yield pod
            except Refused as error:
                is_sure = pod is None and not isinstance(error, Unanswered)
                raise
            finally:
                until_ended.enter_context(interrupts.held())
        finally:  # also where a signal came in the line above
            _end(api, name, pod, is_sure)


def _end(api: Api, name: str, pod: Pod | None, is_sure: bool) -> None:
    """Terminate `pod`, and every other called `name`, and see that it is gone.

    Unless it `is_sure` that there is none but those that RunPod lists, wait until one was found.
    """
    unseen = "its creation was not answered" if pod is None else "RunPod does not show it"
    known = set() if pod is None else {pod.id}
    was_seen = pod is not None and pod.was_seen
    failure = ""
    for attempt in range(_ENDING_ATTEMPTS):
        try:
            for pod_id in known:  # first, for a list may lack it or not come
                is_sure = api.terminate(pod_id) or was_seen or is_sure
            left = set(api.named(name))
            if is_sure and not left:
                return
            was_seen = was_seen or bool(left)
            for pod_id in left - known:
                known.add(pod_id)
                api.terminate(pod_id)
                is_sure = True
            failure = "it does not go" if was_seen else f"{unseen}, and it did not appear"
        except Exception as error:  # the network, the API: none may leave a pod running
            failure = first_line(error)
        if not attempt:
            if not is_sure and not was_seen:
                with without_effect():
                    print(f"{unseen}; waiting a minute for the pod {name} to appear", flush=True)
            continue  # the first time it is looked again at once
        time.sleep(min(2 ** (attempt - 1), 10))
    raise Refused(f"the pod {name} may still run and cost money ({failure}); terminate it in RunPod's console")
