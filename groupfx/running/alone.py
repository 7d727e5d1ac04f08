"""One of us at a time, where torch knows no threads.

A symbolic trace and `torch.export` change classes of torch while they run, and the random state and
a model's modes are put back afterwards: two threads that do that at once would see each other's
half. Code of the user's beside is not held up.

What the caller has switched on around us does not reach our runs: under autocast a model computes
something else than what is looked at, and a default device of `meta` makes tensors without values.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")

# For one thread any number of times: a rewrite traces, and runs, and traces again.
ALONE = threading.RLock()


def alone(function: Callable[P, T]) -> Callable[P, T]:
    """`function`, of which one at a time runs, whichever of those that are decorated it is.

    It runs without the caller's autocast, and without a default device that holds no values.
    """

    @functools.wraps(function)
    def held(*args: P.args, **kwargs: P.kwargs) -> T:
        with ALONE, shielded():
            return function(*args, **kwargs)

    return held


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Without what the caller has switched on for the code around us."""
    with contextlib.ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.is_inference_mode_enabled():
            # What is made in it can never be trained.
            stack.enter_context(torch.inference_mode(False))
        if torch.get_default_device().type == "meta":
            stack.enter_context(torch.device("cpu"))
        yield
