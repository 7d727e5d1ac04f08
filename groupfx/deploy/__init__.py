"""ONNX: export, run, validate; read files of any producer and split what is grouped in them."""

from .exporting import (
    DType,
    Export,
    ExportedSite,
    ExportOptions,
    PreparedExport,
    SlowExportWarning,
    TensorInfo,
    prepare_export,
)
from .files import check_onnx, check_target, write_onnx
from .onnx_graph import DEFAULT_OPSET
from .output_checks import OutputCheck
from .reading import read_onnx
from .rewrite_onnx import OnnxRewrite, OnnxSite, OnnxSkipped, OnnxTotals, split_onnx
from .rewrite_onnx import find_onnx as find_in_onnx
from .sides import OnnxSide, TorchSide
from .site_checks import SiteCheck
from .torch_export import Dynamic
from .validating import Progress, Validation, ValidationOptions, validate_sides

__all__ = [
    "DEFAULT_OPSET",
    "DType",
    "Dynamic",
    "Export",
    "ExportOptions",
    "ExportedSite",
    "OnnxRewrite",
    "OnnxSide",
    "OnnxSite",
    "OnnxSkipped",
    "OnnxTotals",
    "OutputCheck",
    "PreparedExport",
    "Progress",
    "SiteCheck",
    "SlowExportWarning",
    "TensorInfo",
    "TorchSide",
    "Validation",
    "ValidationOptions",
    "check_onnx",
    "check_target",
    "find_in_onnx",
    "prepare_export",
    "read_onnx",
    "split_onnx",
    "validate_sides",
    "write_onnx",
]
