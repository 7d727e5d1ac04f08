"""Merge parallel convolutions of a torch graph into grouped ones, as `groupfx.parallel` plans it.

Before:  x[:, part] (or chunk, split, narrow, ...) -> [pad] -> conv -> [norm, activation] -> cat
After:   [gather] -> [pad] -> conv with the groups of all -> [norm, activation]

The tensors of the branches are put one after another, and each is a row slice of the new ones: the
map of the rewrite says so the other way round.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from ..convs.calls import ConvCall, Stored, attribute, read_conv
from ..convs.spec import BATCHNORMS, ConvSpec, describe_branches, module_from_spec, rebuild
from ..folding.wiring import Operation
from ..parallel.branches import Branch, Stage
from ..parallel.naming import joint_name
from ..parallel.planning import ParallelConvs, Refusal, parallel_convs
from ..state import Rows
from ..tracing.program import Fragment, Program
from .folding import operations
from .leaves import gather_module
from .places import erase, remove
from .region_pass import RegionPass
from .report import RewrittenSite, SkippedSite
from .store import Store

_COUNTER = "num_batches_tracked"

_NO_GRAPH = (
    "it looks at the whole graph, and this model was opened by its modules: open it with "
    "way='export'"
)

_RANDOM = (
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
    nn.FeatureAlphaDropout, nn.RReLU,
)  # fmt: skip


def merge_parallel(
    pass_: RegionPass, program: Program, store: Store
) -> tuple[list[RewrittenSite], list[SkippedSite]]:
    """Merge all branches of the program that are one convolution; those done, and those left."""
    if program.way == "modules":
        return [], [SkippedSite("the model", "unknown", pass_.pass_name(), _NO_GRAPH)]
    (fragment,) = program.fragments
    done: list[RewrittenSite] = []
    left: list[SkippedSite] = []
    for found in list(parallel_convs(list(operations(program, fragment, store)), _Alike(fragment))):
        names = [_home(fragment, store, branch) for branch in found.branches]
        name = joint_name(names)
        reason = pass_.declines((name, *names))
        if isinstance(found, Refusal):
            left.append(SkippedSite(name, "parallel", pass_.pass_name(), reason or found.reason))
        elif reason is not None:
            left.append(SkippedSite(name, "parallel", pass_.pass_name(), reason))
        else:
            done.append(_Merging(fragment, store, found, names).run(pass_))
    if done:
        fragment.working.graph.lint()
        fragment.working.recompile()
        fragment.changed = True
    return done, left


def _home(fragment: Fragment, store: Store, branch: Branch) -> str:
    """The path of a convolution: its module's, or the one that holds its weight."""
    call = read_conv(cast(fx.Node, branch.conv.node), fragment.working)
    assert isinstance(call, ConvCall)
    if call.path is not None:
        return call.path
    weight, bias = call.weight, call.bias
    assert isinstance(weight, Stored)
    return store.home_of(fragment, weight.key, bias.key if isinstance(bias, Stored) else None)


class _Alike:
    """Everything that a node says but its channels; None where it draws random numbers."""

    def __init__(self, fragment: Fragment) -> None:
        self.root = fragment.working

    def __call__(self, op: Operation) -> Hashable:
        node = cast(fx.Node, op.node)
        if op.rule == "convolution":
            return self._conv(node)
        if node.op == "call_module":
            return self._module(self.root.get_submodule(str(node.target)))
        if "dropout" in str(node.target) or "rrelu" in str(node.target):
            return None
        values = {value.key for value in op.values.values()}
        tensors = {id(self.tensor(n)) for n in node.all_input_nodes if n not in values}
        if tensors:
            # An element a channel, or one for all: what the graph reads beside its value.
            return None
        given = fx.node.map_arg((node.args, node.kwargs), lambda n: "the value")
        return node.op, node.target, _frozen(given)

    def tensor(self, node: fx.Node) -> Tensor | None:
        """A tensor that the graph holds."""
        return attribute(self.root, str(node.target)) if node.op == "get_attr" else None

    def _conv(self, node: fx.Node) -> Hashable:
        call = read_conv(node, self.root)
        assert isinstance(call, ConvCall)
        kinds = [self._kind(source) for source in (call.weight, call.bias)]
        training = None if call.path is None else self.root.get_submodule(call.path).training
        extra = call.output_size is None
        return call.spec.with_channels(1, 1, groups=1), tuple(kinds), training, extra

    def _kind(self, source: object) -> Hashable:
        if not isinstance(source, Stored):
            return source is None
        held = attribute(self.root, source.key)
        return type(held), held.dtype, held.requires_grad, str(held.device)

    def _module(self, module: nn.Module) -> Hashable:
        if isinstance(module, _RANDOM):
            return None
        own = (*module._parameters.items(), *module._buffers.items())
        if own and type(module) not in BATCHNORMS:
            return None
        counter = module._buffers.get(_COUNTER)
        fields = {k: v for k, v in vars(module).items() if not k.startswith("_")}
        fields.pop("num_features", None)
        tensors = [(n, t is None or (t.dtype, t.requires_grad, str(t.device))) for n, t in own]
        count = None if counter is None else int(counter)
        return type(module), _frozen(fields), tuple(tensors), count


def _frozen(value: Any) -> Hashable:
    if isinstance(value, Mapping):
        return tuple((k, _frozen(v)) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(map(_frozen, value))
    if isinstance(value, slice):
        return "slice", value.start, value.stop, value.step
    return cast(Hashable, value)


class _Merging:
    """What one merge makes."""

    def __init__(
        self, fragment: Fragment, store: Store, plan: ParallelConvs, homes: Sequence[str]
    ) -> None:
        self.fragment, self.store, self.plan = fragment, store, plan
        self.root, self.graph = fragment.working, fragment.working.graph
        self.homes = homes
        self.name = self._free(joint_name(homes), homes)
        self.joined: dict[str, Rows] = {}
        calls = [read_conv(cast(fx.Node, b.conv.node), self.root) for b in plan.branches]
        self.calls = [call for call in calls if isinstance(call, ConvCall)]

    def run(self, pass_: RegionPass) -> RewrittenSite:
        """Put the merged nodes in; what was done."""
        plan, concat = self.plan, cast(fx.Node, self.plan.concat.node)
        source = cast(fx.Node, plan.source.key)
        specs = [call.spec for call in self.calls]
        sides = (sum(s.in_channels for s in specs), sum(s.out_channels for s in specs))
        spec = specs[0].with_channels(*sides, groups=plan.groups)
        record = RewrittenSite(
            name=self.name,
            kind="parallel",
            pass_name=pass_.pass_name(),
            before=describe_branches(each.describe() for each in specs),
            after=spec.describe(),
            branches=1,
            macs=None,
            macs_after=None,
            notes=() if plan.gather.kind == "identity" else (_GATHERED,),
            fragment=self.fragment,
            spec=spec,
            input_shape=plan.source.shape,
            start=self.fragment.stands_for(source),
            end=self.fragment.stands_for(concat),
            brief=spec.brief(),
            joined=self.joined,
        )
        with self.graph.inserting_before(concat):
            value = self._gathered(source)
            for op in plan.front:
                value = self._again(cast(fx.Node, op.node), value)
            self._place_conv(spec)
            value = self.graph.call_module(self.name, (value,))
            for stages in zip(*(branch.behind for branch in plan.branches), strict=True):
                value = self._behind(stages, value)
        concat.replace_all_uses_with(value)
        self.fragment.stand_in(concat, value)
        erase(self.fragment, concat, stop=source)
        return record

    def _gathered(self, source: fx.Node) -> fx.Node:
        if self.plan.gather.kind == "identity":
            return source
        path = f"{self.name.replace('.', '_')}_order"
        path = self._free(path, [])
        self.root.add_submodule(path, gather_module(self.plan.gather).train(self.root.training))
        return self.graph.call_module(path, (source,))

    def _again(self, node: fx.Node, value: fx.Node) -> fx.Node:
        """The same call on another value."""
        (old,) = node.all_input_nodes
        return self.graph.node_copy(node, lambda n: value if n is old else n)

    def _place_conv(self, spec: ConvSpec) -> None:
        first = self.calls[0]
        template = module_from_spec(spec) if first.path is None else self._module(first.path)
        tensors = {
            "weight": self._joint("weight", [c.weight for c in self.calls]),
            "bias": self._joint("bias", [c.bias for c in self.calls]),
        }
        numbers = {
            "in_channels": spec.in_channels,
            "out_channels": spec.out_channels,
            "groups": spec.groups,
            "kernel_size": spec.kernel_size,
        }
        made = rebuild(template, tensors, **numbers)
        if first.path is None:
            made.training = self.root.training
            held = (source for call in self.calls for source in (call.weight, call.bias))
            for source in held:
                if isinstance(source, Stored):
                    remove(self.root, source.key)
        self._put(made, self.name, self.homes)

    def _behind(self, stages: Sequence[Stage], value: fx.Node) -> fx.Node:
        nodes = [cast(fx.Node, stage.op.node) for stage in stages]
        if nodes[0].op != "call_module":
            return self._again(nodes[0], value)
        paths = [str(node.target) for node in nodes]
        modules = [self._module(path) for path in paths]
        if type(modules[0]) not in BATCHNORMS:
            return self.graph.call_module(paths[0], (value,))
        place = self._free(joint_name(paths), paths)
        tensors = {
            name: self._joint_of_modules(place, name, paths)
            for name in (*modules[0]._parameters, *modules[0]._buffers)
        }
        width = sum(stage.op.outputs[0].shape[1] for stage in stages)
        self._put(rebuild(modules[0], tensors, num_features=width), place, paths)
        return self.graph.call_module(place, (value,))

    def _joint_of_modules(self, place: str, name: str, paths: Sequence[str]) -> Tensor | None:
        keys = [f"{path}.{name}" for path in paths]
        tensors: list[Any] = [attribute(self.root, key) for key in keys]
        if tensors[0] is None:
            return None
        if name == _COUNTER:
            self._note(keys, f"{place}.{name}", [Rows("")] * len(keys))
            made: Tensor = tensors[0].detach().clone()
            return made
        return self._cat(keys, f"{place}.{name}")

    def _joint(self, name: str, sources: Sequence[object]) -> Tensor | None:
        if sources[0] is None:
            return None
        return self._cat([cast(Stored, source).key for source in sources], f"{self.name}.{name}")

    def _cat(self, keys: Sequence[str], new: str) -> Tensor:
        tensors = [attribute(self.root, key) for key in keys]
        ends = accumulate(map(len, tensors))
        rows = [Rows("", end - len(t), end) for end, t in zip(ends, tensors, strict=True)]
        self._note(keys, new, rows)
        made = torch.cat([t.detach() for t in tensors])
        first = tensors[0]
        if isinstance(first, nn.Parameter):
            return nn.Parameter(made, requires_grad=first.requires_grad)
        return made

    def _note(self, keys: Sequence[str], new: str, rows: Sequence[Rows]) -> None:
        """Write down what each of the original's tensors is of the new one."""
        for key, part in zip(keys, rows, strict=True):
            entry = self.store.entries.pop(self.fragment.working_key(key), None)
            if isinstance(entry, Rows):
                full = self.fragment.working_key(new)
                self.joined[entry.key] = Rows(full, part.start, part.stop)

    def _put(self, module: nn.Module, place: str, gone: Sequence[str]) -> None:
        """`module` at `place`, where the modules, or the tensors, `gone` were."""
        for path in gone:
            parent, _, name = path.rpartition(".")
            self.root.get_submodule(parent)._modules.pop(name, None)
        for path in gone:
            self._prune(path.rpartition(".")[0], place)
        parent, _, name = place.rpartition(".")
        self.root.get_submodule(parent)._modules[name] = module

    def _prune(self, path: str, place: str) -> None:
        """Remove containers that hold nothing any more, as far as `place` needs none of them."""
        while path and path != place and not place.startswith(f"{path}."):
            parent, _, name = path.rpartition(".")
            holder = self.root.get_submodule(parent)
            held = holder._modules.get(name)
            if held is None or held._modules or held._parameters or held._buffers:
                return
            del holder._modules[name]
            path = parent

    def _free(self, wanted: str, gone: Sequence[str]) -> str:
        """`wanted` where nothing but the modules `gone` lies there, or a name beside it."""
        name, number = wanted, 1
        while self._taken(name, gone):
            number += 1
            name = f"{wanted}_{number}"
        return name

    def _taken(self, path: str, gone: Sequence[str]) -> bool:
        parent, _, name = path.rpartition(".")
        try:
            holder = self.root.get_submodule(parent)
        except AttributeError:
            return True
        if name not in holder._modules:
            return hasattr(holder, name)
        held = holder._modules[name]
        assert held is not None
        inner = {f"{path}.{child}" for child in held._modules}
        return not inner or not inner <= set(gone) or bool(held._parameters or held._buffers)

    def _module(self, path: str) -> nn.Module:
        return self.root.get_submodule(path)


_GATHERED = "its parts are in another order than the channels: a gather stays in front of it"
