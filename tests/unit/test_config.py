from pathlib import Path

import pytest

from engine.config import Settings
from engine.errors import ConfigError


def test_defaults_need_no_environment():
    settings = Settings.from_environ({})
    assert settings.bundle == Path("bundle")
    assert settings.engine == "auto"
    assert settings.max_items == 10_000


def test_values_are_read_and_empty_ones_are_absent():
    settings = Settings.from_environ({"ENGINE": "FAKE", "MAX_CONCURRENCY": " 7 ", "WORKER_DEBUG": "yes", "THREADS": ""})
    assert (settings.engine, settings.max_concurrency, settings.debug, settings.threads) == ("fake", 7, True, 0)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("MAX_CONCURRENCY", "0", "a whole number from 1 to 1000"),
        ("MAX_CONCURRENCY", "many", "a whole number from 1 to 1000"),
        ("ENGINE", "tensorflow", "one of auto, "),
        ("WORKER_LOOP", "loop", "one of events, sdk"),
        ("DRAIN_TIMEOUT_S", "nan", "a number of seconds from 0 to 3600"),
        ("DRAIN_TIMEOUT_S", "-1", "a number of seconds from 0 to 3600"),
        ("WORKER_DEBUG", "maybe", "1 or 0"),
    ],
)
def test_an_error_names_variable_value_and_fix(name: str, value: str, allowed: str):
    with pytest.raises(ConfigError) as error:
        Settings.from_environ({name: value})
    assert f"{name}={value!r}" in str(error.value)
    assert allowed in str(error.value)
    assert "leave it out for" in str(error.value)


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        ("https://me:hunter2@example.org/a b.tar", "https://***@example.org/a b.tar"),
        ("https://hunter2@example.org/ b", "https://***@example.org/ b"),
        ("https://me:hunter2@hunter2?hunter2@example.org/ b", "https://***@example.org/ b"),
        ("https://example.org/b.tar?signature=hunter2 ", "https://example.org/b.tar?***"),
        ("me:hunter2@example.org", "***@example.org"),
    ],
)
def test_what_may_be_a_secret_is_not_printed(value: str, printed: str):
    with pytest.raises(ConfigError) as error:
        Settings.from_environ({"MAX_ITEMS": value})
    assert f"MAX_ITEMS={printed!r} is not allowed" in str(error.value)
