"""What libraries say: kept off the terminal, or made one line of a refusal."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from export.errors import Refused, refusal_of


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what transformers and optimum say beside errors off the terminal, inside the block only."""
    import torch  # noqa: F401  (without it transformers has a warning to say before the import fails)
    from optimum.utils import logging as optimum_logging
    from transformers.utils import logging as transformers_logging

    libraries = (transformers_logging, optimum_logging)
    levels, has_bars = [one.get_verbosity() for one in libraries], transformers_logging.is_progress_bar_enabled()
    for one in libraries:
        one.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # Deprecations inside the libraries and notes on tracing: nothing a user can act on. What would be wrong
            # with the result, the parity gate measures.
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(libraries, levels, strict=True):
            one.set_verbosity(level)
        if has_bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def unlogged(level: int) -> Iterator[None]:
    """Inside the block, nothing up to `level` of Python's own logging is told."""
    before = logging.root.manager.disable
    logging.disable(level)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def needing(model: str, what: str) -> Iterator[None]:
    """Make a refusal of what transformers or tokenizers raise over a file that `what` is made of, whatever that is."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of the tokenizers library
            raise
        said = f"{model} has no {what}: {first_line(error)}; its folder needs what save_pretrained writes"
        raise refusal_of(error) or Refused(said) from error


def first_line(error: BaseException) -> str:
    """What an exception of a library says, cut to one line: of weights that do not fit, the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if line.startswith("size mismatch")), lines[0])[:300]
