"""The worker's command line: the RunPod SDK's own options, explained and checked before anything is loaded.

The SDK reads them itself (runpod/serverless/__init__.py), after the boot, and ignores what it does not know.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from engine.errors import ConfigError
from handler.log import LOG_LEVELS

_JOB = '{"input": {"text": "hello"}}'
_EXAMPLE = f"--test_input '{_JOB}'"
_TEST_INPUT = Path("test_input.json")
_SEE = "see python -m handler --help"


def check(argv: Sequence[str], *, on_runpod: bool) -> None:
    """Raise ConfigError for arguments that the SDK would ignore or stumble over. `--help` prints and exits."""
    asked = _parser().parse_args(argv)
    if asked.test_input is not None:
        _check_job(asked.test_input, "--test_input", f"write {_EXAMPLE}")
    elif not asked.rp_serve_api and not on_runpod:
        if not _TEST_INPUT.is_file():
            raise ConfigError(
                f"this is not RunPod, and there is no {_TEST_INPUT} in {_working_directory()}: nothing to do; give a "
                f"job as {_EXAMPLE}, or serve with --rp_serve_api"
            )
        try:
            text = _TEST_INPUT.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ConfigError(f"{_TEST_INPUT} cannot be read ({error}); correct it, or give {_EXAMPLE}") from None
        _check_job(text, str(_TEST_INPUT), f"correct it, or give {_EXAMPLE}")


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:
        return "the working directory, which was removed"


def _check_job(text: str, whose: str, fix: str) -> None:
    try:
        job = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{whose} is not JSON ({error}); {fix}") from None
    if not isinstance(job, dict) or job.get("input") is None:
        raise ConfigError(f"{whose} is not a job, an object with `input`; {fix}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; {_SEE}")


class _Refused(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        parser.error("--rp_debugger: the SDK's debugger loses jobs whose answer is a list or an error; leave it out")


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 1 to 65535")
    return int(text)


def _level(text: str) -> str:
    if text.upper() not in LOG_LEVELS:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(LOG_LEVELS)}")
    return text


def _one(text: str) -> int:
    if text != "1":  # it starts more only of what it can import by name, and ends with code 3 instead
        raise argparse.ArgumentTypeError(f"{text!r} is not 1: the SDK's server runs a worker in one process")
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m handler",
        usage="BUNDLE=FOLDER python -m handler [options]",
        description="Serve a bundle. On RunPod: takes jobs until it is told to stop. Elsewhere: answers one job, that "
        "of --test_input or of test_input.json in the working directory, and exits; or serves with --rp_serve_api.",
        epilog="All settings are environment variables, BUNDLE first (default: the folder bundle); docs/settings.md "
        "lists them. Exit codes: 0 after a clean stop, or a local job that was answered; 1 when the worker cannot "
        "start or go on, or a local job failed: a sentence says why; 130 by Ctrl-C while it starts, and where nobody "
        "reads any more what a local mode prints; 130 by Ctrl-C, 143 by SIGTERM, and 129 by SIGHUP, before a local job "
        "was answered.",
        allow_abbrev=False,
    )
    parser.add_argument("--test_input", metavar="JSON", help=f"answer this job and exit, such as {_JOB}")
    parser.add_argument("--rp_serve_api", action="store_true", help="serve /runsync and /run over HTTP, for tests")
    parser.add_argument("--rp_api_host", metavar="HOST", help="where to listen (default: localhost)")
    parser.add_argument("--rp_api_port", type=_port, metavar="PORT", help="(default: 8000)")
    parser.add_argument("--rp_api_concurrency", type=_one, metavar="1", help="processes of that server (default: 1)")
    levels = ", ".join(LOG_LEVELS)
    parser.add_argument("--rp_log_level", type=_level, metavar="LEVEL", help=f"the SDK's: {levels} (default: INFO)")
    parser.add_argument("--rp_debugger", action=_Refused, nargs=0, help="the SDK's; not taken here")
    return parser
