"""Models whose convolutions run on whole numbers: named, with the way that works.

Three kinds of them are known by what holds the weight: modules of `torch.ao.nn.quantized` and
torchao, weights that are tensors of torchao or quantised ones, and graphs after `convert_pt2e`,
where a weight is dequantised in front of each convolution. No pass cuts a packed weight, and one
that is cut behind its dequantisation is no weight of whole numbers any more.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from ..errors import ModelError

_MODULES = (
    "torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized",
    "torch.nn.intrinsic.quantized", "torchao.",
)  # fmt: skip
_SHOWN = 3


@dataclass(frozen=True)
class QuantisedLayer:
    """A layer that runs on whole numbers: its path, and what it is, such as a class.

    `packed` says that torch.export does not take it.
    """

    path: str
    kind: str
    packed: bool

    @property
    def is_convolution(self) -> bool:
        """Whether it is one, by the name of its class or operator."""
        return "conv" in self.kind.lower()

    def __str__(self) -> str:
        return f"{self.path} ({self.kind})" if self.path else self.kind


def quantised_layers(model: nn.Module) -> Iterator[QuantisedLayer]:
    """Every layer of a model that runs on whole numbers, in the order of its modules."""
    inside: str | None = None
    for path, module in model.named_modules():
        kind = type(module)
        if inside is not None and path.startswith(inside):
            continue  # what a layer packs its weight in
        if kind.__module__.startswith(_MODULES):
            inside = f"{path}." if path else path
            yield QuantisedLayer(path, f"{kind.__module__}.{kind.__qualname__}", packed=True)
            continue
        for held in module._parameters.values():
            if held is not None and _is_quantised(held):
                made = f"{kind.__qualname__} with a weight of {type(held).__qualname__}"
                yield QuantisedLayer(path, made, packed=True)
        if isinstance(module, fx.GraphModule):
            yield from _dequantised(path, module)


def _is_quantised(tensor: Any) -> bool:
    held = tensor.data if isinstance(tensor, nn.Parameter) else tensor
    return bool(held.is_quantized) or type(held).__module__.startswith("torchao")


def _dequantised(path: str, module: fx.GraphModule) -> Iterator[QuantisedLayer]:
    """Convolutions of a graph whose weight is dequantised, and operators of packed ones."""
    for node in module.graph.nodes:
        space = _namespace(node)
        name = ".".join(word for word in (path, node.name) if word)
        if space == "quantized":
            yield QuantisedLayer(name, str(node.target), packed=True)
        elif "conv" in str(node.target) and _reads_dequantised(node):
            yield QuantisedLayer(name, f"{node.target} of a dequantised weight", packed=False)


def _namespace(node: fx.Node) -> str:
    target = node.target
    return target.namespace if isinstance(target, torch._ops.OpOverload) else ""


def _reads_dequantised(node: fx.Node) -> bool:
    """Whether the weight of a convolution comes from a dequantisation, through whatever views."""
    weight = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
    while isinstance(weight, fx.Node) and weight.op == "call_function":
        if _namespace(weight) in ("quantized_decomposed", "torchao"):
            return True
        sources = weight.all_input_nodes
        weight = sources[0] if sources else None
    return False


def quantises(module: nn.Module) -> bool:
    """Whether `module` is trained for quantisation: torch.ao's fake quantisers lie in it.

    What `convert` makes of it later is made of the layer itself. Their kernels trust what they are
    given, so that a graph with them would not be held by a file either.
    """
    return any(
        type(each).__module__.startswith("torch.ao.quantization") for each in module.modules()
    )


def refuse_quantised(model: nn.Module) -> None:
    """Raise `ModelError` where a convolution runs on whole numbers, with the way that works."""
    found = [layer for layer in quantised_layers(model) if layer.is_convolution]
    if found:
        raise ModelError(
            f"{_named(found)}: quantised convolutions are not rewritten in torch. {_way(found)}, "
            "and rewrite the file: groupfx rewrite model.onnx. Or rewrite the model before it is "
            "quantised"
        )


def refuse_packed(model: nn.Module) -> None:
    """Raise `ModelError` where torch.export does not take a layer, with the way that works."""
    found = [layer for layer in quantised_layers(model) if layer.packed]
    if found:
        raise ModelError(
            f"{_named(found)}: torch.export takes no packed weights of whole numbers. "
            f"{_way(found)}; its convolutions are rewritten there: groupfx rewrite model.onnx"
        )


_REFERENCE = "torch.ao.nn.quantized.reference"


def _way(found: list[QuantisedLayer]) -> str:
    """How to make an ONNX file of a model with these layers."""
    packed = any(layer.packed for layer in found)
    how = "dynamo=False" if packed else "dynamo=True"
    export = f'torch.onnx.export(model, inputs, "model.onnx", {how})'
    if any(layer.kind.startswith(_REFERENCE) for layer in found):
        return f"Convert it by convert_fx, not to reference modules, export that, {export}"
    return f"Export it as it is, {export}"


def _named(found: list[QuantisedLayer]) -> str:
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    run = "run" if len(found) > 1 else "runs"
    return f"{', '.join(map(str, found[:_SHOWN]))}{more} {run} on whole numbers"
