"""The pass framework: passes, sites, pipelines and reports."""

from ..plan.notes import Note
from ..running.totals import Complexity, Totals, totals
from .checking import Progress
from .driver import PassResult, UnreadableSite, find_sites, require_sites, run_pass
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
    "Option",
    "Pass",
    "PassResult",
    "PassSummary",
    "Pipeline",
    "Progress",
    "Report",
    "Result",
    "Rewritten",
    "RewrittenSite",
    "Site",
    "Skip",
    "SkippedSite",
    "Store",
    "Totals",
    "UnreadableSite",
    "example_inputs",
    "find_sites",
    "name_matches",
    "require_sites",
    "run_pass",
    "totals",
    "unwanted",
]
