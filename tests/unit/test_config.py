from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from engine.config import ENGINES, Settings
from engine.errors import ConfigError


def test_defaults_need_no_environment():
    settings = Settings.from_environ({})
    assert settings == Settings()
    assert isinstance(settings.bundle, Path)


def test_values_are_read_and_empty_ones_are_absent():
    environ = {"ENGINE": " FAKE\n", "MAX_CONCURRENCY": " 7 ", "WORKER_DEBUG": "yes", "THREADS": "", "CPU_LANES": " "}
    settings = Settings.from_environ(environ)
    assert (settings.engine, settings.max_concurrency, settings.debug, settings.threads) == ("fake", 7, True, 0)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("MAX_CONCURRENCY", "1", 1),
        ("MAX_CONCURRENCY", "1000", 1000),
        ("DRAIN_TIMEOUT_S", "0", 0.0),
        ("DRAIN_TIMEOUT_S", "3600", 3600.0),
        ("PRECISION", "BF16", "bf16"),
        ("BUNDLE_CACHE", "/b", Path("/b")),
        ("BUNDLE_SHA256", "0aF9" * 16, "0aF9" * 16),
        *(("ALLOW_CPU", text, True) for text in ("1", "true", "YES")),
        *(("CPU_LANES", text, False) for text in ("0", "False", "no")),
    ],
)
def test_what_is_allowed_is_read(name: str, text: str, value: Any):
    (field,) = (item.name for item in fields(Settings) if item.metadata["env"] == name)
    assert Settings.from_environ({name: text}) == Settings(**{field: value})


def test_every_default_could_be_set_as_well():
    for item in fields(Settings):
        if item.default not in ("", (), None):
            text = str(int(item.default) if isinstance(item.default, bool) else item.default)
            assert Settings.from_environ({item.metadata["env"]: text}) == Settings(), item.name


@pytest.mark.parametrize(
    ("name", "value", "fix"),
    [
        ("MAX_CONCURRENCY", "0", "a whole number from 1 to 1000"),
        ("MAX_CONCURRENCY", "1001", "a whole number from 1 to 1000"),
        ("MAX_CONCURRENCY", "many", "a whole number from 1 to 1000"),
        ("ENGINE", "tensorflow", f"one of {', '.join(ENGINES)}"),
        ("WORKER_LOOP", "loop", "one of events, sdk, http"),
        ("DRAIN_TIMEOUT_S", "nan", "a number of seconds from 0 to 3600"),
        ("DRAIN_TIMEOUT_S", "-0.1", "a number of seconds from 0 to 3600"),
        ("DRAIN_TIMEOUT_S", "3600.1", "a number of seconds from 0 to 3600"),
        ("CPU_LANES", "maybe", "1 or 0"),
        ("BUNDLE_SHA256", "0" * 63, "the first word of the bundle's manifest.sha256"),
        ("BUNDLE_SHA256", "0" * 65, "the first word of the bundle's manifest.sha256"),
    ],
)
def test_an_error_names_variable_value_and_fix(name: str, value: str, fix: str):
    with pytest.raises(ConfigError) as error:
        Settings.from_environ({name: value})
    (default,) = (item.default for item in fields(Settings) if item.metadata["env"] == name)  # a fork may have others
    shown = "none" if default == "" else int(default) if isinstance(default, bool) else default
    assert str(error.value) == f"{name}={value!r} is not allowed; set it to {fix}, or leave it out for {shown}"


def test_a_value_that_is_long_is_cut():
    with pytest.raises(ConfigError, match=f"MAX_ITEMS='{'9' * 80}' is not allowed"):
        Settings.from_environ({"MAX_ITEMS": "9" * 90})


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        ("https://me:hunter2@example.org/a b.tar", "https://***@example.org/a b.tar"),
        ("https://hunter2@example.org/ b", "https://***@example.org/ b"),
        ("https://me:hunter2@hunter2?hunter2@example.org/ b", "https://***@example.org/ b"),
        ("https://example.org/b.tar?signature=hunter2 ", "https://example.org/b.tar?***"),
        ("https://me:hunter2@example.org//b.tar", "https://***@example.org//b.tar"),
        ("me:hunter2@example.org", "***@example.org"),
        ("name@revision", "name@revision"),
    ],
)
def test_what_may_be_a_secret_is_not_printed(value: str, printed: str):
    with pytest.raises(ConfigError) as error:
        Settings.from_environ({"MAX_ITEMS": value})
    assert f"MAX_ITEMS={printed!r} is not allowed" in str(error.value)
