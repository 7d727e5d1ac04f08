"""Where an operator takes a number of the file from a size that was to stay open.

The groups of a convolution, or the window of a pooling, may be computed from the batch (one kernel
a sample) or from the spatial sizes. In ONNX they are attributes, which are constants.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ...convs.names import module_path
from ...errors import ModelError

_TRANSLATING = re.compile(r"Error when translating node %(\w+)")


@dataclass(frozen=True)
class OpenSize:
    """An argument of an operator that is computed from an open size. `batch` says from the first.

    `operator` has the module in which it is called.
    """

    operator: str
    argument: str
    batch: bool

    def __str__(self) -> str:
        origin = "the batch" if self.batch else "the spatial sizes"
        return (
            f"{self.operator} takes its {self.argument} from {origin}, and in an ONNX file "
            f"{'they are' if self.argument.endswith('s') else 'it is'} a constant"
        )


class OpenSizeError(ModelError):
    """A model that has no form in ONNX with a size open; with it fixed it may have one."""

    def __init__(self, found: OpenSize) -> None:
        super().__init__(f"{found}: export it with that size fixed")
        self.found = found


def open_size(program: torch.export.ExportedProgram, error: BaseException) -> OpenSize | None:
    """What of an open size the exporter could not translate, if it was that."""
    name = next((m[1] for text in _texts(error) if (m := _TRANSLATING.search(text))), None)
    firsts = set(_first_sizes(program))
    for node in program.graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload) or name is None:
            continue
        operator = node.target._schema.name.removeprefix("aten::")
        # The exporter has another name for a convolution that it takes apart.
        if node.name != name and not (operator.startswith("conv") and name.startswith("conv")):
            continue
        for argument, value in _arguments(node):
            symbols = {str(symbol) for symbol in _symbols(value)}
            if symbols:
                where = module_path(node) or "the model itself"
                return OpenSize(f"{operator} (in {where})", argument, bool(symbols & firsts))
    return None


def _texts(error: BaseException | None) -> Iterator[str]:
    while error is not None:
        yield str(error)
        error = error.__cause__


def _arguments(node: fx.Node) -> Iterator[tuple[str, Any]]:
    """Names and values of what is given to an operator and is no tensor."""
    assert isinstance(node.target, torch._ops.OpOverload)
    names = [argument.name for argument in node.target._schema.arguments]
    yield from zip(names, node.args, strict=False)
    yield from node.kwargs.items()


def _symbols(value: Any) -> Iterator[Any]:
    """Symbols of the sizes that an argument is computed from."""
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from _symbols(part)
    elif isinstance(value, fx.Node):
        yield from _symbols(value.meta.get("val"))
    elif isinstance(value, torch.SymInt):
        yield from getattr(value.node.expr, "free_symbols", ())


def _first_sizes(program: torch.export.ExportedProgram) -> Iterator[str]:
    """Symbols of the first sizes of the inputs."""
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder" and isinstance(value, torch.Tensor) and value.dim():
            yield from (str(symbol) for symbol in _symbols(value.shape[0]))
