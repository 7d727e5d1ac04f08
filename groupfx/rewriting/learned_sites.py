"""Layers with learned groups as sites: how they are read, and when they are refused."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..convs.calls import ConvCall, Stored, Unreadable
from ..convs.spec import CONV_TYPES, ConvSpec, original_type, spec_of_module
from ..errors import kind_and_line
from ..learned.groups import (
    CONV,
    INPUT_SCORES,
    OUTPUT_SCORES,
    UnfitMapsError,
    groups_of,
    has_learned_groups,
    is_balanced,
)
from ..nn import Flgc1d, Flgc2d, Flgc3d
from ..nn.flgc import BALANCED
from ..running.float64 import Float64
from ..running.unchanged import unchanged
from ..tracing.hooks import lost_with
from .site import Site
from .weights import MaskedLayer

_TOLERANCE = 1e-12
_CONVOLVE: Mapping[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def learned_calls(root: fx.GraphModule) -> Mapping[fx.Node, ConvCall | Unreadable]:
    """Every call of a layer with learned groups in the graph of `root`, in order.

    The description is that of the dense convolution inside, under the path of the layer.
    """
    found: dict[fx.Node, ConvCall | Unreadable] = {}
    for node in root.graph.nodes:
        if node.op != "call_module":
            continue
        path = str(node.target)
        layer = root.get_submodule(path)
        if not has_learned_groups(layer):
            continue
        conv = layer.get_submodule(CONV)
        spec = spec_of_module(conv)
        if spec is None:
            reason = f"its {CONV} is a {type(conv).__name__}, which may compute something else"
            found[node] = Unreadable(node, f"{reason} than torch's own convolutions")
            continue
        if not _takes_one_value(node):
            found[node] = Unreadable(node, "it is called with more than one value")
            continue
        bias = Stored(f"{path}.{CONV}.bias") if spec.bias else None
        weight = Stored(f"{path}.{CONV}.weight")
        found[node] = ConvCall(spec, node, weight, bias, path, learned=True)
    return found


def read_layer(site: Site) -> MaskedLayer | str:
    """The layer of the site, or why it cannot be frozen.

    Its `padding_mode` is the one that its forward uses: the public FLGC code pads with zeros,
    whatever its conv says.
    """
    layer = site.module
    assert layer is not None
    conv = layer.get_submodule(CONV)
    try:
        groups = groups_of(layer, site.name)
    except UnfitMapsError as error:
        return error.reason
    reason = _kept_back(site, layer, conv)
    if reason is not None:
        return reason
    lost = _without_probabilities(layer) if is_balanced(layer) else 0
    if lost:
        has = "1 channel has" if lost == 1 else f"{lost} channels have"
        return f"{has} NaN or infinity among its scores, and so all it computes is NaN; train anew"
    mask = groups.mask()
    spec = _confirmed(layer, conv, mask)
    if isinstance(spec, str):
        return spec
    state = layer.state_dict(keep_vars=True)
    bias_key = f"{CONV}.bias" if spec.bias else None
    computing = {f"{CONV}.weight", bias_key, INPUT_SCORES, OUTPUT_SCORES, BALANCED}
    return MaskedLayer(
        spec=spec,
        path=site.call.path,
        key=f"{CONV}.weight",
        dense=conv.get_parameter("weight"),
        bias_key=bias_key,
        bias=conv._parameters["bias"],
        template=conv,
        factors=mask,
        # It may decide something, as a temperature does.
        fixed={key: tensor for key, tensor in state.items() if key not in computing},
        groups=groups,
    )


def _without_probabilities(layer: nn.Module) -> int:
    """How many channels have a row of scores whose softmax is no number."""
    maps = (getattr(layer, name).detach().float() for name in (INPUT_SCORES, OUTPUT_SCORES))
    return sum(int(torch.softmax(scores, 1).isnan().any(1).sum()) for scores in maps)


def _kept_back(site: Site, layer: nn.Module, conv: nn.Module) -> str | None:
    """Why nothing may take the layer's place, whatever it computes; None if something may."""
    hooks = [*site.store.hooks(layer), *site.store.hooks(conv)]
    if hooks:
        return lost_with(hooks)
    if original_type(conv) not in CONV_TYPES or nn.utils.parametrize.is_parametrized(conv):
        return f"its conv is a {type(conv).__name__}, whose weight is not simply stored"
    if nn.utils.parametrize.is_parametrized(layer):
        return "its group maps are parametrised; call remove_parametrizations first"
    shared = site.store.used_apart(layer)
    if shared is not None:
        return shared
    calls = site.store.call_nodes(layer)
    if not all(_takes_one_value(node) for node in calls):
        return "another call of it is made with more than one value"
    if not site.batched or any(_rank(node) not in (None, site.spec.dims + 2) for node in calls):
        return "its input has no batch axis; add one with unsqueeze(0)"
    return None


def _takes_one_value(node: fx.Node) -> bool:
    return len(node.args) == 1 and not node.kwargs and isinstance(node.args[0], fx.Node)


def _rank(node: fx.Node) -> int | None:
    """Dimensions of what goes into a call, where an example run recorded them."""
    shape = node.all_input_nodes[0].meta.get("shape")
    return None if shape is None else len(shape)


def _confirmed(layer: nn.Module, conv: nn.Module, mask: Tensor) -> ConvSpec | str:
    """The convolution that the layer is under its mask, or why it is none.

    Run in float64, it must give what that gives: in both modes, and in one of two ways to pad.
    """
    spec = spec_of_module(conv)
    assert spec is not None
    x = _sample(spec, conv.get_parameter("weight").device)
    named = (*layer.named_parameters(), *layer.named_buffers())
    # The maps, and what may decide with them.
    maps = [tensor for name, tensor in named if not name.startswith(f"{CONV}.")]
    # Ours reads no mode.
    modes = (False,) if type(layer) in (Flgc1d, Flgc2d, Flgc3d) else (False, True)
    with unchanged(layer), torch.no_grad(), Float64(layer, native=maps):
        try:
            found = [_run(layer, x, training) for training in modes]
        except Exception as error:
            return f"it cannot be run on {list(x.shape)}: {kind_and_line(error)}"
        errors = []
        for mode in dict.fromkeys((spec.padding_mode, "zeros")):
            expected = _masked(conv, spec, mask, x, mode)
            errors.append([_distance(value, expected) for value in found])
            if max(errors[-1]) <= _TOLERANCE:
                return replace(spec, padding_mode=mode)
        return _otherwise(layer, x, min(errors))


def _sample(spec: ConvSpec, device: torch.device) -> Tensor:
    """Two samples that are larger than the kernel's reach and than any padding."""
    padding = (0,) * spec.dims if isinstance(spec.padding, str) else spec.padding
    fields = zip(spec.kernel_size, spec.dilation, padding, strict=True)
    sizes = [(kernel - 1) * step + edge + 3 for kernel, step, edge in fields]
    generator = torch.Generator().manual_seed(17)
    shape = (2, spec.in_channels, *sizes)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device)


def _run(layer: nn.Module, x: Tensor, training: bool) -> object:
    for module in layer.modules():
        module.training = training
    return layer(x.clone())


def _masked(conv: nn.Module, spec: ConvSpec, mask: Tensor, x: Tensor, padding_mode: str) -> Tensor:
    weight, bias = conv.get_parameter("weight"), conv._parameters["bias"]
    masked = weight.double() * mask.to(weight.device)[(..., *(None,) * spec.dims)]
    if padding_mode == "zeros":
        convolve = _CONVOLVE[spec.dims]
        return convolve(x, masked, bias, spec.stride, spec.padding, spec.dilation)
    result: Tensor = conv._conv_forward(x, masked, bias)  # type: ignore[operator]
    return result


def _distance(found: object, expected: Tensor) -> float:
    """max|d| / max|y|; infinite where `found` is no such tensor."""
    if not isinstance(found, Tensor) or found.shape != expected.shape:
        return math.inf
    error = float((found.double() - expected).abs().max())
    scale = float(expected.abs().max())
    if error == 0:
        return 0.0
    return error / scale if math.isfinite(error) and scale > 0 else math.inf


def _otherwise(layer: nn.Module, x: Tensor, errors: Sequence[float]) -> str:
    """Why the layer is not the masked convolution; `errors` are those in eval and train mode."""
    other = x.flip(tuple(range(1, x.dim())))
    runs = [_run(layer, value, False) for value in (x, x, other, x + other, 0 * x)]
    differs = (
        f"differs from that of the masked convolution by {max(errors):.2g} of its largest value"
    )
    tensors = [value for value in runs if isinstance(value, Tensor)]
    if len(tensors) == len(runs):
        first, again, second, both, nothing = tensors
        if _distance(again, first) > 0:
            return (
                f"its mask is not static: each call computes something else; its output {differs}"
            )
        if _distance(both, first + second - nothing) > _TOLERANCE:
            return (
                "its mask depends on the input, so there are no groups to freeze: its output is "
                f"not linear in the input, and {differs}"
            )
    mode = " in train mode" if errors[0] <= _TOLERANCE else ""
    text = (
        f"it holds what a learned-group layer holds and computes something else{mode}: its output "
        f"{differs}"
    )
    if getattr(layer, INPUT_SCORES).dtype in (torch.float16, torch.bfloat16):
        text += "; its maps are in half precision, where scores tie: call .float() first"
    return text
