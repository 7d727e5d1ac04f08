"""Three ways into a model: a symbolic trace, its convolution modules, or `torch.export`."""

from ..nn.swapped import SwappedConv
from .exporting import ExportedModule, export_program
from .given import inputs_of, module_of
from .opening import open_model
from .program import WAYS, Fragment, Program, Shapes, Way
from .tracer import CannotTrace

__all__ = [
    "WAYS",
    "CannotTrace",
    "ExportedModule",
    "Fragment",
    "Program",
    "Shapes",
    "SwappedConv",
    "Way",
    "export_program",
    "inputs_of",
    "module_of",
    "open_model",
]
