"""`python tests/e2e/chaos_worker.py`: the worker, its fake engine failing where the environment says so.

Rows decide, not chance, so a run can be repeated and its culprits are known: a row that holds the token id in
CHAOS_RAISE makes its batch raise, CHAOS_NAN makes the row's own output NaN, CHAOS_HANG makes the run last for ever.
CHAOS_FLAKY is the share of runs that raise whatever they hold, CHAOS_SLEEP_MS what every run lasts.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # started as a file, so its own folder stands there instead


def main() -> int:
    """Patch the engine's class, then be the worker."""
    from engine.backends.fake import FakeEngine
    from handler.__main__ import main as serve

    raising, nan, hanging = (int(os.environ.get(name, -1)) for name in ("CHAOS_RAISE", "CHAOS_NAN", "CHAOS_HANG"))
    flaky, sleep_s = float(os.environ.get("CHAOS_FLAKY", 0)), float(os.environ.get("CHAOS_SLEEP_MS", 0)) / 1e3
    draw = random.Random(0)
    healthy_finish = FakeEngine.finish

    def finish(self, slot=0):
        ids = self.feeds(self._started[slot], slot)["input_ids"]
        time.sleep(1e6 if (ids == hanging).any() else sleep_s)
        if (ids == raising).any() or draw.random() < flaky:
            del self._started[slot]
            raise RuntimeError("chaos")
        outputs = healthy_finish(self, slot)
        outputs["embedding"][(ids == nan).any(axis=1)] = float("nan")
        return outputs

    FakeEngine.finish = finish  # type: ignore[method-assign]
    return serve()


if __name__ == "__main__":
    sys.exit(main())
