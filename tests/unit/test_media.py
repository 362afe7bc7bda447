import base64
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.config import Limits, Settings
from engine.errors import ConfigError, InvalidInput
from engine.tasks import media

LIMITS = Limits(max_media_bytes=1000)


@given(st.binary(min_size=1, max_size=1000))
def test_bytes_come_back(content: bytes):
    plain = base64.b64encode(content).decode()
    lines = "\r\n".join(plain[at : at + 76] for at in range(0, len(plain), 76)) + "\n"
    quoted, coded = quote_from_bytes(content), quote_from_bytes(plain.encode(), safe="")
    values = [plain, lines, f"data:;base64,{plain}", f"DATA:image/png;a=b;Base64,{plain}", f"data:text/plain,{quoted}"]
    values += [f"data:image/png;base64,{coded}", f"data:image/png; base64 ,{plain}"]
    values += ["data:," + "".join(f"%{byte:02x}" for byte in content)]
    for value in values:
        assert media.bytes_of(value, "image", LIMITS) == content


@given(st.text("%0aAfFgG1é/").filter(len))
@example("\ud800%4")
@example("%%41%4%")
def test_what_is_no_code_stands_for_itself(text: str):
    assert media.bytes_of(f"data:,{text}", "image", LIMITS) == unquote_to_bytes(text.encode("utf-8", "surrogatepass"))


@given(st.one_of(st.text(), st.none(), st.integers(), st.lists(st.text()), st.text().map(lambda text: f"data:{text}")))
def test_anything_else_gets_a_sentence(value: Any):
    try:
        assert media.bytes_of(value, "image", LIMITS)
    except InvalidInput as error:  # and no other exception
        sentence = str(error)
    else:
        return
    assert sentence.startswith("`image`")


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (None, "`audio` must be base64, a data URI (`data:...;base64,...`) or an https URL, got null"),
        (["a"], "got a list"),
        ("", "`audio` is empty"),
        ("data:;base64,", "`audio` is empty"),
        ("data:image/png;base64", "a data URI without a comma"),
        ("AAA", "neither a URL nor valid base64 (Incorrect padding)"),
        ("AA=A", "neither a URL nor valid base64"),
        ("grüße", "neither a URL nor valid base64"),
        ("/etc/passwd!", "neither a URL nor valid base64"),
        ("http://example.org/a.png", "got a URL that begins with http:"),
        ("file:///etc/passwd", "got a URL that begins with file:"),
        ("C:\\a.png", "got something else"),
        ("A" * 1400, "has 1050 bytes, allowed are 1000 (MAX_MEDIA_BYTES)"),
        (base64.b64encode(b"x" * 1001).decode(), "has 1001 bytes, allowed are 1000"),
        ("data:," + "x" * 1001, "has 1001 bytes"),
        ("data:," + "x" * 3001, "has 3001 bytes"),
    ],
)
def test_sentences(value: Any, sentence: str):
    with pytest.raises(InvalidInput) as error:
        media.bytes_of(value, "audio", LIMITS)
    assert sentence in str(error.value)


def test_hosts_are_read_from_the_environment():
    settings = Settings.from_environ({"FETCH_HOSTS": " Media.example.org, *.cdn.example.org:65535 ,10.0.0.1, ,"})
    assert settings.fetch_hosts == ("media.example.org", "*.cdn.example.org:65535", "10.0.0.1")
    assert Settings.from_environ({"FETCH_HOSTS": "*"}).fetch_hosts == ("*",)


@pytest.mark.parametrize(
    "value", ["https://example.org", "a b", "*.", "*example.org", "a.*.org", "host:", "host:x", "host:65536", "-"]
)
def test_hosts_that_are_none_stop_the_boot(value: str):
    with pytest.raises(ConfigError, match="FETCH_HOSTS=.*host names with commas between.*leave it out for none"):
        Settings.from_environ({"FETCH_HOSTS": value})
