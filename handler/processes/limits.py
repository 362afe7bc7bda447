"""How many files this process may open. Rule: imports next to nothing, for it runs before the fork.

Sockets count as well. A worker that runs out of them takes a job and has none left to post its result with.
"""

from __future__ import annotations

from contextlib import suppress

from engine.errors import ConfigError

_NEEDED = 32
"""Of a worker without a job: standard files, an event loop, three connections, what a library opens for a moment."""
_UNLIMITED = 1 << 30


def allow_files(jobs: int, connections: int = 0) -> None:
    """Raise the limit to what a worker with so many jobs at a time may need: a connection each, and one more each.

    The second posts the result of a job that has ended, while another runs in its place. A worker that listens is told
    how many `connections` it should be able to hold beside them; fewer are no reason not to start. Raises ConfigError
    where not even the first is allowed. Of the two limits a program may raise the lower one, up to the upper one.
    """
    import resource

    lower, upper = (limit if limit >= 0 else _UNLIMITED for limit in resource.getrlimit(resource.RLIMIT_NOFILE))
    wanted = min(_NEEDED + 2 * jobs + connections, upper)
    if lower < wanted:
        with suppress(ValueError, OSError):  # a sandbox that has the last word
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, upper))
            lower = wanted
    needed = _NEEDED + jobs
    if lower < needed:
        raise ConfigError(
            f"this process may open {lower} files, and needs {needed}, sockets included; raise the limit (ulimit -n, "
            f"docker run --ulimit nofile={max(1024, 2 * needed)}) or lower MAX_CONCURRENCY"
        )
