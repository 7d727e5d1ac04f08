"""The fastest form of each site, measured in the whole model, on this machine."""

from .backends import backend_named, backend_names, runs_torch
from .benchmark import Latency, Raced, race_models
from .plan_file import PlannedRecipe, TuningPlan, read_plan
from .probe import cpu_name
from .ratios import Ratio
from .tune import Tuning, TuningOptions, tune_graph, tune_module

__all__ = [
    "Latency",
    "PlannedRecipe",
    "Raced",
    "Ratio",
    "Tuning",
    "TuningOptions",
    "TuningPlan",
    "backend_named",
    "backend_names",
    "cpu_name",
    "race_models",
    "read_plan",
    "runs_torch",
    "tune_graph",
    "tune_module",
]
