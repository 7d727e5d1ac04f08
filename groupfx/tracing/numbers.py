"""Numbers of convolutions that a forward computes, and that come out the same each time.

Groups of `x.shape[1] // 2` are 3 whatever the batch and the size of the image: a constant, and one
that a pass can plan with. That it is one is seen in runs on inputs of several sizes.
"""

from collections.abc import Collection, Iterator
from itertools import islice
from typing import Any

import torch
from torch import fx, nn

from ..convs.calls import CONV_FUNCTIONS
from ..running.inputs import ExampleInputs
from ..running.unchanged import evaluate, unchanged
from ..verify.models import other_spatial
from .graphs import in_forward_order

_TENSORS = ("input", "weight", "bias")
_SIZES = 3


def fix_numbers(module: fx.GraphModule, model: nn.Module, inputs: ExampleInputs) -> None:
    """Write computed numbers of convolutions that are the same for all sizes as constants."""
    calls = [node for node in module.graph.nodes if node.target in CONV_FUNCTIONS]
    wanted = {number for call in calls for number in _numbers(call)}
    if not wanted:
        return
    seen: list[dict[fx.Node, int]] = []
    for some in _sizes(inputs):
        try:
            seen.append(_Numbers(module, wanted).of(model, some))
        except Exception:
            continue  # a size that the model does not take
    fixed = {
        node: seen[0][node]
        for node in wanted
        if len(seen) > 1 and len({found.get(node) for found in seen}) == 1 and node in seen[0]
    }
    for call in calls:
        call.args = fx.node.map_arg(call.args, lambda node: fixed.get(node, node))
        call.kwargs = fx.node.map_arg(call.kwargs, lambda node: fixed.get(node, node))
    module.recompile()


def _numbers(call: fx.Node) -> list[fx.Node]:
    """Nodes among the arguments of a convolution that are no tensors."""
    named = {key: value for key, value in call.kwargs.items() if key not in _TENSORS}
    found: list[fx.Node] = []
    fx.node.map_arg((call.args[len(_TENSORS) :], named), found.append)
    return found


def _sizes(inputs: ExampleInputs) -> Iterator[ExampleInputs]:
    yield inputs
    if inputs.batch:
        yield inputs.with_batch(inputs.batch + 1)
    yield from (inputs.resized(size) for size in islice(other_spatial(inputs.spatial), _SIZES))


class _Numbers(fx.Interpreter):
    """Runs a graph and keeps the whole numbers that some of its nodes give."""

    def __init__(self, module: fx.GraphModule, wanted: Collection[fx.Node]) -> None:
        super().__init__(module)
        self._wanted = wanted
        self._found: dict[fx.Node, int] = {}

    def of(self, model: nn.Module, inputs: ExampleInputs) -> dict[fx.Node, int]:
        """The numbers for these inputs."""
        assert isinstance(self.module, nn.Module)
        with unchanged(self.module), torch.no_grad():
            evaluate(self.module)
            self.run(*in_forward_order(model, inputs.map(torch.clone)))
        return self._found

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self._wanted and (isinstance(value, int) or _is_of_state(n, value)):
            self._found[n] = int(value)
        return value


def _is_of_state(node: fx.Node, value: object) -> bool:
    """Whether it is a tensor for a whole number, such as a buffer, and no input has a say in it."""
    if not isinstance(value, torch.Tensor) or value.dim() or value.is_meta:
        return False
    behind = [node]
    for each in behind:
        behind += [more for more in each.all_input_nodes if more not in behind]
    whole = not (value.is_floating_point() or value.is_complex())
    return whole and all(each.op != "placeholder" for each in behind)
