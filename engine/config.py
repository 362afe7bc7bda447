"""Every setting of the worker: one declaration each, read once from an environ that the caller passes in."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from engine.errors import ConfigError

ENGINES = ("auto", "tensorrt", "onnxruntime-cuda", "onnxruntime-cpu", "fake")
PLAN_PRECISIONS = ("auto", "fp32", "tf32", "fp16", "bf16", "int8")
WORKER_LOOPS = ("events", "sdk", "http")


def _whole(low: int, high: int) -> tuple[Callable[[str], int], str]:
    def read(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError
        return value

    return read, f"a whole number from {low} to {high}"


def _seconds(low: float, high: float) -> tuple[Callable[[str], float], str]:
    def read(text: str) -> float:
        value = float(text)
        if not low <= value <= high:  # false for NaN as well
            raise ValueError
        return value

    return read, f"a number of seconds from {low:g} to {high:g}"


def _one_of(allowed: tuple[str, ...]) -> tuple[Callable[[str], str], str]:
    def read(text: str) -> str:
        if text.lower() not in allowed:
            raise ValueError
        return text.lower()

    return read, f"one of {', '.join(allowed)}"


def _matching(pattern: str, words: str) -> tuple[Callable[[str], str], str]:
    def read(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError
        return text

    return read, words


def _switch(text: str) -> bool:
    return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[text.lower()]


_HOST = re.compile(r"(\*|(\*\.)?[a-z0-9]([a-z0-9.-]*[a-z0-9])?)(:[1-9][0-9]{0,4})?")


_LAST_PORT = 65_535


def _path(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.~/-]+", text):
        raise ValueError
    return "/" + text.removeprefix("/")


def _hosts(text: str) -> tuple[str, ...]:
    hosts = tuple(host.strip().lower() for host in text.split(",") if host.strip())
    for host in hosts:
        if not _HOST.fullmatch(host) or int(host.partition(":")[2] or _LAST_PORT) > _LAST_PORT:
            raise ValueError
    return hosts


def _setting(
    env: str, default: Any, rule: tuple[Callable[[str], Any], str], doc: str, *, is_secret: bool = False
) -> Any:
    metadata = {"env": env, "read": rule[0], "allowed": rule[1], "doc": doc}
    return field(default=default, repr=not is_secret, metadata=metadata)


@dataclass(frozen=True)
class Limits:
    """What one job may ask for."""

    max_items: int = _setting("MAX_ITEMS", 10_000, _whole(1, 1_000_000), "Texts, images or recordings in one job.")
    max_queued_rows: int = _setting(
        "MAX_QUEUED_ROWS",
        50_000,
        _whole(1, 10_000_000),
        "Rows that may wait. A job that does not fit is told to retry; one with more by itself is refused for good.",
    )
    max_chars: int = _setting("MAX_CHARS", 100_000, _whole(1, 10_000_000), "Characters in one text.")
    max_media_bytes: int = _setting(
        "MAX_MEDIA_BYTES", 20_000_000, _whole(1, 1 << 31), "Bytes of one image or recording, decoded from base64."
    )
    max_pixels: int = _setting("MAX_PIXELS", 50_000_000, _whole(1, 1 << 31), "Pixels of one image.")
    max_audio_s: float = _setting("MAX_AUDIO_S", 600.0, _seconds(0.001, 86_400), "Seconds of one recording.")
    max_row_bytes: int = _setting(
        "MAX_ROW_BYTES",
        2_000_000_000,
        _whole(1, 1 << 40),
        "Bytes that the items of one job, or of one part of a stream, become for the engine, and that it answers with. "
        "All jobs together have half of the memory, for which they wait.",
    )
    fetch_hosts: tuple[str, ...] = _setting(
        "FETCH_HOSTS",
        (),
        (_hosts, "host names with commas between, `*.example.org` for all below one, `host:8443` for another port"),
        "Hosts that https URLs in jobs may point to; without it no URL is fetched.",
    )
    fetch_timeout_s: float = _setting(
        "FETCH_TIMEOUT_S", 10.0, _seconds(0.1, 600), "Seconds that fetching one URL may take, redirects included."
    )
    max_fetch_bytes: int = _setting(
        "MAX_FETCH_BYTES", 1_000_000_000, _whole(1, 1 << 40), "Bytes that the URLs of one job may bring in all."
    )
    max_fetch_s: float = _setting(
        "MAX_FETCH_S", 600.0, _seconds(0.1, 86_400), "Seconds that fetching the URLs of one job may take, added up."
    )
    upstream_url: str = _setting(
        "UPSTREAM_URL", "", (str, "an https URL"), "api-proxy: the service, whose host must be in FETCH_HOSTS."
    )
    upstream_authorization: str = _setting(
        "UPSTREAM_AUTHORIZATION",
        "",
        (str, "a header's value"),
        "api-proxy: the Authorization header that the service gets, such as `Bearer ...`.",
        is_secret=True,
    )
    upstream_attempts: int = _setting(
        "UPSTREAM_ATTEMPTS", 3, _whole(1, 10), "api-proxy: how often a request is sent at most."
    )

    @property
    def posts_replies(self) -> bool:
        """Whether they go to RunPod's queue, which takes no more than LARGEST_REPLY; an export's go nowhere."""
        return False


@dataclass(frozen=True)
class Settings(Limits):
    """All settings, with the defaults that docs/settings.md shows."""

    bundle: Path = _setting("BUNDLE", Path("bundle"), (Path, "a folder"), "Folder of the bundle to serve.")
    bundle_sha256: str = _setting(
        "BUNDLE_SHA256",
        "",
        _matching("[0-9a-fA-F]{64}", "the first word of the bundle's manifest.sha256"),
        "Serve this bundle and no other.",
    )
    bundle_url: str = _setting(
        "BUNDLE_URL",
        "",
        _matching(r"https?://\S+", "an https address"),
        "Tar of the bundle, fetched at boot instead of `BUNDLE`; needs `BUNDLE_SHA256`.",
    )
    bundle_repo: str = _setting(
        "BUNDLE_REPO",
        "",
        _matching(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", "org/name or org/name@revision"),
        "Hub repository that holds the bundle, found in the Hub's cache instead of `BUNDLE`; needs `BUNDLE_SHA256`.",
    )
    bundle_cache: Path | None = _setting(
        "BUNDLE_CACHE",
        None,
        (Path, "a folder"),
        "Where fetched bundles are kept; without it the volume, or else /tmp.",
    )
    bundle_public_key: str = _setting(
        "BUNDLE_PUBLIC_KEY",
        "",
        _matching("[A-Za-z0-9+/]{43}=", "what `python -m export keygen` printed"),
        "Serve only bundles that the owner of this key signed.",
    )
    engine: str = _setting("ENGINE", "auto", _one_of(ENGINES), "Engine to use; `auto` picks the best that works here.")
    allow_cpu: bool = _setting(
        "ALLOW_CPU", False, (_switch, "1 or 0"), "Serve on the CPU where a GPU was asked for and cannot be used."
    )
    allow_parity_failure: bool = _setting(
        "ALLOW_PARITY_FAILURE", False, (_switch, "1 or 0"), "Serve a bundle that is marked as having failed its gate."
    )
    precision: str = _setting(
        "PRECISION", "auto", _one_of(PLAN_PRECISIONS), "Of TensorRT plans; `auto` takes the fastest that there is."
    )
    build_on_boot: bool = _setting(
        "BUILD_ON_BOOT", False, (_switch, "1 or 0"), "Build a TensorRT plan before the first job where none fits."
    )
    build_timeout_s: float = _setting(
        "BUILD_TIMEOUT_S", 390.0, _seconds(1, 86_400), "Seconds into the boot at which a build ends; RunPod gives 420."
    )
    plan_cache: Path = _setting(
        "PLAN_CACHE", Path("/runpod-volume/plans"), (Path, "a folder"), "Where plans built at boot are kept and found."
    )
    threads: int = _setting(
        "THREADS", 0, _whole(0, 1024), "CPU threads of the engine; 0 follows the container's quota."
    )
    cpu_lanes: bool = _setting(
        "CPU_LANES",
        True,
        (_switch, "1 or 0"),
        "On the CPU, run batches side by side when many rows wait, one thread each; holds the weights twice then.",
    )
    max_concurrency: int = _setting("MAX_CONCURRENCY", 32, _whole(1, 1000), "Jobs taken at the same time.")
    max_batch_rows: int = _setting("MAX_BATCH_ROWS", 32, _whole(1, 4096), "Rows that the engine runs at once.")
    max_batch_tokens: int = _setting(
        "MAX_BATCH_TOKENS",
        0,
        _whole(0, 1 << 24),
        "Tokens that the engine runs at once, padding included; 0 takes what suits the engine.",
    )
    max_queue_delay_ms: int = _setting(
        "MAX_QUEUE_DELAY_MS", 0, _whole(0, 10_000), "Milliseconds that a batch which is not full waits for company."
    )
    job_timeout_s: float = _setting(
        "JOB_TIMEOUT_S", 0.0, _seconds(0, 86_400), "Seconds after which a job fails; 0 leaves that to RunPod."
    )
    engine_timeout_s: float = _setting(
        "ENGINE_TIMEOUT_S", 60.0, _seconds(0.1, 3600), "Seconds after which a batch that still runs ends the worker."
    )
    drain_timeout_s: float = _setting(
        "DRAIN_TIMEOUT_S", 20.0, _seconds(0, 3600), "Seconds that running jobs get after SIGTERM."
    )
    result_timeout_s: float = _setting(
        "RESULT_TIMEOUT_S", 120.0, _seconds(1, 3600), "Seconds for which sending a result is tried again."
    )
    worker_loop: str = _setting(
        "WORKER_LOOP",
        "events",
        _one_of(WORKER_LOOPS),
        "`http` serves a load-balancing endpoint; `sdk` falls back to the stock `runpod.serverless.start`.",
    )
    port: int = _setting("PORT", 80, _whole(1, _LAST_PORT), "Where `WORKER_LOOP=http` listens.")
    port_health: int = _setting(
        "PORT_HEALTH", 0, _whole(0, _LAST_PORT), "Where it answers RunPod's `/ping`; 0 is the same port."
    )
    health_check_path: str = _setting(
        "HEALTH_CHECK_PATH",
        "/ping",
        (_path, "a path, such as /health"),
        "Path that RunPod's balancer asks for the worker's health; `/ping` is answered as well.",
    )
    debug: bool = _setting(
        "WORKER_DEBUG", False, (_switch, "1 or 0"), "Tracebacks in the errors of jobs that failed by our fault."
    )

    @property
    def posts_replies(self) -> bool:
        """Not those of a load-balancing endpoint."""
        return self.worker_loop != "http"

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Settings:
        """Read every setting that is present and not empty.

        Raises ConfigError that names the variable, its value and what is allowed.
        """
        values: dict[str, Any] = {}
        for item in fields(cls):
            text = environ.get(item.metadata["env"], "").strip()
            if not text:
                continue
            try:
                values[item.name] = item.metadata["read"](text)
            except (ValueError, KeyError):
                raise ConfigError(
                    f"{item.metadata['env']}={shown(text)!r} is not allowed; set it to {item.metadata['allowed']}, "
                    f"or leave it out for {_shown(item.default)}"
                ) from None
        return cls(**values)


def shown(text: str) -> str:
    """The start of a value, for a log, without what may be a secret: user and password, or the query, of an address."""
    scheme, slashes, rest = text.partition("//") if "//" in text else ("", "", text)
    user, at, host = rest.rpartition("@")  # the last one: a password may hold it as well
    address, query, _ = (f"***@{host}" if at and (slashes or ":" in user) else rest).partition("?")
    return f"{scheme}{slashes}{address}{query and '?***'}"[:80]


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return ", ".join(default) or "none"
    if default in ("", None):
        return "none"
    return str(int(default) if isinstance(default, bool) else default)


def settings_table() -> str:
    """The table of docs/settings.md, in Markdown."""
    lines = ["| variable | default | allowed | meaning |", "| --- | --- | --- | --- |"]
    for item in sorted(fields(Settings), key=lambda item: item.name not in ("bundle", "engine")):
        meta = item.metadata
        lines.append(f"| `{meta['env']}` | `{_shown(item.default)}` | {meta['allowed']} | {meta['doc']} |")
    return "\n".join(lines)
