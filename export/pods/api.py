"""RunPod's REST API v2, as far as pods need it (docs.runpod.io/api-reference-v2, openapi.json there).

RunPod's SDK 1.12 speaks GraphQL instead, which RunPod ends in early 2027.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import requests

from export.errors import Refused, Unavailable

_SILENCE_S = 30.0
_OF_THE_ORDER = (400, 401, 402, 403, 404, 409, 422)
"""What the same request gets again, as long as neither it nor the account changes."""
GONE = "TERMINATED"
"""The status of a pod that is none any more."""


class Unanswered(Unavailable):
    """What was asked for may have been done all the same, or may still be."""


class Api:
    """Pods of the account of a key. Methods raise Refused, or Unavailable where the same may pass later."""

    def __init__(self, key: str, environ: Mapping[str, str] = os.environ) -> None:
        self._url = f"{environ.get('RUNPOD_API_BASE_URL', 'https://api.runpod.io')}/v2"
        self._headers = {"Authorization": f"Bearer {key}", "User-Agent": "worker-tensorrt"}

    def hourly_price(self, gpu_type: str, cloud: str) -> float:
        """What one such GPU costs, in dollars an hour."""
        reply = self._send("GET", f"/catalog/gpus/{quote(gpu_type, safe='')}")
        if reply.status_code == 404:
            raise Refused(f"RunPod knows no GPU {gpu_type!r}; docs.runpod.io/references/gpu-types lists their ids")
        price = (_content(reply).get("price") or {}).get(cloud.lower())
        if not price:
            raise Refused(f"RunPod offers no {gpu_type} in its {cloud.lower()} cloud now; choose another GPU or cloud")
        return float(price)

    def create(self, gpu_type: str, order: Mapping[str, Any]) -> str:
        """Create a pod with one such GPU; its id. `order` has the other fields of the request.

        Raises Unanswered where there may be one all the same.
        """
        reply = self._send("POST", "/pods", {**order, "gpu": {"id": gpu_type, "count": 1}})
        if reply.status_code == 400:  # above all that none is free, which has no status of its own
            raise Unavailable(
                f"RunPod has no {gpu_type} free now ({_detail(reply)}); try again, or choose another GPU or cloud"
            )
        return str(_content(reply).get("id"))

    def named(self, name: str) -> list[str]:
        """The ids of the pods that are called `name`."""
        pods = _content(self._send("GET", "/pods"))["pods"]
        return [pod["id"] for pod in pods if pod["name"] == name and pod["status"] != GONE]

    def status(self, pod_id: str) -> str | None:
        """One of RunPod's words for it; None where it finds no such pod, as of one that is gone, or that is new."""
        reply = self._send("GET", f"/pods/{quote(pod_id, safe='')}")
        return None if reply.status_code == 404 else str(_content(reply).get("status"))

    def terminate(self, pod_id: str) -> bool:
        """Ask for its end; whether RunPod found it. One that is gone is no error."""
        reply = self._send("DELETE", f"/pods/{quote(pod_id, safe='')}")
        if reply.status_code == 404:
            return False
        _content(reply)
        return True

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> requests.Response:
        try:
            return requests.request(method, f"{self._url}{path}", json=body, headers=self._headers, timeout=_SILENCE_S)
        except OSError as error:  # as all of requests' are
            raise Unanswered(f"RunPod's API cannot be reached ({type(error).__name__}); try again") from error


def _content(reply: requests.Response) -> dict[str, Any]:
    """The object that a reply holds; an empty one of a reply without content."""
    found = _json(reply)
    if reply.ok and isinstance(found, dict):
        return found
    if reply.status_code in _OF_THE_ORDER:
        raise Refused(
            f"RunPod refused ({reply.status_code}): {_detail(reply)}; check RUNPOD_API_KEY, the account's balance and "
            "the names in the order"
        )
    kind = Unavailable if 400 <= reply.status_code < 500 else Unanswered  # another's word, such as a proxy's
    raise kind(
        f"RunPod's API answered {reply.status_code} ({_detail(reply)}); try again later, or with a newer version of "
        "this worker"
    )


def _detail(reply: requests.Response) -> str:
    found = _json(reply)
    detail = found.get("detail") if isinstance(found, dict) else ""
    return " ".join(str(detail or reply.reason).split())[:300]


def _json(reply: requests.Response) -> Any:
    try:
        return reply.json() if reply.content else {}
    except ValueError:
        return None
