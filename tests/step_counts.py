"""How much a piece of work does, as a number that no busy machine changes: its steps, counted."""

import gc
import sys
from collections.abc import Callable
from types import FrameType


def steps_of(work: Callable[[], object]) -> int:
    """Lines of Python that `work` goes through, and calls that it makes, of C's functions too.

    A loop's lines count in each round, so that work for each pair of n parts shows as n times n.
    What a C function does inside is one step. Run `work` once before: no import and no cache that
    is filled should count.
    """
    steps = 0

    def line(frame: FrameType, event: str, argument: object) -> object:
        nonlocal steps
        steps += event in ("call", "line")
        return line

    def call(frame: FrameType, event: str, argument: object) -> None:
        nonlocal steps
        steps += event == "c_call"

    before, collecting = (sys.gettrace(), sys.getprofile()), gc.isenabled()
    gc.disable()  # what finalizers do is another test's
    sys.settrace(line)
    sys.setprofile(call)
    try:
        work()
    finally:
        sys.settrace(before[0])
        sys.setprofile(before[1])
        if collecting:
            gc.enable()
    return steps
