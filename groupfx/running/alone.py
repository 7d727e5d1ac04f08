"""One of us at a time, where torch knows no threads.

A symbolic trace and `torch.export` change classes of torch while they run, and the random state and
a model's modes are put back afterwards: two threads that do that at once would see each other's
half. Code of the user's beside is not held up.
"""

import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# For one thread any number of times: a rewrite traces, and runs, and traces again.
ALONE = threading.RLock()


def alone(function: Callable[P, T]) -> Callable[P, T]:
    """`function`, of which one at a time runs, whichever of those that are decorated it is."""

    @functools.wraps(function)
    def held(*args: P.args, **kwargs: P.kwargs) -> T:
        with ALONE:
            return function(*args, **kwargs)

    return held
