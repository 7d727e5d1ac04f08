"""ONNX: export, run, validate; read files of any producer and split what is grouped in them."""

from .export.exporting import (
    DType,
    Export,
    ExportedSite,
    ExportOptions,
    PreparedExport,
    SlowExportWarning,
    TensorInfo,
    prepare_export,
)
from .export.onnx_graph import DEFAULT_OPSET, SiteForms
from .export.torch_export import Dynamic
from .forms.rewrite_onnx import OnnxRewrite, OnnxSite, rewrite_graph
from .forms.rewrite_onnx import find_onnx as find_in_onnx
from .forms.site_drawings import site_blocks, site_pieces
from .forms.subjects import subjects_of
from .graph.conv_nodes import sites_in
from .graph.files import check_made, check_onnx, check_target, external_files, write_onnx
from .graph.reading import read_onnx
from .validate.example_feeds import example_feeds, require_fit
from .validate.opinions import BRIEF_RUNTIMES
from .validate.output_checks import OutputCheck
from .validate.overlay import overlay
from .validate.quantised.site_noise import SiteNoise
from .validate.sides import OnnxSide, TorchSide, paired
from .validate.site_checks import SiteCheck
from .validate.validating import Progress, ValidationOptions, validate_sides
from .validate.verdict import QUANTISATION, Validation, Verdict

__all__ = [
    "BRIEF_RUNTIMES",
    "DEFAULT_OPSET",
    "QUANTISATION",
    "DType",
    "Dynamic",
    "Export",
    "ExportOptions",
    "ExportedSite",
    "OnnxRewrite",
    "OnnxSide",
    "OnnxSite",
    "OutputCheck",
    "PreparedExport",
    "Progress",
    "SiteCheck",
    "SiteForms",
    "SiteNoise",
    "SlowExportWarning",
    "TensorInfo",
    "TorchSide",
    "Validation",
    "ValidationOptions",
    "Verdict",
    "check_made",
    "check_onnx",
    "check_target",
    "example_feeds",
    "external_files",
    "find_in_onnx",
    "overlay",
    "paired",
    "prepare_export",
    "read_onnx",
    "require_fit",
    "rewrite_graph",
    "site_blocks",
    "site_pieces",
    "sites_in",
    "subjects_of",
    "validate_sides",
    "write_onnx",
]
