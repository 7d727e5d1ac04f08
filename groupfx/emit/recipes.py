"""How modules are made whose constructor's arguments are not attributes of the same names."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..convs.spec import (
    BATCHNORMS,
    CONV_TYPES,
    fields_of,
    norm_channels,
    original_type,
    rebuild,
    shape_of_weight,
)
from ..errors import RewriteError
from ..nn import (
    ChannelGather,
    ConstantChannels,
    Flgc1d,
    Flgc2d,
    Flgc3d,
    HookedWeight,
    MaskedConv1d,
    MaskedConv2d,
    MaskedConv3d,
    is_weight_hook,
)
from .made import Made, Numbers, from_signature


def make(module: nn.Module) -> Made:
    """A call that may make a module like `module`. Raises RewriteError where none is known."""
    if parametrize.is_parametrized(module):
        made = _plain(module)
        steps = module.get_submodule("parametrizations").named_children()
        for name, parametrization in steps:
            made = _parametrised(made, name, parametrization)
        return made
    return _under_hooks(_plain(module), module)


def _plain(module: nn.Module) -> Made:
    recipe = _RECIPES.get(original_type(module), from_signature)
    return recipe(_of_its_size(module))


def _of_its_size(module: nn.Module) -> nn.Module:
    """`module`, or a twin whose fields tell the size of its tensors, if its own do not."""
    kind = original_type(module)
    fields: dict[str, object] = {}
    if kind in CONV_TYPES:
        assert isinstance(module, _ConvNd)
        spec = fields_of(module, *CONV_TYPES[kind])
        fields = {name: getattr(spec, name) for name in _SIZES}
    elif kind is nn.Linear:
        fields["out_features"], fields["in_features"] = shape_of_weight(module)
    elif kind in BATCHNORMS:
        fields["num_features"] = norm_channels(module)
    if all(getattr(module, name) == value for name, value in fields.items()):
        return module
    return rebuild(module, module._parameters | module._buffers, **fields)


_SIZES = ("in_channels", "out_channels", "kernel_size")


def _under_hooks(made: Made, module: nn.Module) -> Made:
    """`made` with the legacy reparametrisation hooks of `module`."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            made = Made(nn.utils.weight_norm, (made,), {"name": hook.name, "dim": hook.dim})
        elif isinstance(hook, SpectralNorm):
            made = Made(nn.utils.spectral_norm, (made,), _of(hook, *_SPECTRAL))
        elif isinstance(hook, prune.BasePruningMethod) and is_weight_hook(hook, hook._tensor_name):
            mask = module.get_buffer(f"{hook._tensor_name}_mask")
            ones = Made(torch.ones, tuple(mask.shape))
            made = Made(prune.custom_from_mask, (made, hook._tensor_name), {"mask": ones})
    return made


_SPECTRAL = ("name", "n_power_iterations", "eps", "dim")


def _parametrised(made: Made, name: str, parametrization: Any) -> Made:
    for step in parametrization:
        kind = type(step).__name__
        own = type(step).__module__ == parametrizations.__name__
        if own and kind == "_WeightNorm":
            made = Made(parametrizations.weight_norm, (made,), {"name": name, "dim": step.dim})
        elif own and kind == "_SpectralNorm":
            options = _of(step, "n_power_iterations", "eps", "dim")
            made = Made(parametrizations.spectral_norm, (made,), {"name": name, **options})
        else:
            made = Made(parametrize.register_parametrization, (made, name, make(step)))
    return made


def _parametrization_list(module: nn.Module) -> Made:
    """Taken from a layer with a weight of that shape."""
    assert isinstance(module, ParametrizationList)
    # In train mode the call would change buffers.
    with torch.no_grad():
        shape = tuple(copy.deepcopy(module).eval()().shape)
    made = _parametrised(_layer_with_weight(shape), "weight", module)
    return Made(made.function, made.args, made.kwargs, "parametrizations.weight")


def _layer_with_weight(shape: tuple[int, ...]) -> Made:
    layers = {2: nn.Linear, 3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
    if len(shape) not in layers:
        raise RewriteError(f"no layer of torch.nn has a weight of shape {list(shape)}")
    rows, columns, *kernel = shape
    if not kernel:
        return Made(nn.Linear, (columns, rows))
    return Made(layers[len(shape)], (columns, rows, tuple(kernel)))


def _hooked_weight(module: nn.Module) -> Made:
    assert isinstance(module, HookedWeight)
    parameters = {
        name: None
        if tensor is None
        else Made(nn.Parameter, (Made(torch.zeros, tuple(tensor.shape)),))
        for name, tensor in module._parameters.items()
    }
    buffers = {
        name: Made(torch.zeros, tuple(tensor.shape))
        for name, tensor in module._buffers.items()
        if tensor is not None
    }
    options = _of(module, "name", "dim", "n_power_iterations", "eps")
    return Made(HookedWeight, (module.kind, parameters, buffers), options)


def _channel_gather(module: nn.Module) -> Made:
    assert isinstance(module, ChannelGather)
    return Made(ChannelGather, (list(module.channels),))


def _constant_channels(module: nn.Module) -> Made:
    assert isinstance(module, ConstantChannels)
    if isinstance(module.bias, nn.Parameter):
        zeros = Made(torch.zeros, tuple(module.bias.shape))
        return Made(ConstantChannels, (Made(nn.Parameter, (zeros,)),))
    return Made(ConstantChannels, (Numbers(module.bias),))


def _learned_groups(module: nn.Module) -> Made:
    """The arguments of the convolution inside, and the number of groups."""
    assert isinstance(module, Flgc1d | Flgc2d | Flgc3d)
    conv = from_signature(module.conv)
    options = {name: value for name, value in conv.kwargs.items() if name != "groups"}
    return Made(type(module), conv.args, {**options, "group_num": module.group_num})


def _masked_conv(module: nn.Module) -> Made:
    """A convolution of the plain class, and the mask."""
    masked = from_signature(module)
    plain = next(kind for kind in type(module).__mro__ if kind in CONV_TYPES)
    conv = Made(plain, masked.args, masked.kwargs)
    return Made(type(module), (conv, Numbers(module.get_buffer("mask"))), method="of")


def _recurrent(module: nn.Module) -> Made:
    assert isinstance(module, nn.RNNBase)
    options = _of(
        module, "num_layers", "bias", "batch_first", "dropout", "bidirectional", "proj_size"
    )
    if isinstance(module, nn.RNN):
        options["nonlinearity"] = module.nonlinearity
    if not isinstance(module, nn.LSTM):
        del options["proj_size"]
    return Made(type(module), (module.input_size, module.hidden_size), options)


def _attention(module: nn.Module) -> Made:
    assert isinstance(module, nn.MultiheadAttention)
    options = _of(module, "dropout", "add_zero_attn", "kdim", "vdim", "batch_first")
    options["bias"] = module.in_proj_bias is not None
    options["add_bias_kv"] = module.bias_k is not None
    return Made(nn.MultiheadAttention, (module.embed_dim, module.num_heads), options)


def _transformer_layer(module: nn.Module) -> Made:
    assert isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer)
    attention = module.self_attn
    options = {
        "dim_feedforward": module.linear1.out_features,
        "dropout": module.dropout.p,
        "activation": module.activation,
        "layer_norm_eps": module.norm1.eps,
        "batch_first": attention.batch_first,
        "norm_first": module.norm_first,
        "bias": module.linear1.bias is not None,
    }
    return Made(type(module), (attention.embed_dim, attention.num_heads), options)


def _transformer_stack(module: nn.Module) -> Made:
    assert isinstance(module, nn.TransformerEncoder | nn.TransformerDecoder)
    options: dict[str, Any] = {}
    if module.norm is not None:
        options["norm"] = make(module.norm)
    if isinstance(module, nn.TransformerEncoder):
        options |= _of(module, "enable_nested_tensor", "mask_check")
    return Made(type(module), (make(module.layers[0]), module.num_layers), options)


def _of(owner: object, *names: str) -> dict[str, Any]:
    return {name: getattr(owner, name) for name in names if hasattr(owner, name)}


_RECIPES: Mapping[type, Callable[[nn.Module], Made]] = {
    ChannelGather: _channel_gather,
    ConstantChannels: _constant_channels,
    Flgc1d: _learned_groups,
    Flgc2d: _learned_groups,
    Flgc3d: _learned_groups,
    HookedWeight: _hooked_weight,
    ParametrizationList: _parametrization_list,
    MaskedConv1d: _masked_conv,
    MaskedConv2d: _masked_conv,
    MaskedConv3d: _masked_conv,
    nn.GRU: _recurrent,
    nn.LSTM: _recurrent,
    nn.MultiheadAttention: _attention,
    nn.RNN: _recurrent,
    nn.TransformerDecoder: _transformer_stack,
    nn.TransformerDecoderLayer: _transformer_layer,
    nn.TransformerEncoder: _transformer_stack,
    nn.TransformerEncoderLayer: _transformer_layer,
}
