"""Plans of sites in a graph that carries none, because it was traced anew.

`torch.fx.symbolic_trace` of a rewritten model, its `torch.export`, and a pickled GraphModule keep
the modules and lose what stood on the nodes. What a site looks like is read off the graph: these
are guesses, and `read_region` tells which of them hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count, takewhile

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from ..convs.names import joined, weight_owner
from ..convs.norms import is_batchnorm, norm_behind
from ..convs.spec import norm_channels, spec_of_module
from ..nn import ConstantChannels
from ..nn.marks import FROZEN_MARK
from ..nn.swapped import SwappedConv
from ..plan.branches import Branches
from ..plan.channels import Slice
from ..plan.forms import ConvPlan, FormPlan
from ..plan.gathers import plan_gather
from ..plan.site_plan import SitePlan, site_of
from .regions import UnfitError, cat_values, gathered, read_branch, sliced

Shapes = Mapping[fx.Node, Sequence[int]]
Guess = tuple[SitePlan, fx.Node]


def has_candidates(root: fx.GraphModule) -> bool:
    """Whether anything in the graph may be a site of which it carries no plan."""
    nodes = _unplanned(root)
    return any(_frozen_home(node, root) is not None or _split(node, root) for node in nodes)


def recognised(root: fx.GraphModule, shapes: Shapes) -> Iterator[Guess]:
    """The plans that sites may have, each with the node that gives the site's value.

    `shapes` has the shape of each value that is sliced, or that goes into a `ChannelGather`: both
    may leave channels out. Frozen sites come first: one without gathers looks like a split one.
    """
    for node in _unplanned(root):
        home = _frozen_home(node, root)
        if home is not None:
            try:
                yield _Frozen(root, home, shapes).guess(node)
            except UnfitError:
                continue
    for node in _unplanned(root):
        guess = _split(node, root)
        if guess is not None:
            yield guess, node


def _unplanned(root: fx.GraphModule) -> Iterator[fx.Node]:
    return (node for node in root.graph.nodes if site_of(node.meta) is None)


def _split(node: fx.Node, root: fx.GraphModule) -> SitePlan | None:
    """The plan of a site of which `node` joins the groups, None where it joins something else."""
    convs = cat_values(node, root) or []
    if len(convs) < 2:
        return None
    norms = [str(value.target) for value in convs if is_batchnorm(value, root)]
    if norms:
        if len(norms) != len(convs) or _numbered_home(norms) is None:
            return None
        convs = [value.all_input_nodes[0] for value in convs]
    if any(value.op == "call_function" for value in convs):
        return _split_rows(convs, norms, root)
    if any(value.op != "call_module" for value in convs):
        return None
    paths = [str(value.target) for value in convs]
    home = _numbered_home(paths)
    specs = [spec_of_module(root.get_submodule(path)) for path in paths]
    known = [spec for spec in specs if spec is not None]
    if home is None or len(known) < len(specs):
        return None
    name = home if home == "weight" else home.removesuffix(".weight")
    inputs = sum(spec.in_channels for spec in known)
    outputs = sum(spec.out_channels for spec in known)
    form = Branches(tuple(spec.groups for spec in known))
    return SitePlan(name, inputs, outputs, form, tuple(paths), tuple(norms))


def _split_rows(convs: Sequence[fx.Node], norms: Sequence[str], root: nn.Module) -> SitePlan | None:
    """As `_split`, of function calls on rows of one weight."""
    try:
        branches = [read_branch(node) for node in convs]
    except UnfitError:
        return None
    first, form = branches[0], Branches(tuple(branch.groups for branch in branches))
    step = sliced(first.input)
    if step is None:
        return None
    height = len(first.rows)
    if first.call.transposed:
        height = first.groups if first.bias_rows is None else len(first.bias_rows)
    if norms:
        height = norm_channels(root.get_submodule(norms[0]))
    inputs, outputs = (n * form.total // first.groups for n in (len(step[1]), height))
    # Where a convolution module was swapped, its path says all.
    owner = weight_owner(first.call.weight) or convs[0].name
    name = "" if isinstance(root, SwappedConv) else owner
    return SitePlan(name, inputs, outputs, form, (), tuple(norms))


def _numbered_home(paths: Sequence[str]) -> str | None:
    """`a.b` for `a.b.0`, `a.b.1`, ...; None for any other names."""
    home = paths[0].rpartition(".")[0]
    return home if list(paths) == [joined(home, str(k)) for k in range(len(paths))] else None


def _frozen_home(node: fx.Node, root: nn.Module) -> str | None:
    """Path of the frozen layer whose first convolution `node` calls."""
    if node.op != "call_module":
        return None
    target = f".{node.target}"
    home = next(
        (target[: -len(end)] for end in (".conv", ".convs.0") if target.endswith(end)), None
    )
    marked = getattr(root.get_submodule(str(node.target)), FROZEN_MARK, False)
    return None if home is None or not marked else home.removeprefix(".")


class _Frozen:
    """Reads the plan of a frozen layer off the names of its modules and what its calls read."""

    def __init__(self, root: fx.GraphModule, home: str, shapes: Shapes) -> None:
        self.root, self.home, self.shapes = root, home, shapes
        several = takewhile(bool, (self._path(f"convs.{k}") for k in count()))
        self.convs = tuple(path for path in several if path) or (joined(home, "conv"),)
        self.input_gather = self._path("input_gather")
        self.output_gather = self._path("output_gather")
        self.constants = self._path("constants")

    def _path(self, name: str) -> str | None:
        path = joined(self.home, name)
        try:
            self.root.get_submodule(path)
        except AttributeError:
            return None
        return path

    def guess(self, first: fx.Node) -> Guess:
        """The plan of the call whose first convolution is `first`, and where it ends."""
        end = norm_behind(first, self.root) or first
        single = len(self.convs) == 1 and self.constants is None
        if not single:
            # The constant channels take their batch and size from the first value.
            end = next((user for user in end.users if cat_values(user, self.root) is not None), end)
        results = [end] if single else cat_values(end, self.root) or []
        if self.output_gather is not None:
            end = next((user for user in end.users if user.target == self.output_gather), end)
        elif single:
            # An ordinary BatchNorm behind one convolution stays where it is.
            results, end = [first], first
        norms = [str(node.target) for node in results if is_batchnorm(node, self.root)]
        calls = [node.all_input_nodes[0] for node in results] if norms else results
        form, in_channels = self._form(calls[: len(self.convs)])
        out_channels = len(form.output_gather.indices)
        paths = (self.input_gather, self.constants, self.output_gather)
        plan = SitePlan(
            self.home, in_channels, out_channels, form, self.convs, tuple(norms), *paths
        )
        return plan, end

    def _form(self, calls: Sequence[fx.Node]) -> tuple[FormPlan, int]:
        """The form, and how many channels come in."""
        modules = [self._conv(path) for path in self.convs]
        if len(calls) != len(modules) or any(len(call.all_input_nodes) != 1 for call in calls):
            raise UnfitError("its convolutions are called otherwise")
        reads = [call.all_input_nodes[0] for call in calls]
        steps = [sliced(node) for node in reads]
        parts = [
            Slice(0, module.in_channels) if step is None else step[1]
            for step, module in zip(steps, modules, strict=True)
        ]
        width = max(part.stop for part in parts)
        source = reads[0] if steps[0] is None else steps[0][0]
        inputs: tuple[int, ...] | None = None
        if self.input_gather is not None and source.all_input_nodes:
            inputs = gathered(self.root.get_submodule(self.input_gather), width)
            source = source.all_input_nodes[0]
        # What is neither sliced nor picked from is read as it is.
        shape = self.shapes.get(source, (0, width))
        if len(shape) < 2:
            raise UnfitError("what it reads has no channels")
        channels = int(shape[1])
        inputs = tuple(range(channels)) if inputs is None else inputs
        held = self.root.get_submodule(self.constants) if self.constants is not None else None
        extra = len(held.bias) if isinstance(held, ConstantChannels) else 0
        result = sum(module.out_channels for module in modules) + extra
        outputs = tuple(range(result))
        if self.output_gather is not None:
            outputs = gathered(self.root.get_submodule(self.output_gather), result)
        rows: dict[int, int] = {place: channel for channel, place in enumerate(outputs)}
        plans, place = [], 0
        for module, part in zip(modules, parts, strict=True):
            found = tuple(rows.get(place + row) for row in range(module.out_channels))
            plans.append(ConvPlan(part, found, _columns(module, inputs[part.start : part.stop])))
            place += module.out_channels
        form = FormPlan(
            form="bucketed",
            input_gather=plan_gather(inputs, channels),
            convs=tuple(plans),
            constants=tuple(rows[place + k] for k in range(extra)),
            output_gather=plan_gather(outputs, result),
        )
        return form, channels

    def _conv(self, path: str) -> _ConvNd:
        module = self.root.get_submodule(path)
        if not isinstance(module, _ConvNd) or not getattr(module, FROZEN_MARK, False):
            raise UnfitError(f"{path} is no convolution that freezing made")
        return module


def _columns(module: _ConvNd, read: Sequence[int]) -> tuple[tuple[int | None, ...], ...]:
    """What each group reads; padding is known by the mask, which is 0 there."""
    size, height = module.in_channels // module.groups, module.out_channels // module.groups
    mask = getattr(module, "mask", None)
    columns = []
    for group in range(module.groups):
        chosen: list[int | None] = list(read[group * size : (group + 1) * size])
        if mask is not None:
            held = (mask[group * height : (group + 1) * height] != 0).any(dim=0).tolist()
            chosen = [c if keep else None for c, keep in zip(chosen, held, strict=True)]
        columns.append(tuple(chosen))
    return tuple(columns)
