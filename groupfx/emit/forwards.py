"""Which modules of the user's model get another forward or are taken apart, besides the sites.

The graph of the model as it was and the graph that a rewrite left are both taken apart into what
each module does. Where the two say the same, the user's own code stays; where not, the graph says
what the new forward is.
"""

from __future__ import annotations

import copy
import inspect
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any

from torch import fx, nn

from ..convs.names import joined
from ..errors import RewriteError
from ..plan.site_plan import site_of
from ..rewriting import Result
from ..tracing import Fragment
from ..tracing.places import owner_of
from .changes import Change, where
from .code import Classes
from .layers import Layers, are_alike
from .nesting import call_of, form_of, modules_around, take_out_parts
from .text import is_name
from .tree import reach


class Forwards:
    """What a file says of the modules around the sites: constructors and classes, each with paths.

    `fused` are modules that normalise and activate in one, and become a Sequential; `layers` are
    put beside what is there; `classes` have another forward.
    """

    def __init__(self, result: Result, layers: Layers, classes: Classes) -> None:
        self.fused: dict[str, list[str]] = defaultdict(list)
        self.layers: dict[str, list[str]] = defaultdict(list)
        self.classes: dict[str, list[str]] = defaultdict(list)
        self._norms: dict[str, str] = {}
        self._model = result.program.model
        self._constructors, self._forwards = layers, classes

    def norm(self, path: str | None) -> str | None:
        """Where a BatchNorm of the rewritten graph lies in the user's model, then."""
        return None if path is None else self._norms.get(path, path)

    def compare(self, fragment: Fragment, calls: Sequence[Change]) -> None:
        """Compare the model as it was with what it is now, but for the `calls` of sites.

        Raises RewriteError where the difference is more than forwards and layers.
        """
        sites = {change.path for change in calls}
        alone = {str(n.target) for n in fragment.reference.graph.nodes if n.op == "call_module"}
        held = dict(fragment.working.named_modules())
        parted = {path for path in alone & held.keys() if type(held[path]) is nn.Module}

        def parts(graph: fx.Graph) -> dict[str, fx.Graph]:
            def takes(path: str, inputs: int, _: int) -> bool:
                single = path in parted | sites or len(self._arguments(path)) == 1
                return single and inputs == 1

            return {**take_out_parts(graph, _called(graph), takes), "": graph}

        after = parts(_now(fragment, calls, self._model))
        # What was nothing but a norm that is in branches now, under another name.
        norms = {change.norm for change in calls if change.norm and change.kind != "called"}
        gone = ({norm.rpartition(".")[0] for norm in norms} & parted) - after.keys()
        before = parts(_without(fragment.reference.graph, norms | gone))
        for path, graph in {**after, **dict.fromkeys(sorted(gone), fx.Graph())}.items():
            if path in parted:
                self._take_apart(path, graph, fragment.working)
            elif path not in before or form_of(before[path]) != form_of(graph):
                self._change(path, graph)
        for path in parted:
            after.pop(path, None)
        self._put_beside(after, sites | parted, fragment)

    def _arguments(self, path: str) -> list[str]:
        forward = type(self._model.get_submodule(path)).forward
        return [*inspect.signature(forward).parameters][1:]

    def _take_apart(self, path: str, graph: fx.Graph, working: nn.Module) -> None:
        """A Sequential for a module that is a norm, perhaps in branches by now, and the rest."""
        names = [name for name, _ in working.get_submodule(path).named_children()]
        parts = [working.get_submodule(joined(path, name)) for name in names]
        inner = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
        chain = [str(node.target) for node in inner if node.op == "call_module"]
        if len(chain) < len(inner) or chain not in (names, names[1:]):
            raise RewriteError(f"{path} became more than its parts in a row")
        if chain != names:
            parts[0] = _whole(parts[0], self._model.get_submodule(path))
        made = [
            self._constructors.call(part, joined(path, name))
            for part, name in zip(parts, names, strict=True)
        ]
        self.fused[f"nn.Sequential({', '.join(made)})"].append(path)
        self._norms[joined(path, names[0])] = f"{path}.0"

    def _change(self, path: str, graph: fx.Graph) -> None:
        """Another forward for the module at `path`."""
        module = self._model.get_submodule(path)
        for node in graph.nodes:
            if node.op == "get_attr" and not _is_held(module, str(node.target)):
                place = joined(path, str(node.target))
                raise RewriteError(f"{place}{where(*node.users)} is a constant of a graph alone")
        if path:  # the one argument that it takes, by the name that callers know
            (start,) = (node for node in graph.nodes if node.op == "placeholder")
            (start.target,) = self._arguments(path)
        kind = type(module).__name__
        place = f"`{path}`, and what is like it" if path else "the whole model"
        name = self._forwards.add(
            kind if is_name(kind) else "Block",
            "nn.Module",
            f"Another forward for {place}",
            graph,
            reach(module, _is_numbered),
        )
        self.classes[name].append(path)

    def _put_beside(
        self, parts: Mapping[str, fx.Graph], others: Collection[str], fragment: Fragment
    ) -> None:
        """The layers that `parts` call and the model had not, but for those in `others`."""
        had = dict(fragment.reference.named_modules())
        nodes = ((path, node) for path, graph in parts.items() for node in graph.nodes)
        called = {joined(path, str(n.target)): n for path, n in nodes if n.op == "call_module"}
        for path, node in called.items():
            container = path.rpartition(".")[0].rpartition(".")[0]  # of which it is a branch
            if path in parts or path in others or container in others:
                continue
            module = fragment.working.get_submodule(path)
            if module.state_dict():
                if path not in had:
                    raise RewriteError(f"{path}{where(node)} is a new layer with tensors of others")
            elif path not in had or not are_alike(module, had[path]):
                self.layers[self._constructors.call(module, path)].append(path)


def _called(graph: fx.Graph) -> set[str]:
    """Paths of the modules whose forward the graph shows."""
    return {
        path
        for node in graph.nodes
        for path in modules_around(node)
        if node.op != "call_module" or path != node.target
    }


def _without(graph: fx.Graph, layers: Collection[str]) -> fx.Graph:
    """A copy of a graph in which these layers give what they are given."""
    copied = fx.Graph()
    copied.output(copied.graph_copy(graph, {}))
    for node in list(copied.nodes):
        if node.op == "call_module" and node.target in layers:
            node.replace_all_uses_with(node.all_input_nodes[0])
            copied.erase_node(node)
    return copied


def _now(fragment: Fragment, calls: Sequence[Change], model: nn.Module) -> fx.Graph:
    """What it does, with a call of a container for each of a site."""
    graph = fx.Graph()
    standing: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(fragment.working.graph, standing))
    _same_in_each_call(graph, fragment.working, model)
    for change in calls:
        if change.output is None:  # the forward of the module around it calls the pieces
            for node in graph.nodes:
                if node.op == "call_module" and node.target in change.pieces:
                    node.target = joined(change.path, change.pieces[node.target])
            continue
        output = standing[change.output]
        with graph.inserting_after(output):
            call = graph.call_module(change.path, tuple(standing[node] for node in change.starts))
        call.meta = {"nn_module_stack": change.call.meta.get("nn_module_stack")}
        last = call
        if change.kind == "called" and change.norm is not None:  # which stays behind it
            (norm,) = change.call.users
            with graph.inserting_after(call):
                last = graph.node_copy(norm, {change.call: call}.__getitem__)
        output.replace_all_uses_with(last)
        standing[change.output] = last
    inside = {change.path for change in calls if change.kind == "called"}
    graph.eliminate_dead_code(
        lambda node: site_of(node.meta) is None and inside.isdisjoint(modules_around(node))
    )
    return graph


def _same_in_each_call(now: fx.Graph, working: nn.Module, model: nn.Module) -> None:
    """Let each call of a module call the same new layers, which have no tensors."""
    known = {path for path, _ in model.named_modules()}
    numbers: Counter[Hashable] = Counter()
    first: dict[Hashable, Any] = {}
    for node in now.nodes:
        if node.op == "call_module" and node.target not in known:
            owner, layer = owner_of(node), working.get_submodule(str(node.target))
            if layer.state_dict():
                continue
            kind = (owner, repr(layer))
            number = numbers[kind, call_of(node, owner)]
            numbers[kind, call_of(node, owner)] += 1
            node.target = first.setdefault((kind, number), node.target)


def _is_held(module: nn.Module, path: str) -> bool:
    held: object = module
    for name in path.split("."):
        held = getattr(held, name, None)
    return held is not None


def _is_numbered(held: object) -> bool:
    # Where nothing is yet, there will be the branches of a container.
    return held is None or isinstance(held, nn.Sequential | nn.ModuleList)


def _whole(norms: nn.Module, fused: nn.Module) -> nn.Module:
    """A BatchNorm like those that the one in `fused` was cut into, with its tensors."""
    parts: list[Any] = [*norms.children()]
    whole: nn.Module = copy.copy(parts[0])
    vars(whole)["num_features"] = sum(part.num_features for part in parts)
    vars(whole).update(_parameters=fused._parameters, _buffers=fused._buffers)
    return whole
