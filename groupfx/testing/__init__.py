"""What checks passes, and converters and runtimes: for tests of yours."""

from .conformance import Adapter, Conformance, Judged, conformance, converted, outputs_by_name
from .kit import Answer, Case, all_cases
from .passes import check_pass

__all__ = [
    "Adapter",
    "Answer",
    "Case",
    "Conformance",
    "Judged",
    "all_cases",
    "check_pass",
    "conformance",
    "converted",
    "outputs_by_name",
]
