"""Symbolic tracing that notices when the trace would not be the model.

`torch.fx` records one path through `forward`. Some things make that path differ from the model
without any error, and each is looked for here:

- `forward` reads `self.training`, the grad mode, or draws random numbers while it runs: the model
  is traced twice, with all of them changed, and the two graphs are compared; where only the mode
  matters, and a graph is worth more than the class, there is one of each mode (`both_modes`);
- a custom `torch.autograd.Function` is inlined and its backward is lost: the module that calls it
  stays a leaf;
- hooks on modules that are traced through, or on the root, would be recorded once or dropped;
- an optional argument would be traced as given, or as left out, for good;
- what is drawn with `random` or `torch.rand(())` while it is traced would be drawn once: the
  generators are looked at afterwards;
- `train()` or `__call__` of the model's own, and a `forward` that somebody put on one instance, are
  not in the graph;
- activation checkpointing is dropped, which is said.

So does a part of `forward` that runs under `no_grad` or `autocast`: a graph has no `with`.
"""

import contextlib
import inspect
import random
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.utils.checkpoint
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from ..convs.calls import CONV_FUNCTIONS, PLACE
from ..convs.spec import CONV_TYPES, original_type
from ..errors import kind_and_line, no_exit
from ..learned.groups import has_learned_groups
from ..running.grouped_runs import at, error_place, users_place
from ..running.settings import settings_unchanged
from ..running.unchanged import evaluate, seed_torch, unchanged
from ..verify.measures import identical
from .asserts import AssertingTracer
from .attributes import Attributes
from .hooks import hooked
from .memories import Memories
from .places import LINE, user_line
from .quantised import quantises
from .values_read import ValuesRead, what_is_no_graph


class CannotTrace(Exception):
    """Tracing failed, or would have changed the model. The message is the reason."""


class _CustomBackward(Exception):
    """A custom autograd function met a proxy."""

    def __init__(self, function: type) -> None:
        super().__init__(function.__name__)
        self.function = function


class _TracedValue(fx.Proxy):
    """A value of the graph, which refuses what a graph cannot do: `weight.data = tensor`."""

    def __setattr__(self, name: str, value: Any) -> None:
        if hasattr(torch.Tensor, name):
            raise CannotTrace(f"forward assigns to .{name} of a tensor{at(users_place())}")
        super().__setattr__(name, value)


class Tracer(AssertingTracer):
    """A symbolic tracer with the leaves that groupfx needs.

    `opaque` names modules that stay leaves although their class is not of `torch.nn`.
    """

    proxy_buffer_attributes = True

    def __init__(self, opaque: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self.opaque = opaque
        self.calls: list[str] = []
        self._context = _context()
        self._thread = threading.get_ident()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        # A graph has no `with`: what ran under no_grad or autocast would run without it.
        if _context() != self._context:
            place = at(users_place())
            raise CannotTrace(
                f"forward switches the grad mode or autocast for a part of itself{place}"
            )
        if args[:2] == ("call_function", getattr) and args[2][1] == "data":
            # The same but for a counter of writes; an attribute of that name no file may read.
            args = ("call_method", "detach", args[2][:1], *args[3:])
        node = super().create_node(*args, **kwargs)
        node.meta[LINE] = user_line()
        if node.op == "call_module" or node.target in CONV_FUNCTIONS:
            node.meta[PLACE] = users_place()
        return node

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _TracedValue(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self.opaque:
            return True
        kind = original_type(m)
        if kind.__module__.startswith("groupfx.nn") or kind in CONV_TYPES:
            return True
        if isinstance(m, fx.GraphModule):
            return False
        if has_learned_groups(m):
            return True
        library = kind.__module__.startswith(("torch.nn", "torch.ao.nn"))
        fused = isinstance(m, nn.Sequential) and kind.__module__.startswith("torch.ao.nn")
        if fused or isinstance(m, _ConvNd):
            return quantises(m) or (library and not fused)
        return library and not isinstance(m, nn.Sequential)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if self._elsewhere():
            return forward(*args, **kwargs)
        self.calls.append(self.path_of_module(m))
        result = super().call_module(m, forward, args, kwargs)
        self.calls.pop()
        return result

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self._elsewhere():
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def _elsewhere(self) -> bool:
        """Whether this is another thread, whose modules torch's patches meet too."""
        return threading.get_ident() != self._thread


def _context() -> tuple[bool, ...]:
    return torch.is_grad_enabled(), *(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda"))


@contextlib.contextmanager
def _autograd_functions_refused() -> Iterator[None]:
    """While active, a custom autograd function that is applied to a proxy raises."""
    original = torch.autograd.Function.__dict__["apply"]

    def apply(cls: type, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(leaf, fx.Proxy) for leaf in tree_leaves((args, kwargs))):
            raise _CustomBackward(cls)
        return original.__func__(cls, *args, **kwargs)

    torch.autograd.Function.apply = classmethod(apply)  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        torch.autograd.Function.apply = original  # type: ignore[method-assign]


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python, NumPy and torch for a while, then put back what was there."""
    with unchanged():
        random.seed(seed)
        np.random.seed(seed)
        seed_torch(seed)
        yield


def _random_states() -> tuple[Any, ...]:
    numbers: Any = np.random.get_state()
    return random.getstate(), numbers[2], bytes(numbers[1]), bytes(torch.get_rng_state().numpy())


@dataclass(frozen=True)
class Trace:
    """A traced graph, the tensors that `forward` made on the way, and what is now fixed.

    `trained` is the graph of train mode where that is another one, and this is of eval mode.
    """

    graph: fx.Graph
    constants: Mapping[str, torch.Tensor]
    notes: tuple[str, ...] = ()
    trained: fx.Graph | None = None


def trace(
    model: nn.Module,
    given: frozenset[str],
    *,
    asked: bool = False,
    modes: bool = False,
    leaves: Collection[str] = (),
) -> Trace:
    """Graph of `model`, which is left as it was; with `modes` that of each mode, if need be.

    `given` names the arguments of `forward` that the caller passes, `leaves` the paths of modules
    that are to stay one call each. Raises `CannotTrace` with the reason where the graph would not
    be the model; where it was `asked` for by name, arguments left out are fixed at their defaults,
    and what a trace drops of the training is dropped (said in the notes), instead of refused.
    """
    optional = _optional_arguments(model)
    if optional and not asked:
        names = ", ".join(optional)
        raise CannotTrace(f"a trace would fix the optional arguments of forward ({names})")
    fixed = {name: value for name, value in optional.items() if name not in given}
    _refuse_own_methods(model)
    _refuse_hooks(model)
    checkpointed: list[str] = []
    with _checkpoints_seen(checkpointed):
        traced, other = _in_both_modes(model, fixed, leaves)
    difference = _first_difference(traced, other)
    trained = None
    if difference is not None:
        cause, node = _cause(model, fixed, leaves, traced, difference)
        if cause != _MODE or not modes:
            raise _depends_on(cause, node)
        traced, other = _of_each_mode(model, fixed, leaves)
        trained = other.graph
    notes = [f"argument {name!r} is fixed at {value!r}" for name, value in fixed.items()]
    if checkpointed:
        what = ", ".join(dict.fromkeys(checkpointed))
        notes.append(
            f"activation checkpointing (of {what}) is not in a trace, which takes more memory in "
            "training, and counts a batch once in the statistics of norms there, not again in the "
            "backward: open the model with way='modules' to keep it"
        )
    return Trace(traced.graph, traced.constants, tuple(notes), trained)


_MODE = "the training mode"


def _depends_on(cause: str, node: fx.Node) -> CannotTrace:
    place = at(node.meta.get(LINE) or "")
    return CannotTrace(
        f"forward depends on {cause}, and a trace would freeze it (it differs at "
        f"{node.name}{place})"
    )


def _cause(
    model: nn.Module,
    fixed: dict[str, Any],
    leaves: Collection[str],
    traced: Trace,
    difference: fx.Node,
) -> tuple[str, fx.Node]:
    """What the graph of a model depends on, and the first node that is another then."""
    with torch.set_grad_enabled(not torch.is_grad_enabled()):
        ungraded = _trace_with_leaves(model, fixed, leaves, seed=1)
    drawn = _trace_with_leaves(model, fixed, leaves, seed=2)
    for cause, changed in (("the grad mode", ungraded), ("random numbers", drawn)):
        node = _first_difference(traced, changed)
        if node is not None:
            return cause, node
    return _MODE, difference


def _of_each_mode(
    model: nn.Module, fixed: dict[str, Any], leaves: Collection[str]
) -> tuple[Trace, Trace]:
    """The traces of eval and of train mode, each of which depends on nothing else."""
    evaluated, trained = (_traced_in(model, fixed, leaves, training=m) for m in (False, True))
    with torch.set_grad_enabled(not torch.is_grad_enabled()):
        for mode, traced in ((False, evaluated), (True, trained)):
            again = _traced_in(model, fixed, leaves, training=mode, seed=2)
            node = _first_difference(traced, again)
            if node is not None:
                raise _depends_on("the grad mode or random numbers", node)
    return evaluated, trained


def _traced_in(
    model: nn.Module,
    fixed: dict[str, Any],
    leaves: Collection[str],
    *,
    training: bool,
    seed: int = 1,
) -> Trace:
    """The trace in one mode of all modules."""
    with unchanged(model):
        evaluate(model, training=training)
        return _trace_with_leaves(model, fixed, leaves, seed=seed)


def _in_both_modes(
    model: nn.Module, fixed: dict[str, Any], leaves: Collection[str]
) -> tuple[Trace, Trace]:
    graded = torch.is_grad_enabled()
    with _grad_switches_seen() as switches:
        traced = _trace_with_leaves(model, fixed, leaves, seed=1)
    with unchanged(model):
        for module in model.modules():
            module.training = not module.training
        if switches:
            # Whoever sets it by the mode may have set it to what it was, in both traces.
            _trace_with_leaves(model, fixed, leaves, seed=2)
        with torch.set_grad_enabled(not graded):
            return traced, _trace_with_leaves(model, fixed, leaves, seed=2)


@contextlib.contextmanager
def _grad_switches_seen() -> Iterator[list[bool]]:
    """While active, notes what the grad mode is set to, whatever it was."""
    seen: list[bool] = []
    room: Any = torch._C
    switch = room._set_grad_enabled

    def noted(mode: bool) -> None:
        seen.append(mode)
        switch(mode)

    room._set_grad_enabled = noted
    try:
        yield seen
    finally:
        room._set_grad_enabled = switch


@contextlib.contextmanager
def _checkpoints_seen(seen: list[str]) -> Iterator[None]:
    """While active, notes each call of `torch.utils.checkpoint` by the name of what it runs."""
    room: Any = torch.utils.checkpoint
    generator = room._checkpoint_without_reentrant_generator

    def noted(function: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(getattr(function, "__name__", type(function).__name__))
        return generator(function, *args, **kwargs)

    room._checkpoint_without_reentrant_generator = noted
    try:
        yield
    finally:
        room._checkpoint_without_reentrant_generator = generator


def _refuse_own_methods(model: nn.Module) -> None:
    """What decides about a model beside the `forward` of its class is not in a graph."""
    if type(model).__call__ is not nn.Module.__call__ and not isinstance(model, fx.GraphModule):
        raise CannotTrace(f"{type(model).__name__} has a __call__ of its own")
    if "forward" in vars(model):
        raise CannotTrace("its forward was put on this instance, not on its class")
    tracer = Tracer()
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise CannotTrace(f"{path or 'the model'} is TorchScript")
        kind = type(module)
        own = kind.train is not nn.Module.train or kind.eval is not nn.Module.eval
        if own and not (path and tracer.is_leaf_module(module, path)):
            raise CannotTrace(f"{path or kind.__name__} has a train() of its own")


def _optional_arguments(model: nn.Module) -> dict[str, Any]:
    """Arguments of `forward` that have defaults."""
    parameters = inspect.signature(model.forward).parameters
    for parameter in parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise CannotTrace(f"forward takes a variable number of arguments ({parameter})")
    return {n: p.default for n, p in parameters.items() if p.default is not p.empty}


def _refuse_hooks(model: nn.Module) -> None:
    """Hooks survive on leaves only: elsewhere they would be recorded once, or dropped."""
    tracer = Tracer()
    for path, module in model.named_modules():
        if path and tracer.is_leaf_module(module, path):
            continue
        kinds = hooked(module)
        if kinds:
            raise CannotTrace(f"{path or 'the model'} has {kinds[0]}, which a trace would drop")


def _trace_with_leaves(
    model: nn.Module, fixed: dict[str, Any], leaves: Collection[str], *, seed: int
) -> Trace:
    opaque = set(leaves)
    while True:
        tracer = Tracer(frozenset(opaque))
        before, memories = Attributes(model), Memories(model)
        try:
            with seeded(seed), _autograd_functions_refused(), no_exit(type(model).__name__):
                graph = _recorded(tracer, model, fixed)
        except _CustomBackward as error:
            owner = tracer.calls[-1] if tracer.calls else ""
            if not owner:
                reason = (
                    f"forward applies the autograd function {error}: its backward would be lost"
                )
                raise CannotTrace(reason) from error
            opaque.add(owner)
        except CannotTrace:
            raise
        except Exception as error:
            # Whatever a user's forward raises when it is given proxies is a reason, not a crash.
            raise CannotTrace(f"{kind_and_line(error)}{at(error_place(error))}") from error
        else:
            constants = {
                name: value
                for name, value in model.__dict__.items()
                if name.startswith("_tensor_constant") and isinstance(value, torch.Tensor)
            }
            more = what_is_no_graph(model, graph)
            if more:
                raise CannotTrace(more)
            grown = memories.grown()
            if grown:
                raise CannotTrace(f"forward keeps values in the cache of {grown}, as a trace would")
            changed = before.restore(except_for=constants.keys())
            if changed:
                raise CannotTrace(f"forward assigns to {changed}, which a trace would freeze")
            return Trace(graph, constants)
        finally:
            before.restore()
            memories.grown()


def _recorded(tracer: Tracer, model: nn.Module, fixed: dict[str, Any]) -> fx.Graph:
    """The graph; `CannotTrace` where forward did with numbers what a graph would not do again."""
    start = _random_states()
    with settings_unchanged(), ValuesRead(model) as read:
        graph = tracer.trace(model, dict(fixed) or None)
    if read.why:
        raise CannotTrace(read.why)
    if _random_states() != start:
        raise CannotTrace(
            "forward draws random numbers while it runs, and a trace would freeze them"
        )
    return graph


def _first_difference(traced: Trace, other: Trace) -> fx.Node | None:
    """The first node in which two traces differ, constants compared by value."""
    nodes: list[fx.Node] = list(traced.graph.nodes)
    twins: list[fx.Node] = list(other.graph.nodes)
    for node, twin in zip(nodes, twins, strict=False):
        # Node names are given in order, so equal graphs have equal names and equal argument reprs.
        same = (node.op, node.name, node.target) == (twin.op, twin.name, twin.target)
        if not same or repr((node.args, node.kwargs)) != repr((twin.args, twin.kwargs)):
            return node
        if node.op == "get_attr" and node.target in traced.constants:
            constant = traced.constants[str(node.target)]
            if not identical(constant, other.constants[str(node.target)]):
                return node
    if len(nodes) != len(twins):
        longer = nodes if len(nodes) > len(twins) else twins
        return longer[min(len(nodes), len(twins))]
    return None
