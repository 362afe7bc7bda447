"""The least that a worker of the protocol can be: takes one job after the other and answers each with a constant.

Run as a script with the variables that a worker gets; no SDK, no engine. It is the floor of what a worker costs beside
its engine, which the fake engine leaves visible.
"""

from __future__ import annotations

import json
import os
from http.client import HTTPConnection
from urllib.parse import urlsplit

_ANSWER = json.dumps({"output": 1}).encode()
_FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def main() -> None:
    """Serve until the process is ended."""
    worker, key = os.environ["RUNPOD_POD_ID"], {"Authorization": os.environ["RUNPOD_AI_API_KEY"]}
    take = os.environ["RUNPOD_WEBHOOK_GET_JOB"].replace("$ID", worker) + "&job_in_progress=0"
    done = os.environ["RUNPOD_WEBHOOK_POST_OUTPUT"].replace("$RUNPOD_POD_ID", worker) + "&isStream=false"
    connection = HTTPConnection(urlsplit(take).netloc)
    while True:
        connection.request("GET", _path(take), headers=key)
        reply = connection.getresponse()
        body = reply.read()
        if reply.status == 200 and body:
            connection.request("POST", _path(done).replace("$ID", json.loads(body)["id"]), _ANSWER, key | _FORM)
            connection.getresponse().read()


def _path(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.path}?{parts.query}"


if __name__ == "__main__":
    main()
