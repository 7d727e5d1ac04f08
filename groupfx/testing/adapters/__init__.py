"""Adapters of the kit for tools that pip installs: a file each, with one or more `ADAPTERS`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from ...errors import UsageError
from ...files.models.factories import named
from ..conformance.adapter import Adapter
from ..conformance.command import command_adapter, is_command

# The tools of each file; a file is imported when one of them is asked for.
_FILES: Mapping[str, tuple[str, ...]] = {
    "onnx_runtime": (
        "onnxruntime",
        "onnxruntime-basic",
        "onnxruntime-extended",
        "onnxruntime-off",
    ),
    "onnx_versions": ("onnx-version-up", "onnx-version-down"),
    "onnx_script": (
        "onnxscript-optimizer",
        "onnxscript-rewriter",
        "onnxscript-version-up",
        "onnx-ir-passes",
    ),
    "onnx_simplifier": ("onnxsim",),
    "onnx_slim": ("onnxslim",),
    "onnx_optimizer": ("onnxoptimizer",),
    "onnx_reference": ("onnx-reference",),
    "open_vino": ("openvino",),
    "sonos_tract": ("tract",),
    "onnx_to_torch": ("onnx2torch",),
    "onnx_to_tf": ("onnx2tf",),
    "torch_fusions": ("torch-fx-fuse", "torch-fuse-conv-bn", "torch-inductor"),
    "torch_export": ("torch-onnx-export",),
    "groupfx_passes": (
        "groupfx-split",
        "groupfx-discover",
        "groupfx-fold",
        "groupfx-merge",
        "groupfx-onnxruntime",
    ),
}


def adapter_names() -> tuple[str, ...]:
    """The tools that there are adapters for, installed or not."""
    return tuple(name for names in _FILES.values() for name in names)


def require_known(tool: str) -> None:
    """Raise `UsageError` for what cannot be a tool, before anything of it is imported."""
    if is_command(tool):
        command_adapter(tool)
    elif tool not in adapter_names() and ":" not in tool:
        raise UsageError(
            f"there is no adapter {tool!r}: name one of {', '.join(adapter_names())}; one of yours "
            "as module:attribute or file.py:attribute; or a command line with {model}"
        )


def adapter_for(tool: str) -> Adapter:
    """The adapter of a name, of `module:attribute` or `file.py:attribute`, or of a command line.

    Raises `UsageError` for anything else, `MissingDependencyError` where its package is missing.
    """
    require_known(tool)
    if is_command(tool):
        return command_adapter(tool)
    for file, names in _FILES.items():
        if tool in names:
            return _built_in(file, tool)
    found = named(tool, "TOOL")
    if not isinstance(found, Adapter):
        raise UsageError(f"{tool} is a {type(found).__name__}, not a groupfx.testing.Adapter")
    return found


def _built_in(file: str, tool: str) -> Adapter:
    adapters: tuple[Adapter, ...] = import_module(f".{file}", __name__).ADAPTERS
    (found,) = (adapter for adapter in adapters if adapter.name == tool)
    return found
