"""The fastest form of each site, measured in the whole model, on this machine."""

from .backends import (
    Session,
    backend_named,
    backend_names,
    require_dimensions,
    runs_torch,
    session_text,
)
from .benchmark import Latency, Raced, race_models
from .plan_file import PlannedRecipe, TuningPlan, read_plan
from .processor import cpu_name, require_threads
from .ratios import Ratio
from .result import Tuning
from .tune import TuningOptions, tune_graph, tune_module

__all__ = [
    "Latency",
    "PlannedRecipe",
    "Raced",
    "Ratio",
    "Session",
    "Tuning",
    "TuningOptions",
    "TuningPlan",
    "backend_named",
    "backend_names",
    "cpu_name",
    "race_models",
    "read_plan",
    "require_dimensions",
    "require_threads",
    "runs_torch",
    "session_text",
    "tune_graph",
    "tune_module",
]
