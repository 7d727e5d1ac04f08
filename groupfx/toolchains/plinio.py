"""The models that PLiNIO's three optimisers take, as a grammar of operations.

PIT and MPS trace the model themselves, sort every operation into one of a few kinds by fixed lists,
and raise an error at one that is on none. SuperNet only traces and counts. The lists here say what
was measured with PLiNIO 3d6b5e0 (2026-05-08); `PLINIO.md` beside this file says which models went
through it. Nothing here is its code, and nothing imports it.

What several operations together must hold to, because their channels are pruned or quantised as
one, is in `plinio_masks`.
"""

import copy
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from ..convs.sources import sources
from ..convs.spec import CONV_TYPES
from ..errors import ModelError, kind_and_line
from ..nn import TrainingMode
from ..running.grouped_runs import error_place
from ..running.inputs import ExampleInputs
from ..running.unchanged import evaluate, unchanged
from ..tracing.exporting import ExportedModule
from ..tracing.graphs import run_graph
from ..tracing.opening import given_arguments
from ..tracing.places import LINE, line_of, operation_of, owner_of, user_line
from ..tracing.tracer import CannotTrace, trace
from .obstacle import WHOLE_MODEL, Obstacle

PIT, LAYER, CHANNEL, SUPERNET = "PIT", "MPS per layer", "MPS per channel", "SuperNet"
MPS = (LAYER, CHANNEL)
GRAPHS = (PIT, *MPS)
ALL = (*GRAPHS, SUPERNET)

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
# Of an instance too: PLiNIO fuses it as it fuses that of a batch.
_ALL_NORMS = (*NORMS, nn.BatchNorm3d, nn.InstanceNorm1d)
# Modules that pass channels on.
_MODULES = (
    *NORMS,
    *(nn.AvgPool1d, nn.AvgPool2d, nn.MaxPool1d, nn.MaxPool2d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.Upsample),
    *(nn.ReLU, nn.ReLU6, nn.SiLU, nn.Sigmoid, nn.PReLU, nn.Dropout, nn.Identity),
    *(nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
)
_SUMS = (torch.add, operator.add, torch.sub, operator.sub)
_FUNCTIONS = (
    *_SUMS,
    *(F.relu, torch.relu, F.relu6, F.log_softmax, torch.sigmoid, torch.tanh),
    *(torch.multiply, torch.mean, F.pad, torch.cat),
)
_FLATTEN = ("flatten", torch.flatten)
_SQUEEZES = ("squeeze", torch.squeeze, "unsqueeze", torch.unsqueeze)
_FLATTENED = ("input", "start_dim", "end_dim")
_SIZES = ("size", "dim", "numel", torch.ops.aten.sym_size.int)
_WHOLE = slice(None, None, None)
_PARTED = "-p part-operations writes it as what has one"
# What has a rule, and may do instead of what has none.
_INSTEAD: dict[type[nn.Module], str] = {
    **dict.fromkeys(
        (nn.GELU, nn.Mish, nn.ELU, nn.SELU, nn.CELU, nn.Softplus),
        "nn.ReLU, nn.ReLU6, nn.SiLU and nn.PReLU with a slope for each channel have one",
    ),
    **dict.fromkeys((nn.Hardswish, nn.Hardsigmoid, nn.LeakyReLU, nn.Tanh, nn.LogSoftmax), _PARTED),
    **dict.fromkeys(
        (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
        "nn.Dropout has one",
    ),
    **dict.fromkeys(
        (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d),
        "nn.BatchNorm2d has one, directly behind a layer",
    ),
    **dict.fromkeys(
        (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d),
        "nn.AdaptiveAvgPool1d and 2d have one, and so has nn.MaxPool2d of the whole size",
    ),
    **dict.fromkeys(
        (nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d, nn.ReplicationPad2d),
        "a padding_mode of the convolution has one",
    ),
}
_NO_MODE = "leave what changes with the mode to norms and dropouts"


class PlinioTracer(fx.Tracer):
    """A trace as PLiNIO makes it: a module is a leaf if `torch.nn` has its class."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m.__module__.startswith("torch.nn") and not isinstance(m, nn.Sequential)

    failed: str | None = None
    """path of the module in whose forward the trace ended with an error"""

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if self.failed is None:
                self.failed = self.path_of_module(m)
            raise

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta[LINE] = user_line()
        return node


def obstacles(model: nn.Module, inputs: ExampleInputs) -> tuple[Obstacle, ...]:
    """All that PIT, MPS and SuperNet would refuse or get wrong in `model`, in its own order."""
    from .plinio_masks import shared_masks
    from .plinio_zeros import values_of_pruned

    graph = _graph(model)
    if isinstance(graph, Obstacle):
        return (graph,)
    try:
        run_graph(graph, graph, inputs)
    except ModelError as error:
        # Such as a gradient in forward, whose grad mode is no part of a trace.
        why = kind_and_line(error.__cause__ or error)
        reason = f"a trace of it does not run ({why})"
        return (Obstacle(WHOLE_MODEL, type(model).__name__, None, ALL, True, reason),)
    found = [
        *(_of_one_mode(model) if isinstance(model, fx.GraphModule) else _frozen(model, inputs))
    ]
    found += [each for node in graph.graph.nodes for each in _Operation(node, graph).obstacles()]
    # Channels are followed through what is known alone.
    if any(each.refused and {*GRAPHS} <= {*each.methods} for each in found):
        return tuple(found)
    return (*found, *shared_masks(graph), *values_of_pruned(graph))


def _graph(model: nn.Module) -> fx.GraphModule | Obstacle:
    """What PLiNIO would see; where a graph is given, its own nodes tell the user's lines."""
    if isinstance(model, fx.GraphModule) and all(
        node.op != "call_module" or _is_kept(model.get_submodule(str(node.target)))
        for node in model.graph.nodes
    ):
        return _without_modes(model)
    tracer = PlinioTracer()
    try:
        with unchanged(model), torch.no_grad():
            evaluate(model)
            graph = tracer.trace(model)
        return fx.GraphModule(model, graph)
    except Exception as error:
        reason = f"it cannot be traced ({kind_and_line(error)})"
        path, line = tracer.failed, error_place(error) or None
        if path is None:
            return Obstacle(WHOLE_MODEL, type(model).__name__, line, ALL, True, reason)
        kind = type(model.get_submodule(path)).__name__
        return Obstacle(kind, path, line, ALL, True, reason)


def _is_kept(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn") or isinstance(module, TrainingMode)


def _without_modes(model: fx.GraphModule) -> fx.GraphModule:
    """The graph with the numbers that eval mode has, as a trace of it has them."""
    if not _mode_nodes(model):
        return model
    graph = copy.deepcopy(model.graph)
    twin = fx.GraphModule(model, graph)
    for node in _mode_nodes(twin):
        mode = called(node, twin)
        assert isinstance(mode, TrainingMode)
        for user in [*node.users]:
            user.replace_input_with(node, mode.evaluated)  # type: ignore[arg-type]
        graph.erase_node(node)
    twin.recompile()
    return twin


def _mode_nodes(model: fx.GraphModule) -> list[fx.Node]:
    nodes = model.graph.find_nodes(op="call_module")
    return [node for node in nodes if isinstance(called(node, model), TrainingMode)]


def _of_one_mode(model: fx.GraphModule) -> Iterator[Obstacle]:
    """What a graph does in train mode, and a trace of it does not: none of it is refused."""
    if isinstance(model, ExportedModule):
        why = model.why_fixed or "it was exported so"
        reason = f"it stays in eval mode, which is what would be trained: {why}"
        yield Obstacle("forward", "the model", None, ALL, False, reason, _NO_MODE)
    for user in dict.fromkeys(user for node in _mode_nodes(model) for user in node.users):
        reason = "it asks for the mode, and a trace keeps what it gets in one of them"
        yield obstacle(user, model, ALL, reason, _NO_MODE, refused=False)


def _frozen(model: nn.Module, inputs: ExampleInputs) -> Iterator[Obstacle]:
    """What a trace computes once, or drops, and the model does each time: none of it is refused."""
    try:
        trace(model, given_arguments(model, inputs), asked=True)
    except CannotTrace as error:
        reason = f"its trace is another function: {error}"
        yield Obstacle(WHOLE_MODEL, type(model).__name__, None, ALL, False, reason)


@dataclass(frozen=True)
class _Operation:
    """One node, and what is wrong with it by itself."""

    node: fx.Node
    root: fx.GraphModule

    def obstacles(self) -> Iterator[Obstacle]:
        node = self.node
        if node.op in ("placeholder", "output", "get_attr"):
            return
        if node.op == "call_module":
            yield from self._module(self.root.get_submodule(str(node.target)))
        elif node.target in _FLATTEN:
            yield from self._flatten()
        elif node.target in _SQUEEZES:
            yield from self._squeeze()
        elif node.target is operator.getitem:
            yield from self._index()
        elif node.target is torch._assert:
            # What it reads stays alive when SuperNet takes out the branch around it.
            kept = any(called(each, self.root) is not None for each in sources(node))
            methods = ALL if kept else GRAPHS
            yield self._say(methods, "asserts have no rule", "-p drop-asserts leaves it out")
        elif node.op == "call_method" or node.target not in _FUNCTIONS:
            yield from self._unknown()
        else:
            yield from self._function()

    def _say(
        self,
        methods: tuple[str, ...],
        reason: str,
        remedy: str | None = None,
        *,
        refused: bool = True,
    ) -> Obstacle:
        return obstacle(self.node, self.root, methods, reason, remedy, refused=refused)

    def _unknown(self) -> Iterator[Obstacle]:
        target = self.node.target
        if isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable:
            reason = "it writes in place, and stays when the branch around it is taken out"
            yield self._say((SUPERNET,), reason, "-p lift-operators", refused=False)
        if self.node.target in _SIZES or self.node.target is getattr:
            yield self._say(GRAPHS, "sizes that forward computes have no rule")
        elif _weighs(self.node) and self.node.op == "call_method" and str(target)[-1] == "_":
            yield self._say(GRAPHS, "it writes to a tensor of the model, and has no rule")
        elif _weighs(self.node):
            yield self._say(GRAPHS, "a convolution or product with a weight that is no module's")
        else:
            yield self._say(GRAPHS, "it has no rule for this operation")

    def _function(self) -> Iterator[Obstacle]:
        node = self.node
        held = node.all_input_nodes
        if not held or held[0].op == "get_attr":
            yield self._say(GRAPHS, "its first operand is no value of the model's input")
        if node.target is torch.cat:
            yield from self._concat()
        if node.target is torch.mean:
            dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
            rank = len(held[0].meta.get("shape", ()))
            axes = [] if dim is None else [dim] if isinstance(dim, int) else list(dim)
            if not axes or any(axis % rank in (0, 1) for axis in axes):
                yield self._say(GRAPHS, "a mean over channels, or over the batch")
        if node.target is F.pad:
            shape = held[0].meta.get("shape", ())
            sides: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("pad", ())
            if len(sides) // 2 > len(shape) - 2:
                yield self._say(GRAPHS, "padding of channels")
        yield from self._parameters()

    def _parameters(self) -> Iterator[Obstacle]:
        """A parameter that has the channels of what it meets is not pruned along with them."""
        for given in self.node.all_input_nodes[1:]:
            if given.op != "get_attr":
                continue
            tensor = _tensor(self.root, str(given.target))
            rank = len(self.node.meta.get("shape", ()))
            if tensor is not None and tensor.dim() >= rank - 1 and tensor.shape[1 - rank] > 1:
                reason = f"{given.target} has channels, which are not pruned along"
                yield self._say((PIT,), reason, refused=False)

    def _concat(self) -> Iterator[Obstacle]:
        values = self.node.args[0] if self.node.args else ()
        listed = list(values) if isinstance(values, (list, tuple)) else []
        if len(set(listed)) < len(listed):
            yield self._say((PIT,), "one value is concatenated twice")
        dim = self.node.args[1] if len(self.node.args) > 1 else self.node.kwargs.get("dim", 0)
        from_the_end = dim == 1 - len(self.node.meta.get("shape", ()))
        odd = "axis" in self.node.kwargs or (dim != 1 and from_the_end)
        if odd and not is_output_concat(self.node, self.root):
            reason = "a concatenation of channels that is not along dim=1 is taken for another"
            yield self._say(GRAPHS, reason, "-p spell-calls writes it so", refused=False)

    def _flatten(self) -> Iterator[Obstacle]:
        given: dict[str, Any] = dict(zip(_FLATTENED, self.node.args, strict=False))
        given |= self.node.kwargs
        start, end = given.get("start_dim", 0), given.get("end_dim", -1)
        rank = len(self.node.all_input_nodes[0].meta.get("shape", ()))
        whole = start == 1 and end in (-1, rank - 1)
        if not whole and not 2 <= start < rank - 1:
            yield self._say(GRAPHS, "only a flatten of all but the batch has a rule")

    def _squeeze(self) -> Iterator[Obstacle]:
        dim = self.node.args[1] if len(self.node.args) > 1 else self.node.kwargs.get("dim")
        rank = len(self.node.all_input_nodes[0].meta.get("shape", ()))
        if not isinstance(dim, int):
            yield self._say(GRAPHS, "it needs one axis", "give dim=")
        elif dim % (rank + ("unsqueeze" in str(self.node.target))) < 2:
            yield self._say(GRAPHS, "the axis of channels, or of the batch")

    def _index(self) -> Iterator[Obstacle]:
        value, index = self.node.args
        assert isinstance(value, fx.Node)
        if "shape" not in value.meta:
            return  # of a tuple, whose maker is judged
        if not isinstance(index, tuple) or len(index) < 2 or index[0] != _WHOLE:
            yield self._say(GRAPHS, "an index that does not begin with [:, ", "-p index-channels")
            return
        norm = called(value, self.root)
        if isinstance(norm, NORMS) and _is_fused(value, self.root):
            reason = "an index directly behind a norm that is fused, which its export makes anew"
            yield self._say((PIT,), reason, "-p part-norms puts an Identity between them")
        if isinstance(index[1], list):
            if is_output_concat(self.node, self.root):
                return  # of an output, no channel goes
            yield self._say((CHANNEL,), "a list of channels, whose masks it reads anew")
        elif not isinstance(index[1], slice) or any(
            isinstance(each, fx.Node) for each in (index[1].start, index[1].stop, index[1].step)
        ):
            yield self._say((PIT,), "an index of channels that is no slice and no list")

    def _module(self, module: nn.Module) -> Iterator[Obstacle]:
        if not self.node.args:
            yield self._say(GRAPHS, "a module that is called with keywords", "call it with values")
        elif isinstance(module, nn.modules.conv._ConvNd):
            yield from self._conv(module)
        elif isinstance(module, nn.Linear):
            shape = self.node.all_input_nodes[0].meta.get("shape", ())
            if len(shape) != 2:
                yield self._say((PIT, CHANNEL), f"a linear layer on a value of shape {list(shape)}")
        elif isinstance(module, nn.Flatten):
            rank = len(self.node.all_input_nodes[0].meta.get("shape", ()))
            if module.start_dim < 2 and (
                module.start_dim != 1 or module.end_dim not in (-1, rank - 1)
            ):
                yield self._say(GRAPHS, "only a flatten of all but the batch has a rule")
        elif isinstance(module, _ALL_NORMS):
            yield from self._norm(module)
        elif isinstance(module, nn.PReLU) and module.num_parameters == 1:
            remedy = "give it a slope for each channel: num_parameters"
            yield self._say((PIT,), "its export wants a slope for each channel", remedy)
        elif not isinstance(module, _MODULES):
            instead = _INSTEAD.get(type(module))
            yield self._say(GRAPHS, "it has no rule for this module", instead)

    def _conv(self, module: nn.modules.conv._ConvNd) -> Iterator[Obstacle]:
        if module.transposed:
            remedy = "nn.Upsample and a convolution behind it have one"
            yield self._say(GRAPHS, "transposed convolutions have no rule", remedy)
            yield self._say((SUPERNET,), "it counts nothing for it", refused=False)
            return
        if type(module) not in CONV_TYPES:
            yield self._say(GRAPHS, "a subclass of a convolution is not optimised", refused=False)
        depthwise = module.groups == module.in_channels == module.out_channels
        if module.groups > 1 and not (depthwise and not isinstance(module, nn.Conv3d)):
            remedy = "-p split-grouped-conv splits it"
            yield self._say((PIT,), f"{module.groups} groups", remedy)
            yield self._say((*MPS, SUPERNET), "it is counted as dense", remedy, refused=False)

    def _norm(self, module: nn.modules.batchnorm._NormBase) -> Iterator[Obstacle]:
        from .plinio_masks import masks

        piece = masks(self.root)[self.node]
        before = self.node.all_input_nodes[0]
        conv = called(before, self.root)
        follows = _is_fused(self.node, self.root)
        if isinstance(module, nn.BatchNorm3d) and not isinstance(conv, nn.Conv3d):
            yield self._say(GRAPHS, "BatchNorm3d has a rule directly behind a convolution alone")
        if not module.affine:
            yield self._say((PIT,), "it has no weight and no bias")
        elif not follows and (piece.is_pruned or piece.concats):
            reason = "it is not directly behind a layer: of a pruned channel it makes no 0"
            yield self._say((PIT,), reason, refused=False)
        if follows and not module.track_running_stats:
            yield self._say(GRAPHS, "it has no running statistics to be folded")
        if follows and len(before.users) > 1:
            yield self._say(GRAPHS, "the convolution in front of it is read by others as well")


def obstacle(
    node: fx.Node,
    root: fx.GraphModule,
    methods: tuple[str, ...],
    reason: str,
    remedy: str | None = None,
    *,
    refused: bool = True,
) -> Obstacle:
    """An obstacle at a node."""
    name = str(node.target) if node.op == "call_module" else owner_of(node)
    return Obstacle(
        operation=operation_of(node, root),
        name=name or "the model",
        line=line_of(node),
        methods=methods,
        refused=refused,
        reason=reason,
        remedy=remedy,
    )


def _is_fused(norm: fx.Node, root: fx.GraphModule) -> bool:
    """Whether PLiNIO fuses a norm with the layer in front of it."""
    return isinstance(called(norm.all_input_nodes[0], root), (*CONVS, nn.Linear))


def is_output_concat(node: fx.Node, root: fx.GraphModule) -> bool:
    """Whether what is concatenated reaches outputs, and no layer that counts channels."""
    pending, seen = [node], {node}
    while pending:
        for user in pending.pop().users:
            if isinstance(called(user, root), (*CONVS, nn.Linear)):
                return False
            if user not in seen:
                seen.add(user)
                pending.append(user)
    return True


def _weighs(node: fx.Node) -> bool:
    return any(given.op == "get_attr" for given in node.all_input_nodes)


def called(node: fx.Node, root: fx.GraphModule) -> nn.Module | None:
    """The module that a node calls; None for any other node."""
    return root.get_submodule(str(node.target)) if node.op == "call_module" else None


def _tensor(root: nn.Module, key: str) -> torch.Tensor | None:
    path, _, name = key.rpartition(".")
    found = getattr(root.get_submodule(path), name, None)
    return found if isinstance(found, torch.Tensor) else None
