"""Merge parallel convolutions of a torch graph into grouped ones, as `groupfx.parallel` plans it.

Before:  x[:, part] (or chunk, split, narrow, ...) -> [pad] -> conv -> [norm, activation] -> cat
After:   [gather] -> [pad] -> conv with the groups of all -> [norm, activation]

The tensors of the branches are put one after another, and each is a row slice of the new ones, or
rows and columns of them where groups of several sizes are filled up to one: the map of the rewrite
says so the other way round.
"""

from __future__ import annotations

import operator
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from ..convs.calls import ConvCall, Stored, attribute, read_conv
from ..convs.spec import BATCHNORMS, describe_branches, module_from_spec, rebuild
from ..folding.wiring import Operation, Parameter
from ..nn.masked_conv import MASKED
from ..parallel.branches import COMMUTATIVE, Branch, Stage, stage_of
from ..parallel.naming import joint_name
from ..parallel.planning import Member, ParallelConvs, Refusal, parallel_convs
from ..plan.forms import ConvPlan
from ..plan.gathers import GatherPlan
from ..state import Entry, Part, Picked, Rows
from ..tracing.program import Fragment, Program
from .folding import operations
from .leaves import gather_module
from .places import erase, holder_of, remove
from .region_pass import RegionPass
from .report import RewrittenSite, SkippedSite
from .store import Store

_COUNTER = "num_batches_tracked"

_NO_GRAPH = (
    "it looks at the whole graph, and this model was opened by its modules: open it with "
    "way='export'"
)

_MAPPED = 2
"""The map of a state_dict speaks of rows and columns."""

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
    fragment = program.whole
    done: list[RewrittenSite] = []
    left: list[SkippedSite] = []
    seen = list(operations(program, fragment, store))
    for found in list(parallel_convs(seen, _Alike(fragment), pass_.unequal)):
        names = [_home(fragment, store, branch) for branch in found.branches]
        name = joint_name(names)
        reason = pass_.declines((name, *names))
        if reason is None:
            reason = found.reason if isinstance(found, Refusal) else _untrainable(fragment, found)
        if isinstance(found, Refusal) or reason is not None:
            left.append(SkippedSite(name, "parallel", pass_.pass_name(), reason or ""))
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


def _untrainable(fragment: Fragment, plan: ParallelConvs) -> str | None:
    """Why zeros that fill up a weight would not stay zeros in training, or None."""
    call = read_conv(cast(fx.Node, plan.branches[0].conv.node), fragment.working)
    assert isinstance(call, ConvCall)
    filled = any(None in columns for conv in plan.form.convs for columns in conv.columns)
    if not (filled and call.spec.transposed):
        return None
    return (
        "its groups have several numbers of inputs, and no transposed convolution keeps the zeros "
        "of padding in training; take unequal=bucketed"
    )


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
        beside = _beside(self.root, stage_of(op), node)
        said: dict[fx.Node, Hashable] = {
            source: self._stored(*held) for source, held in beside.items()
        }
        said |= dict.fromkeys((cast(fx.Node, v.key) for v in op.values.values()), "the value")
        if None in said.values() or said.keys() != set(node.all_input_nodes):
            return None
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: repr(said[n]))
        function = op.numbers["function"]
        if function in COMMUTATIVE and len(args) == 2 and not kwargs:
            return function, tuple(sorted(map(repr, args)))
        return node.op, node.target, _frozen(args), _frozen(kwargs)

    def _stored(self, held: Parameter, dim: int | None) -> Hashable:
        """A stored tensor that a function reads beside its value: with an element a channel."""
        tensor = attribute(self.root, str(held.key))
        if dim is None or dim >= _MAPPED or max(held.shape[:dim], default=1) > 1:
            return None
        return dim, len(held.shape), held.shape[dim + 1 :], *self._tensor(tensor)

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
        return self._tensor(attribute(self.root, source.key))

    def _tensor(self, held: Tensor) -> tuple[Hashable, ...]:
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


def _beside(
    root: nn.Module, stage: Stage | None, node: fx.Node
) -> dict[fx.Node, tuple[Parameter, int | None]]:
    """The stored tensors that a node reads, and which dimension of each has the channels."""
    held = () if stage is None else stage.parameters
    tensors = {id(attribute(root, str(each[0].key))): each for each in held}
    read = [n for n in node.all_input_nodes if n.op == "get_attr"]
    found = {n: tensors.get(id(attribute(root, str(n.target)))) for n in read}
    return {n: each for n, each in found.items() if each is not None}


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
        self.joined: dict[str, Entry] = {}
        calls = [read_conv(cast(fx.Node, b.conv.node), self.root) for b in plan.branches]
        self.calls = [call for call in calls if isinstance(call, ConvCall)]

    def run(self, pass_: RegionPass) -> RewrittenSite:
        """Put the merged nodes in; what was done."""
        plan, concat = self.plan, cast(fx.Node, self.plan.concat.node)
        source = cast(fx.Node, plan.source.key)
        specs = [call.spec for call in self.calls]
        sides = (sum(s.in_channels for s in specs), sum(s.out_channels for s in specs))
        whole = plan.form.form == "grouped"
        spec = specs[0].with_channels(*sides, groups=plan.groups if whole else 1)
        record = RewrittenSite(
            name=self.name,
            kind="parallel",
            pass_name=pass_.pass_name(),
            before=describe_branches(each.describe() for each in specs),
            after=spec.describe() if whole else plan.form.describe(),
            branches=len(plan.form.convs),
            macs=None,
            macs_after=None,
            notes=plan.notes(),
            fragment=self.fragment,
            spec=spec,
            input_shape=plan.source.shape,
            start=self.fragment.stands_for(source),
            end=self.fragment.stands_for(concat),
            brief=spec.brief() if whole else plan.form.describe(),
            joined=self.joined,
        )
        with self.graph.inserting_before(concat):
            value = self._gathered("order", plan.form.input_gather, source)
            for op in plan.front:
                value = self._again(cast(fx.Node, op.node), value)
            values = [self._conv(conv, value) for conv in plan.form.convs]
            joint = values[0] if len(values) == 1 else self._concat(values)
            value = self._gathered("output_order", plan.form.output_gather, joint)
            for stages in zip(*(branch.behind for branch in plan.branches), strict=True):
                value = self._behind(stages, value)
        concat.replace_all_uses_with(value)
        self.fragment.stand_in(concat, value)
        erase(self.fragment, concat, stop=source)
        return record

    def _gathered(self, suffix: str, gather: GatherPlan, source: fx.Node) -> fx.Node:
        if gather.kind == "identity":
            return source
        path = self._free(f"{self.name.replace('.', '_')}_{suffix}", [])
        self.root.add_submodule(path, gather_module(gather).train(self.root.training))
        return self.graph.call_module(path, (source,))

    def _again(self, node: fx.Node, value: fx.Node) -> fx.Node:
        """The same call on another value."""
        (old,) = node.all_input_nodes
        return self.graph.node_copy(node, lambda n: value if n is old else n)

    def _conv(self, conv: ConvPlan, value: fx.Node) -> fx.Node:
        """The call of a convolution of the form; one of a single branch is that of the branch."""
        if len(conv.inputs) < len(self.plan.form.input_gather.indices):
            part = (slice(None), slice(conv.inputs.start, conv.inputs.stop))
            value = self.graph.call_function(operator.getitem, (value, part))
        members = self.plan.members(conv)
        if len(members) == 1 and not conv.padded:
            call = self.calls[members[0].branch]
            return self.graph.node_copy(call.node, lambda n: value if n is call.input else n)
        homes = [self.homes[member.branch] for member in members]
        name = self.name if len(members) == len(self.calls) else joint_name(homes)
        place = self._free(name, homes)
        self._place_conv(place, conv, members, homes)
        return self.graph.call_module(place, (value,))

    def _concat(self, values: Sequence[fx.Node]) -> fx.Node:
        return self.graph.call_function(torch.cat, (list(values),), {"dim": 1})

    def _place_conv(
        self, place: str, plan: ConvPlan, members: Sequence[Member], homes: Sequence[str]
    ) -> None:
        calls = [self.calls[member.branch] for member in members]
        first, spec = calls[0], calls[0].spec
        spec = spec.with_channels(plan.in_channels, plan.out_channels, groups=plan.groups)
        template = module_from_spec(spec) if first.path is None else self._module(first.path)
        tensors = {role: self._joint(place, role, plan, members) for role in ("weight", "bias")}
        numbers = {
            "in_channels": spec.in_channels,
            "out_channels": spec.out_channels,
            "groups": spec.groups,
            "kernel_size": spec.kernel_size,
        }
        made: Any = rebuild(template, tensors, **numbers)
        if plan.padded and not spec.transposed:
            # Whose zeros have no gradient.
            mask = made.weight.new_zeros(made.weight.shape[:2])
            for member, call in zip(members, calls, strict=True):
                weight = attribute(self.root, cast(Stored, call.weight).key)
                _picked(plan, member, weight, transposed=False).count(mask)
            made = MASKED[type(made)].of(made, mask != 0)
        if first.path is None:
            made.training = self.root.training
            held = (source for call in calls for source in (call.weight, call.bias))
            for source in held:
                if isinstance(source, Stored):
                    remove(self.root, source.key)
        self._put(made, place, homes)

    def _behind(self, stages: Sequence[Stage], value: fx.Node) -> fx.Node:
        nodes = [cast(fx.Node, stage.op.node) for stage in stages]
        if nodes[0].op != "call_module":
            return self._call(stages, value)
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

    def _call(self, stages: Sequence[Stage], value: fx.Node) -> fx.Node:
        """The function behind the first branch, with what it reads beside its value for all."""
        first, node = stages[0].op, cast(fx.Node, stages[0].op.node)
        (old,) = first.values.values()
        taken = {cast(fx.Node, old.key): value}
        places = {held[0].key: place for place, held in enumerate(stages[0].parameters)}
        for read, (parameter, dim) in _beside(self.root, stages[0], node).items():
            place = places[parameter.key]
            keys = [str(stage.parameters[place][0].key) for stage in stages]
            taken[read] = self.graph.get_attr(self._place_tensor(keys, dim or 0))
        return self.graph.node_copy(node, lambda n: taken[n])

    def _place_tensor(self, keys: Sequence[str], dim: int) -> str:
        """Tensors one after another along `dim`, under a name of their own."""
        place = self._free(joint_name(keys), [])
        tensors = [attribute(self.root, key) for key in keys]
        joint = _like(tensors[0], torch.cat([t.detach() for t in tensors], dim))
        if dim == 0:
            self._cat(keys, place)
        else:
            ends = accumulate(t.shape[dim] for t in tensors)
            columns = [
                tuple(range(e - t.shape[dim], e)) for e, t in zip(ends, tensors, strict=True)
            ]
            self._note(
                keys, place, [Picked("", (Part((0,), c),), joint.shape[:2]) for c in columns]
            )
        for key in keys:
            remove(self.root, key)
        holder, name = holder_of(self.root, place)
        if isinstance(joint, nn.Parameter):
            holder.register_parameter(name, joint)
        else:
            holder.register_buffer(name, joint)
        return place

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

    def _joint(
        self, place: str, role: str, plan: ConvPlan, members: Sequence[Member]
    ) -> Tensor | None:
        """The weights or the biases of the members in one tensor."""
        sources = [getattr(self.calls[member.branch], role) for member in members]
        if sources[0] is None:
            return None
        keys, new = [cast(Stored, source).key for source in sources], f"{place}.{role}"
        if not plan.padded:
            return self._cat(keys, new)
        tensors = [attribute(self.root, key) for key in keys]
        picked = [
            _picked(plan, member, tensor, transposed=self.calls[0].spec.transposed)
            for member, tensor in zip(members, tensors, strict=True)
        ]
        self._note(keys, new, picked)
        made = tensors[0].new_zeros((*picked[0].size, *tensors[0].shape[2:]))
        for part, tensor in zip(picked, tensors, strict=True):
            part.put_back(tensor, made)
        return _like(tensors[0], made)

    def _cat(self, keys: Sequence[str], new: str) -> Tensor:
        tensors = [attribute(self.root, key) for key in keys]
        ends = accumulate(map(len, tensors))
        rows = [Rows("", end - len(t), end) for end, t in zip(ends, tensors, strict=True)]
        self._note(keys, new, rows)
        return _like(tensors[0], torch.cat([t.detach() for t in tensors]))

    def _note(self, keys: Sequence[str], new: str, parts: Sequence[Entry]) -> None:
        """Write down what each of the original's tensors is of the new one."""
        full = self.fragment.working_key(new)
        for key, part in zip(keys, parts, strict=True):
            entry = self.store.entries.pop(self.fragment.working_key(key), None)
            if isinstance(entry, Rows):
                self.joined[entry.key] = replace(part, key=full)

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


def _like(first: Tensor, made: Tensor) -> Tensor:
    """A parameter where `first` is one."""
    if isinstance(first, nn.Parameter):
        return nn.Parameter(made.detach(), requires_grad=first.requires_grad)
    return made


def _picked(plan: ConvPlan, member: Member, tensor: Tensor, *, transposed: bool) -> Picked:
    """Where the elements of a weight or a bias lie in the tensor of the whole convolution."""
    if tensor.dim() == 1:
        return Picked("", (Part(member.outputs),), (plan.out_channels,))
    rows, others = (plan.out_channels, plan.in_channels)[:: -1 if transposed else 1]
    taken = member.inputs if transposed else member.outputs
    columns = tuple(range(tensor.shape[1]))
    return Picked("", (Part(taken, columns),), (rows, others // plan.groups))
