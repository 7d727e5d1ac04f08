"""Operations that do the same to each channel, whatever the others are.

f(cat([a, b])) = cat([f(a), f(b)])                         along the channels
cat([a, b]) + cat([c, d]) = cat([a + c, b + d])            where a and c, b and d have equal sizes
"""

import operator

import torch
import torch.nn.functional as F
from torch import fx, nn

_FUNCTIONS = (
    *(F.relu, torch.relu, F.relu6, F.silu, F.gelu, F.hardswish, F.hardsigmoid, F.leaky_relu),
    *(F.hardtanh, F.elu, torch.sigmoid, torch.tanh, torch.clamp),
)
_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.Hardsigmoid, nn.LeakyReLU),
    *(nn.Hardtanh, nn.ELU, nn.Sigmoid, nn.Tanh, nn.Identity),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.Upsample, nn.ZeroPad2d, nn.ConstantPad2d),
)
_COMBINING = (operator.add, torch.add, operator.sub, torch.sub, torch.multiply, torch.mul)


def is_channelwise(node: fx.Node, root: nn.Module) -> bool:
    """Whether it does the same to each channel of its one input."""
    if len(node.all_input_nodes) != 1 or not node.args or node.args[0] not in node.all_input_nodes:
        return False
    if node.op == "call_function":
        return node.target in (*_FUNCTIONS, *_COMBINING)
    return node.op == "call_module" and type(root.get_submodule(str(node.target))) in _MODULES


def combines(node: fx.Node) -> bool:
    """Whether it is a sum, a difference or a product of two values."""
    known = node.op == "call_function" and node.target in _COMBINING
    return known and len(node.args) > 1 and [*node.args] == node.all_input_nodes
