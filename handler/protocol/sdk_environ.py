"""The variables that the RunPod SDK reads: refused where they are of no use, put right where that can be.

Rule: imports nothing of the SDK, which reads its log level while it is imported.
"""

from __future__ import annotations

from collections.abc import MutableMapping

from engine.config import shown
from engine.errors import ConfigError
from handler.log import LOG_LEVELS, OF_LEVEL, log

_LEVEL = "INFO"  # by default it logs every poll; a worker that answers a thousand jobs a second would mostly print
_PING_INTERVAL_MS = "10000"  # the SDK's default
# The SDK puts the job's number for $ID, and appends what begins with &.
_NEEDED = {"RUNPOD_WEBHOOK_GET_JOB": ("?",), "RUNPOD_WEBHOOK_POST_OUTPUT": ("$ID", "?")}


def check_addresses(environ: MutableMapping[str, str]) -> None:
    """Raise ConfigError for variables of RunPod's with which jobs would be taken and never answered, or none taken."""
    for name, parts in _NEEDED.items():
        value = environ.get(name, "")
        if not value.startswith(("https://", "http://")) or not all(part in value for part in parts):
            raise ConfigError(
                f"{name}={shown(value)!r} is not an address with {' and '.join(parts)}; leave it as RunPod sets it"
            )
    key = environ.get("RUNPOD_AI_API_KEY", "")
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            "RUNPOD_AI_API_KEY holds a line end or another character that no header can carry; set it anew"
        )


def settle(environ: MutableMapping[str, str]) -> None:
    """Leave a log level and an interval that the SDK takes. Raises ConfigError for a level that there is not.

    An interval that its heartbeat would fail on, or turn into none, is replaced.
    """
    given = ((name, environ.get(name, "").strip()) for name in OF_LEVEL)
    name, level = next(((name, level) for name, level in given if level), (OF_LEVEL[0], _LEVEL))
    if level.upper() not in LOG_LEVELS:
        raise ConfigError(
            f"{name}={shown(level)!r} is not allowed; set it to one of {', '.join(LOG_LEVELS)}, or leave it out for "
            f"{_LEVEL}"
        )
    environ[OF_LEVEL[0]] = level
    interval = environ.get("RUNPOD_PING_INTERVAL", _PING_INTERVAL_MS)
    # It cuts to whole seconds, and cannot sleep for as long as a number of any length says.
    if not (interval.isdecimal() and len(interval) < 8 and int(interval) >= 1000):
        environ["RUNPOD_PING_INTERVAL"] = _PING_INTERVAL_MS
        log(
            "WARN",
            f"RUNPOD_PING_INTERVAL={interval[:80]!r} is not 1000 to 9999999 milliseconds; {_PING_INTERVAL_MS} it is",
        )
