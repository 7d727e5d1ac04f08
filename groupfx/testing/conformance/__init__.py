"""The kit against converters and runtimes: run, judge, count."""

from .adapter import Adapter, converted, outputs_by_name
from .judging import Judged
from .running import Conformance, conformance

__all__ = ["Adapter", "Conformance", "Judged", "conformance", "converted", "outputs_by_name"]
