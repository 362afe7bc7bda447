"""What `python -m export` answers the shell with. docs/export.md tells users; a test compares the two."""

from __future__ import annotations

OK = 0
GATE_FAILED = 1
"""The model was exported and answers otherwise than PyTorch does: look at it before trying again."""
REFUSED = 2
"""What was asked for cannot be done: change the command, the recipe or the model."""
UNAVAILABLE = 3
"""Disk, memory, a GPU, a package, the Hub or RunPod is missing: the same command may pass elsewhere, or later."""
DEFECT = 4
"""A mistake of ours; the traceback is on stderr."""
INTERRUPTED = 130

STATUS = {
    OK: "written",
    GATE_FAILED: "gate failed",
    REFUSED: "refused",
    UNAVAILABLE: "unavailable",
    DEFECT: "defect",
    INTERRUPTED: "interrupted",
}
"""The word for each, in the object of --json."""
