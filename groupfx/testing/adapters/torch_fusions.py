"""What torch itself folds and fuses: norms into convolutions, and inductor with frozen weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..conformance.adapter import Adapter, Outputs, outputs_by_name
from ..kit import Case
from ..kit.known import Array
from .choosing import one_in, with_torch

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# A compilation takes seconds.
_COMPILED = 24


def run_torch(case: Case, change: Callable[[fx.GraphModule, Any], Any]) -> Outputs:
    """The outputs of a torch case that `change` has worked on; it gets example inputs too."""
    model = case.torch()
    assert model is not None, "the adapter takes torch cases alone"
    example = tuple(torch.from_numpy(array.copy()) for array in case.feeds[0].values())
    with torch.no_grad():
        changed = change(model, example)

    def run(feeds: Mapping[str, Array]) -> list[Array]:
        with torch.no_grad():
            found = changed(*(torch.from_numpy(array.copy()) for array in feeds.values()))
        return [value.detach().numpy() for value in found]

    return outputs_by_name(case, run)


def _fused_by_fx(case: Case) -> Outputs:
    from torch.fx.experimental.optimization import fuse

    return run_torch(case, lambda model, example: fuse(model))


def _fused_by_hand(case: Case) -> Outputs:
    return run_torch(case, lambda model, example: _folded(model))


def _folded(model: fx.GraphModule) -> fx.GraphModule:
    """Each norm behind a convolution that nobody else reads, by torch's function for it."""
    for node in list(model.graph.nodes):
        if node.op != "call_module" or not isinstance(model.get_submodule(node.target), _NORMS):
            continue
        (source,) = node.args
        if source.op != "call_module" or len(source.users) != 1:
            continue
        conv = model.get_submodule(source.target)
        if isinstance(conv, _CONVS):
            transposed = isinstance(conv, _TRANSPOSED)
            norm: Any = model.get_submodule(node.target)
            fused = fuse_conv_bn_eval(conv, norm, transposed)
            model.set_submodule(source.target, fused)
            node.replace_all_uses_with(source)
            model.graph.erase_node(node)
    model.recompile()
    return model


def _compiled(case: Case) -> Outputs:
    import torch._inductor.config as config

    torch._dynamo.reset()
    with config.patch(freezing=True):
        return run_torch(case, lambda model, example: torch.compile(model))


ADAPTERS = (
    Adapter("torch-fx-fuse", _fused_by_fx, ("torch",), with_torch),
    Adapter("torch-fuse-conv-bn", _fused_by_hand, ("torch",), with_torch),
    Adapter("torch-inductor", _compiled, ("torch",), one_in(_COMPILED, with_torch)),
)
