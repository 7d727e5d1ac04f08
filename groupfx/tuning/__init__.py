"""The fastest form of each site, measured in the whole model, on this machine."""

from .backends import backend_names, runs_torch
from .plan_file import PlannedRecipe, TuningPlan, read_plan
from .ratios import Ratio
from .tune import Tuning, TuningOptions, tune_graph, tune_module

__all__ = [
    "PlannedRecipe",
    "Ratio",
    "Tuning",
    "TuningOptions",
    "TuningPlan",
    "backend_names",
    "read_plan",
    "runs_torch",
    "tune_graph",
    "tune_module",
]
