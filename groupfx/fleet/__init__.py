"""Many models at once, each in a process of its own.

What is here needs no torch, but for `worker`, which the processes of the models load.
"""

from .entries import Entry, Fleet, Limits, Reading, Refused, Work, memory_size
from .failures import CLASSES, Failure, FailureClass
from .manifest import read_fleet
from .results import ModelResult, Outcome
from .runner import FleetOptions, FleetResult, run_fleet

__all__ = [
    "CLASSES",
    "Entry",
    "Failure",
    "FailureClass",
    "Fleet",
    "FleetOptions",
    "FleetResult",
    "Limits",
    "ModelResult",
    "Outcome",
    "Reading",
    "Refused",
    "Work",
    "memory_size",
    "read_fleet",
    "run_fleet",
]
