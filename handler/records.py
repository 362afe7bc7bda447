"""What a task, or a package that it uses, tells Python's `logging`, as lines of the worker's own."""

from __future__ import annotations

import logging

from handler.log import log

_LEVELS = ((logging.ERROR, "ERROR"), (logging.WARNING, "WARN"), (logging.INFO, "INFO"), (logging.NOTSET, "DEBUG"))


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            log(next(name for least, name in _LEVELS if record.levelno >= least), self.format(record))
        except Exception:  # as every handler of logging does it, of a message that does not fit its arguments
            self.handleError(record)


def show_records() -> None:
    """Print what is logged at INFO and above, as `log` does; not where somebody has set up `logging` already.

    In the SDK's own modes as well, which else has a form of its own for it.
    """
    if not logging.root.handlers:
        logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[_Lines()])
