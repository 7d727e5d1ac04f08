"""Find grouped convolutions in PyTorch models, rewrite them, and prove that nothing changed.

Importing this package does not import torch: each name below is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import GroupfxError
from .version import __version__

if TYPE_CHECKING:
    from .api.bench import Benchmark, bench
    from .api.check import Checked, check
    from .api.models import FoundSite, Loaded, find, load, rewrite
    from .api.onnx import export, find_onnx, rewrite_onnx, validate
    from .api.tuning import Tuned, tune
    from .deploy import Export, Validation
    from .page import write_overlay, write_page
    from .rewriting import Pass, Pipeline, Report, Result, Site, Skip

_PUBLIC = {
    "Benchmark": "api.bench",
    "bench": "api.bench",
    "Checked": "api.check",
    "check": "api.check",
    "FoundSite": "api.models",
    "Loaded": "api.models",
    "find": "api.models",
    "load": "api.models",
    "rewrite": "api.models",
    "Tuned": "api.tuning",
    "tune": "api.tuning",
    "Export": "deploy",
    "Validation": "deploy",
    "export": "api.onnx",
    "find_onnx": "api.onnx",
    "rewrite_onnx": "api.onnx",
    "validate": "api.onnx",
    "write_overlay": "page",
    "write_page": "page",
    "Pass": "rewriting",
    "Pipeline": "rewriting",
    "Report": "rewriting",
    "Result": "rewriting",
    "Site": "rewriting",
    "Skip": "rewriting",
}

__all__ = [
    "Benchmark",
    "Checked",
    "Export",
    "FoundSite",
    "GroupfxError",
    "Loaded",
    "Pass",
    "Pipeline",
    "Report",
    "Result",
    "Site",
    "Skip",
    "Tuned",
    "Validation",
    "__version__",
    "bench",
    "check",
    "export",
    "find",
    "find_onnx",
    "load",
    "rewrite",
    "rewrite_onnx",
    "tune",
    "validate",
    "write_overlay",
    "write_page",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'groupfx' has no attribute {name!r}")
    value = getattr(import_module(f".{_PUBLIC[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
