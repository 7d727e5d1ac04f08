"""Log lines of torch about what it refuses: whoever asked gets the reason, and says it."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """While active, no logger writes errors or less."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.ERROR))
    try:
        yield
    finally:
        logging.disable(before)
