"""What lies in memory already, kept out of the garbage collector's rounds while much is made.

torch and what it loads are a million objects, none of which becomes garbage; a rewrite makes tens
of thousands, and every few of them Python's collector goes through all that there are.
"""

import contextlib
import gc
from collections.abc import Iterator


class _Kept:
    """Whether old objects are kept out already, for good or for a while."""

    for_good = False
    now = False


@contextlib.contextmanager
def new_objects_alone() -> Iterator[None]:
    """Within it, the collector looks at what is made within it. For one thread at a time.

    Where the process keeps objects out already (`gc.freeze`), that stays as it is.
    """
    if _Kept.for_good or _Kept.now or gc.get_freeze_count():
        yield
        return
    _Kept.now = True
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        _Kept.now = False


def keep_out_for_good() -> None:
    """All that there is, in a process that forks others and makes nothing itself."""
    gc.collect()
    gc.freeze()
    _Kept.for_good = True
