"""Reading a model's JSON files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from export.errors import Refused


def read_json(path: Path, kind: type[dict[str, Any]] | type[list[Any]] = dict) -> Any:
    """The object in a JSON file, or the list where `kind` says so; an empty one without the file.

    Raises Refused when it is not JSON, or something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return kind()
    except ValueError as error:
        raise Refused(f"{path} is not valid JSON ({error}); download the model again") from None
    if not isinstance(found, kind):
        raise Refused(f"{path} holds no {'list' if kind is list else 'object'} in JSON; download the model again")
    return found
