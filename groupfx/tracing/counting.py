"""Which grouped convolutions a forward really runs, and who calls them.

A module of `torch.nn`, a function of torch, or something into which torch does not let us look (a
TorchScript module, a custom operator): every one that runs is counted, and belongs to one of them.
"""

import contextlib
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch._C import _functorch as functorch
from torch.nn.modules import module as hooks
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ..convs.calls import CONV_FUNCTIONS, spec_of_call
from ..convs.spec import ConvSpec, is_plain
from ..errors import ModelError
from ..learned.groups import has_learned_groups
from ..running.float64 import storage
from ..running.grouped_runs import GroupedRun, GroupedRuns, at, users_place
from ..running.inputs import ExampleInputs
from ..running.kept import KeptParameters, values_kept
from ..running.macs import MacCounter
from ..running.unchanged import evaluate, unchanged
from ..running.watching import is_passed_on
from ..running.weightless import is_weightless
from ..verify.measures import unlike
from .graphs import SEED, forward_failed
from .program import Shapes
from .tracer import CannotTrace, seeded
from .values_read import switching

_FUSED = "mkldnn_convolution"
VMAP = "torch.vmap"
ASKS = "torch.overrides"
_SWITCHES: tuple[Any, ...] = (
    torch.Tensor.requires_grad_,
    torch.Tensor.requires_grad.__set__,  # type: ignore[attr-defined]
)


def site_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every module that may be a site, by its first path.

    Grouped convolutions, subclasses included, and layers with learned groups.
    """
    return {
        path: module
        for path, module in model.named_modules()
        if (isinstance(module, _ConvNd) and module.groups > 1) or has_learned_groups(module)
    }


@dataclass
class ModuleCalls:
    """How often a convolution module was called, and the first call's shapes.

    `example` is the input of that call, kept only where a `forward` has to be run to see inside.
    `more` is whether a call gave it anything besides its input.
    """

    shapes: Shapes | None
    example: torch.Tensor | None
    count: int = 1
    more: bool = False


@dataclass
class FunctionCalls:
    """Calls of functions of torch with the same numbers, while the module at `path` runs.

    `site` is the module of a site that called them, None outside of all. `weight` is the shape of
    the weight that it was called with, `shapes` those of the first call.
    """

    path: str
    site: str | None
    spec: ConvSpec
    weight: tuple[int, ...]
    shapes: Shapes
    place: str
    count: int = 0


@dataclass(frozen=True)
class Unseen:
    """Grouped convolutions at one place in the source that run where nobody can look inside.

    `inside` is the operator that they are a part of: `torch.cond` or one like it, or one that a
    user wrote; `torch.vmap` where that makes groups of samples, `torch.overrides` where
    forward asks for a mode of functions; empty where there is none.
    """

    path: str
    operator: str
    place: str
    groups: int
    inside: str
    count: int


@dataclass
class Counted:
    """Grouped convolution calls of one forward, and what it returned.

    `modules` by path; `functions` are calls of those wherever they stand, `unseen` what is
    neither, and `weights` the storages of the weights that functions were called with. `runs` are
    the convolutions that were executed, `lent_others` the modules that ran with other parameters
    than their own (`functional_call`), `written` the parameters that forward writes to, `switched`
    those whose `requires_grad` it sets and where, `foreign` where it first reads a tensor that is
    trained and no parameter of it, `strangers` the ids of modules that it calls and
    does not hold, and `macs` the multiply-accumulates of all of that forward, for one sample.
    `compiles` is whether it calls `torch.cond` or one like it, and `asks` whether it asks for a
    mode of functions, so that none was there and `functions` is empty.
    """

    modules: dict[str, ModuleCalls]
    functions: list[FunctionCalls]
    unseen: list[Unseen]
    weights: Set[int]
    lent_others: Set[str]
    runs: int
    written: tuple[str, ...]
    switched: Mapping[str, str]
    foreign: str | None
    strangers: Set[int]
    macs: int
    compiles: bool
    output: Any = field(repr=False)
    asks: bool = False

    @property
    def outside(self) -> int:
        """How many of them are not calls of modules."""
        functions = (calls.count for calls in self.functions if calls.site is None)
        return sum(functions) + sum(unseen.count for unseen in self.unseen)

    def require_parameters_left(self) -> None:
        """Raise `CannotTrace` where forward changes what is trained, or trains what is none of its.

        No graph does that.
        """
        if self.written:
            raise CannotTrace(f"forward writes to its parameter {self.written[0]}")
        for name, place in self.switched.items():
            raise CannotTrace(switching(name, place))
        if self.foreign is not None:
            raise CannotTrace(
                f"forward reads a tensor{at(self.foreign)} that is trained and no parameter of the "
                "model, which a graph would hold as a constant: register it, or its module"
            )

    def lends_its_weight(self, module: nn.Module) -> bool:
        """Whether functions were called with a parameter of `module` as their weight."""
        return any(storage(tensor) in self.weights - {0} for tensor in module.parameters())


@dataclass(frozen=True)
class _Owner:
    """Who runs an operator: the innermost module, a site, and a function of torch, if any."""

    path: str
    site: str | None
    function: FunctionCalls | None
    inside: str


def _is_of_no_site(owner: _Owner) -> bool:
    """Whether no graph of a site would show it; nothing can be put under vmap's own groups."""
    return owner.site is None or owner.inside == VMAP


class _Calls(TorchFunctionMode):
    """The modules and the functions that are running."""

    def __init__(self, model: nn.Module, inside_operator: Callable[[], str]) -> None:
        super().__init__()
        self._inside_operator = inside_operator
        self._thread = threading.get_ident()
        self.modules: dict[str, ModuleCalls] = {}
        self.functions: dict[object, FunctionCalls] = {}
        self._paths = {id(module): path for path, module in model.named_modules()}
        self._sites = {id(module): path for path, module in site_modules(model).items() if path}
        self._scripts = {
            id(module) for module in model.modules() if isinstance(module, torch.jit.ScriptModule)
        }
        # Hooks on all modules meet those of other threads too.
        self._stacks: dict[int, list[int]] = defaultdict(list)
        self.strangers: set[int] = set()
        self.weights: set[int] = set()
        self.lent_others: set[str] = set()
        self.fused: list[GroupedRun[_Owner]] = []
        self._own = {id(m): _held(m) for m in model.modules() if id(m) in self._sites}
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._memory = {0, *map(storage, model.parameters())}
        self.switched: dict[str, str] = {}
        self.foreign: str | None = None
        self._function: FunctionCalls | None = None
        self._grouping = ""

    def _is_foreign(self, value: object) -> bool:
        """Whether it is trained, and neither a parameter of the model nor a view of one."""
        if not (isinstance(value, torch.Tensor) and value.requires_grad and value.is_leaf):
            return False
        return id(value) not in self._names and storage(value) not in self._memory

    @property
    def _running(self) -> list[int]:
        return self._stacks[threading.get_ident()]

    def watching(self) -> AbstractContextManager[object]:
        """What is entered to see calls of functions."""
        return self

    def owner(self) -> _Owner:
        """Of what is running now."""
        inside = self._inside_operator() or self._grouping
        return _Owner(self._path(), self._site(), self._function, inside)

    def _site(self) -> str | None:
        return next((self._sites[each] for each in self._running if each in self._sites), None)

    def _path(self) -> str:
        known = (self._paths[each] for each in reversed(self._running) if each in self._paths)
        return next(known, "")

    def _is_closed(self) -> bool:
        """Whether what runs takes no mode of ours next time: TorchScript, a part of torch.cond."""
        scripted = bool(self._running) and self._running[-1] in self._scripts
        return scripted or bool(self._inside_operator())

    def before(self, module: nn.Module, _args: Any) -> None:
        """A module starts."""
        if id(module) not in self._paths and threading.get_ident() == self._thread:
            self.strangers.add(id(module))
        if _held(module) != self._own.get(id(module), _held(module)):
            self.lent_others.add(self._sites[id(module)])
        if id(module) in self._scripts and self._scripts.isdisjoint(self._running):
            owner = _Owner(self._paths[id(module)], self._site(), None, "")
            self.fused += (GroupedRun(owner, _FUSED, n, "") for n in _fused_groups(module))
        self._running.append(id(module))

    def after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """A module ends, and if it is a site that was a call of it."""
        while self._running and self._running.pop() != id(module):
            pass  # one that raised, and whose error somebody caught
        path = self._sites.get(id(module))
        if path is None:
            return
        data = next(v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor))
        more = len(args) + len(kwargs) > 1
        if path in self.modules:
            self.modules[path].count += 1
            self.modules[path].more |= more
        elif isinstance(output, torch.Tensor):
            shapes = Shapes(tuple(data.shape), tuple(output.shape))
            plain = is_plain(module) or has_learned_groups(module)
            example = None if plain else data.detach()
            self.modules[path] = ModuleCalls(shapes, example, more=more)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _SWITCHES and id(args[0]) in self._names:
            self.switched.setdefault(self._names[id(args[0])], users_place())
        if self.foreign is None and any(map(self._is_foreign, tree_leaves((args, kwargs)))):
            self.foreign = users_place()
        if func not in CONV_FUNCTIONS or self._function is not None or self._is_closed():
            return func(*args, **kwargs)
        if is_passed_on(func):
            return func(*args, **kwargs)
        weight = args[1] if len(args) > 1 else kwargs.get("weight")
        if _vmapped(args[0] if args else kwargs.get("input")) & _vmapped(weight):
            # A weight a sample, which one convolution with groups for each sample computes.
            self._grouping = VMAP
            try:
                return func(*args, **kwargs)
            finally:
                self._grouping = ""
        spec = spec_of_call(func, args, kwargs)
        if isinstance(weight, torch.Tensor):
            self.weights.add(storage(weight))
        if spec is None or spec.groups == 1:
            return func(*args, **kwargs)
        path = self._path()
        calls = self.functions.get((path, spec))
        if calls is None:
            shapes = Shapes((), ())
            assert weight is not None
            size = tuple(weight.shape)
            calls = FunctionCalls(path, self._site(), spec, size, shapes, users_place())
        self._function = calls
        try:
            output = func(*args, **kwargs)
        finally:
            self._function = None
        data = args[0] if args else kwargs["input"]
        calls.count += 1
        if calls.count == 1:
            calls.shapes = Shapes(tuple(data.shape), tuple(output.shape))
            self.functions[path, spec] = calls
        return output


class _UnseenCalls(_Calls):
    """The modules that are running, without a mode of functions."""

    def watching(self) -> AbstractContextManager[object]:
        return contextlib.nullcontext()

    def owner(self) -> _Owner:
        owner = super().owner()
        return replace(owner, inside=owner.inside or ASKS)


def _vmapped(value: Any) -> frozenset[int]:
    """The levels of `torch.vmap` for each of whose samples a tensor has a value of its own."""
    levels = set()
    while isinstance(value, torch.Tensor) and functorch.is_batchedtensor(value):
        levels.add(functorch.maybe_get_level(value))
        value = functorch.get_unwrapped(value)
    return frozenset(levels)


def _held(module: nn.Module) -> list[int]:
    """Which tensors its own parameters are."""
    return [id(parameter) for parameter in module._parameters.values()]


def _fused_groups(script: Any) -> Iterator[int]:
    """Groups of what `torch.jit.optimize_for_inference` has made: no dispatcher is asked for it."""
    graph = script.inlined_graph  # its nodes live as long
    for node in graph.findAllNodes(f"prim::{_FUSED}", recurse=True):
        *_, groups = node.inputs()
        if (number := groups.toIValue()) != 1:
            yield number


def _inside_hooks(calls: _Calls) -> Iterator[Any]:
    yield hooks.register_module_forward_pre_hook(calls.before)
    yield hooks.register_module_forward_hook(calls.after, with_kwargs=True)


def count_calls(model: nn.Module, inputs: ExampleInputs) -> Counted:
    """Run `model` once in eval mode and see where its grouped convolutions are called.

    A forward may ask whether somebody looks on, and do something else then. So what it gives is
    compared with what it gives alone; where that differs, no mode of functions looks on. Raises
    `ModelError` where it does not run, or is another one below that mode as well.
    """
    counted = _counted(model, inputs, _Calls)
    if counted.compiles or is_weightless(model):
        return counted
    alone = _output_alone(model, inputs, counted)
    changed = unlike(alone, counted.output)
    if changed is None or unlike(alone, _output_alone(model, inputs, counted)):
        return counted  # or what it gives is another each time, whoever looks on
    counted = _counted(model, inputs, _UnseenCalls)
    if unlike(alone, counted.output):
        raise ModelError(
            f"{type(model).__name__} computes something else while its operators are watched "
            f"({changed}): its forward asks for modes of torch, such as "
            "torch._C._len_torch_dispatch_stack; take that question out of it"
        )
    return replace(counted, asks=True)


def _output_alone(model: nn.Module, inputs: ExampleInputs, counted: Counted) -> Any:
    """What `model` gives with nothing that watches it."""
    eager = contextlib.nullcontext()
    if "torch._dynamo" in sys.modules:  # there may be compiled parts, which stand back for modes
        eager = torch.compiler.set_stance("force_eager")
    kept = values_kept((model,), counted.written)
    try:
        with unchanged(model), seeded(SEED), torch.no_grad(), kept, eager:
            evaluate(model)
            return inputs.map(torch.clone).call(model)
    except Exception as error:
        raise ModelError(forward_failed(model, inputs, error)) from error


def _counted(model: nn.Module, inputs: ExampleInputs, kind: type[_Calls]) -> Counted:
    runs: GroupedRuns[_Owner]
    calls = kind(model, lambda: runs.inside)
    runs = GroupedRuns(calls.owner)
    macs, kept = MacCounter(model), KeptParameters(model)
    handles = list(_inside_hooks(calls))
    try:
        with unchanged(model), seeded(SEED), torch.no_grad(), kept, runs, macs, calls.watching():
            evaluate(model)
            output = inputs.map(torch.clone).call(model)
    except Exception as error:
        raise ModelError(forward_failed(model, inputs, error)) from error
    finally:
        for handle in handles:
            handle.remove()
            # torch 2.13 leaves this mark behind, and torch.compile then warns of global hooks.
            hooks._global_forward_hooks_with_kwargs.pop(handle.id, None)
    ran = [*runs.runs, *calls.fused]
    hidden = (run for run in ran if run.owner.function is None and _is_of_no_site(run.owner))
    return Counted(
        modules=calls.modules,
        functions=list(calls.functions.values()),
        unseen=list(_unseen(hidden)),
        weights=calls.weights,
        lent_others=calls.lent_others,
        runs=len(ran),
        written=kept.written(model),
        switched=calls.switched,
        foreign=calls.foreign,
        strangers=calls.strangers,
        macs=macs.of_one(inputs),
        compiles=runs.compiled,
        output=output,
    )


def _unseen(runs: Iterator[GroupedRun[_Owner]]) -> Iterator[Unseen]:
    counts = Counter(
        (run.owner.path, run.operator, run.place, run.groups, run.owner.inside) for run in runs
    )
    for key, count in counts.items():
        yield Unseen(*key, count)
