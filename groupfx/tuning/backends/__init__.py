"""Runtimes on which a model can be tuned: a file each."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from ...errors import UsageError
from .backend import Backend, NodeTime, Profile, Program
from .session import Session, require_dimensions, session_text

__all__ = [
    "Backend",
    "NodeTime",
    "Profile",
    "Program",
    "Session",
    "backend_named",
    "backend_names",
    "require_dimensions",
    "runs_torch",
    "session_text",
]

_FILES: Mapping[str, str] = {
    "onnxruntime": "onnx_runtime",
    "openvino": "open_vino",
    "torch": "torch_eager",
    "torch.compile": "torch_compile",
}
_OF_TORCH = ("torch", "torch.compile")


def backend_names() -> tuple[str, ...]:
    """Those that there are; the first is the default."""
    return tuple(_FILES)


def runs_torch(name: str) -> bool:
    """Whether the backend `name` runs modules of torch, and no ONNX graphs."""
    return name in _OF_TORCH


def backend_named(name: str) -> Backend:
    """The backend `name`. Raises UsageError for another name, MissingDependencyError without it."""
    if name not in _FILES:
        raise UsageError(f"there is no backend {name!r}: choose one of {', '.join(_FILES)}")
    found: Backend = import_module(f"{__name__}.{_FILES[name]}").BACKEND
    found.require()
    return found
