"""The user's own model with small graphs in place of its convolutions: put there, and tried.

Whoever wrote the model may have kept a convolution elsewhere too: in a dict beside the modules, as
a bound method, in a compiled function. Then what stands in its place is never called. So each graph
is put there as it was opened, and one forward shows which of them run.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

from ..convs.spec import ConvSpec
from ..convs.swapped_calls import SwappedCalls
from ..nn.swapped import SwappedConv, replace_everywhere
from ..running.grouped_runs import GroupedRun, GroupedRuns
from ..running.inputs import ExampleInputs
from ..running.kept import KeptParameters
from ..running.unchanged import evaluate, unchanged
from ..verify.measures import unlike
from .graphs import SEED
from .program import Fragment
from .tracer import seeded


def put(model: nn.Module, path: str, graph: fx.GraphModule, calls_of: ConvSpec | None) -> None:
    """Let `graph` stand for the module at `path`, or for its calls of a function."""
    old = model.get_submodule(path)
    if calls_of is not None:
        SwappedCalls.of(old).graphs[calls_of] = graph
        return
    if old is graph:
        return
    if isinstance(graph, SwappedConv):
        graph.keep_fields(old)
    replace_everywhere(model, old, graph)


@dataclass(frozen=True)
class Tried:
    """What one forward with the fragments in place has shown.

    `idle` are the positions of the fragments that would not run as often as what they stand for
    did, and of those of which forward reads a parameter somewhere else, such as in a list of its
    own: what it reads there would stay as it is. `outside` are the grouped convolutions that ran in
    none of them.
    """

    idle: Collection[int]
    outside: Sequence[GroupedRun[int]] = ()


def tried(
    model: nn.Module, fragments: Sequence[Fragment], inputs: ExampleInputs, output: Any
) -> Tried:
    """Run `model`, which is left as it was, with the fragments in place.

    All of them are idle where it does not run with them, or gives another `output`.
    """
    graphs = [fragment.reference for fragment in fragments]
    runs: Counter[int] = Counter()
    everything = range(len(fragments))
    parameters = [set(map(id, model.get_submodule(f.path).parameters())) for f in fragments]
    # A watcher, as in the run that counted them: torch.compile stands back for both.
    elsewhere = _ReadElsewhere(model)
    convs: GroupedRuns[int] = GroupedRuns(lambda: elsewhere.running)
    with _in_place(model, fragments, graphs, runs, elsewhere), unchanged(model), seeded(SEED):
        evaluate(model)
        try:
            with torch.no_grad(), elsewhere, convs:
                found = inputs.map(torch.clone).call(model)
        except Exception:  # what a forward does with a stranger in it is its own affair
            return Tried(everything)
    if unlike(output, found):
        return Tried(everything)
    idle = [
        number
        for number, fragment in enumerate(fragments)
        if runs[number] != fragment.calls
        or (fragment.is_module and not elsewhere.parameters.isdisjoint(parameters[number]))
    ]
    return Tried(idle, [run for run in convs.runs if not run.owner])


class _ReadElsewhere(KeptParameters):
    """The parameters (their ids) that forward reads while none of the graphs runs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.parameters: set[int] = set()
        self.running = 0

    def seeing(self, func: OpOverload, args: Any, kwargs: Any) -> None:
        """Look at what the operator is given."""
        if not self.running:
            read = map(self.held_behind, tree_leaves((args, kwargs)))
            self.parameters.update(id(parameter) for parameter in read if parameter is not None)
        super().seeing(func, args, kwargs)


@contextlib.contextmanager
def _in_place(
    model: nn.Module,
    fragments: Sequence[Fragment],
    graphs: Sequence[fx.GraphModule],
    runs: Counter[int],
    watcher: _ReadElsewhere,
) -> Iterator[None]:
    """While active, `graphs` stand in `model`, and `runs` counts how often each is called."""
    kept = [model.get_submodule(fragment.path) for fragment in fragments]
    hooks = [_forward_hooks(module) for module in kept]
    for number, (fragment, graph) in enumerate(zip(fragments, graphs, strict=True)):
        graph.__dict__["forward"] = _counted(graph, runs, number, watcher)
        put(model, fragment.path, graph, fragment.calls_of)
    try:
        with contextlib.ExitStack() as standing:
            for graph, module in zip(graphs, kept, strict=True):
                if isinstance(graph, SwappedConv):
                    standing.enter_context(graph.standing_for(module))
            yield
    finally:
        for fragment, graph, module, before in zip(fragments, graphs, kept, hooks, strict=True):
            del graph.__dict__["forward"]
            if fragment.calls_of is None:
                replace_everywhere(model, graph, module)
                continue
            for name, was in before.items():
                held = module.__dict__[name]
                held.clear()
                held.update(was)


def _forward_hooks(module: nn.Module) -> dict[str, dict[int, Any]]:
    """The hooks of its calls, by the names of the fields that hold them."""
    named = ((n, v) for n, v in vars(module).items() if n.startswith("_forward"))
    return {name: dict(value) for name, value in named if isinstance(value, dict)}


def _counted(
    graph: fx.GraphModule, runs: Counter[int], number: int, watcher: _ReadElsewhere
) -> Any:
    forward = graph.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        runs[number] += 1
        watcher.running += 1
        try:
            return forward(*args, **kwargs)
        finally:
            watcher.running -= 1

    return counted
