"""`python -m engine.plans.leash FOLDER COMMAND...`: runs a command that ends with all it started when our input ends.

A build of a plan takes minutes and a GPU. Whoever wants it holds the other end of a pipe, which the kernel closes
however that process ends; a process that is killed could not end the build itself. FOLDER is removed then: what the
build has written there is of no use to anybody.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
from contextlib import suppress

_CHECK_MS = 50


def main() -> int:
    """The exit code of the command; 128 and the number of the signal that ended it, as in a shell."""
    folder, *command = sys.argv[1:]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    pipe = select.poll()
    pipe.register(0, select.POLLIN)
    while process.poll() is None:
        if pipe.poll(_CHECK_MS):
            with suppress(ProcessLookupError):  # it has just ended by itself
                # The whole group; and no gentler signal, for a worker ignores SIGTERM, and so does what it starts.
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            shutil.rmtree(folder, ignore_errors=True)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


if __name__ == "__main__":
    sys.exit(main())
