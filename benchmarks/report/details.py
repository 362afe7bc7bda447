"""What results files hold beside measurements."""

from __future__ import annotations

from typing import Any

from benchmarks.results_file import Results


def details(results: Results, scenario: str, name: str) -> Any:
    """`details[name]` of a file of one scenario, or `details[scenario][name]` of a file of several; None without."""
    found = results.details.get(scenario)
    if isinstance(found, dict) and name in found:
        return found[name]
    return results.details.get(name)
