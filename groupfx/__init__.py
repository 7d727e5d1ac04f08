"""Find grouped convolutions in PyTorch models, rewrite them, and prove that nothing changed.

Importing this package does not import torch: each name below is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import GroupfxError
from .version import __version__

if TYPE_CHECKING:
    from .api import FoundSite, Loaded, find, load, rewrite
    from .deploy import Export, Validation
    from .onnx_api import export, find_onnx, rewrite_onnx, validate
    from .rewriting import Pass, Pipeline, Report, Result, Site, Skip

_PUBLIC = {
    "FoundSite": "api",
    "Loaded": "api",
    "find": "api",
    "load": "api",
    "rewrite": "api",
    "Export": "deploy",
    "Validation": "deploy",
    "export": "onnx_api",
    "find_onnx": "onnx_api",
    "rewrite_onnx": "onnx_api",
    "validate": "onnx_api",
    "Pass": "rewriting",
    "Pipeline": "rewriting",
    "Report": "rewriting",
    "Result": "rewriting",
    "Site": "rewriting",
    "Skip": "rewriting",
}

__all__ = [
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
    "Validation",
    "__version__",
    "export",
    "find",
    "find_onnx",
    "load",
    "rewrite",
    "rewrite_onnx",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'groupfx' has no attribute {name!r}")
    value = getattr(import_module(f".{_PUBLIC[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
