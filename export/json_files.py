"""Reading a model's JSON files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from export.errors import Refused


def read_json(path: Path) -> Any:
    """The content of a JSON file; {} when there is none. Raises Refused when it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise Refused(f"{path} is not valid JSON ({error}); download the model again") from None
