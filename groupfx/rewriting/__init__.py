"""The pass framework: passes, sites, pipelines and reports."""

from ..plan.notes import Note
from ..running.totals import Complexity, Totals, totals
from .checking import Progress
from .driver import PassResult, UnreadableSite, find_sites, require_sites, run_pass
from .operation_pass import (
    OperationPass,
    Place,
    Respelled,
    Spelling,
    has_node,
    reads_size,
    shape_of,
)
from .pass_ import Convolution, Option, Pass, Rewritten, Skip, name_matches, unwanted
from .pipeline import Pipeline, example_inputs
from .report import PassSummary, Report, RewrittenSite, SkippedSite
from .result import Result
from .site import BatchNorm, Site
from .store import Store

__all__ = [
    "BatchNorm",
    "Complexity",
    "Convolution",
    "Note",
    "OperationPass",
    "Option",
    "Pass",
    "PassResult",
    "PassSummary",
    "Pipeline",
    "Place",
    "Progress",
    "Report",
    "Respelled",
    "Result",
    "Rewritten",
    "RewrittenSite",
    "Site",
    "Skip",
    "SkippedSite",
    "Spelling",
    "Store",
    "Totals",
    "UnreadableSite",
    "example_inputs",
    "find_sites",
    "has_node",
    "name_matches",
    "reads_size",
    "require_sites",
    "run_pass",
    "shape_of",
    "totals",
    "unwanted",
]
