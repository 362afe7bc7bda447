"""`python -m engine inspect BUNDLE`: what a bundle holds. Needs neither onnxruntime nor tensorrt."""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is to be cleaned up: Ctrl-C needs no traceback

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.errors import BundleError
from engine.inspection import describe, text

OK, REFUSED, UNAVAILABLE = 0, 2, 3  # as an export's


def main(argv: Sequence[str] | None = None) -> int:
    """Print the bundle's description; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m engine", description="Look into bundles.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    what = "model, graphs, plans and parity of a bundle"
    inspect = commands.add_parser(
        "inspect",
        help=what,
        description=f"Print {what}, and which of the plans could run on this machine. Loads none of them.",
        epilog="Exit codes: 0 printed; 2 the bundle, or the command, cannot be used as it is, 3 the output cannot be "
        "written: one sentence says why.",
    )
    inspect.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder of the bundle")
    inspect.add_argument("--json", action="store_true", help="everything, as JSON")
    inspect.add_argument("--verify", action="store_true", help="also compare every file with its SHA-256")
    asked = parser.parse_args(argv)
    try:
        found = describe(asked.bundle, verify=asked.verify)
    except BundleError as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    try:
        print(json.dumps(found, indent=1, ensure_ascii=False) if asked.json else text(found), flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be flushed
        if not isinstance(error, BrokenPipeError):  # `| head` has read enough
            print(f"error: the output cannot be written ({error.strerror}); send it elsewhere", file=sys.stderr)
            return UNAVAILABLE
    return OK


if __name__ == "__main__":
    sys.exit(main())
