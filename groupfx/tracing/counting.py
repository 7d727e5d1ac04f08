"""Which grouped convolutions a forward really runs, and who calls them.

A module of `torch.nn`, a function of torch, or something into which torch does not let us look (a
TorchScript module, a custom operator): every one that runs is counted, and belongs to one of them.
"""

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as hooks
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from ..convs.calls import CONV_FUNCTIONS, spec_of_call
from ..convs.spec import ConvSpec, is_plain
from ..errors import ModelError
from ..learned.groups import has_learned_groups
from ..running.float64 import storage
from ..running.grouped_runs import GroupedRun, GroupedRuns, users_place
from ..running.inputs import ExampleInputs
from ..running.kept import KeptParameters
from ..running.macs import MacCounter
from ..running.unchanged import evaluate, unchanged
from .graphs import SEED, forward_failed
from .program import Shapes
from .tracer import seeded


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

    `inside` is whether that is a branch of `torch.cond` or of an operator like it.
    """

    path: str
    operator: str
    place: str
    groups: int
    inside: bool
    count: int


@dataclass
class Counted:
    """Grouped convolution calls of one forward, and what it returned.

    `modules` by path; `functions` are calls of those wherever they stand, `unseen` what is
    neither, and `weights` the storages of the weights that functions were called with. `runs` are
    the convolutions that were executed, `lent_others` the modules that ran with other parameters
    than their own (`functional_call`), `written` the parameters that forward writes to,
    `strangers` the ids of modules that it calls and does not hold, and `macs` the
    multiply-accumulates of all of that forward, for one sample.
    """

    modules: dict[str, ModuleCalls]
    functions: list[FunctionCalls]
    unseen: list[Unseen]
    weights: Set[int]
    lent_others: Set[str]
    runs: int
    written: tuple[str, ...]
    strangers: Set[int]
    macs: int
    output: Any = field(repr=False)

    @property
    def outside(self) -> int:
        """How many of them are not calls of modules."""
        functions = (calls.count for calls in self.functions if calls.site is None)
        return sum(functions) + sum(unseen.count for unseen in self.unseen)

    def lends_its_weight(self, module: nn.Module) -> bool:
        """Whether functions were called with a parameter of `module` as their weight."""
        return any(storage(tensor) in self.weights - {0} for tensor in module.parameters())


@dataclass(frozen=True)
class _Owner:
    """Who runs an operator: the innermost module, a site, and a function of torch, if any."""

    path: str
    site: str | None
    function: FunctionCalls | None
    inside: bool


class _Calls(TorchFunctionMode):
    """The modules and the functions that are running."""

    def __init__(self, model: nn.Module, inside_operator: Callable[[], object]) -> None:
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
        self._own = {id(m): _held(m) for m in model.modules() if id(m) in self._sites}
        self._function: FunctionCalls | None = None

    @property
    def _running(self) -> list[int]:
        return self._stacks[threading.get_ident()]

    def owner(self) -> _Owner:
        """Of what is running now."""
        inside = bool(self._inside_operator())
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
        if func not in CONV_FUNCTIONS or self._function is not None or self._is_closed():
            return func(*args, **kwargs)
        spec = spec_of_call(func, args, kwargs)
        if spec is None or spec.groups == 1:
            return func(*args, **kwargs)
        path = self._path()
        calls = self.functions.get((path, spec))
        weight = args[1] if len(args) > 1 else kwargs["weight"]
        self.weights.add(storage(weight))
        if calls is None:
            shapes = Shapes((), ())
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


def _held(module: nn.Module) -> list[int]:
    """Which tensors its own parameters are."""
    return [id(parameter) for parameter in module._parameters.values()]


def _inside_hooks(calls: _Calls) -> Iterator[Any]:
    yield hooks.register_module_forward_pre_hook(calls.before)
    yield hooks.register_module_forward_hook(calls.after, with_kwargs=True)


def count_calls(model: nn.Module, inputs: ExampleInputs) -> Counted:
    """Run `model` once in eval mode and see where its grouped convolutions are called."""
    runs: GroupedRuns[_Owner]
    calls = _Calls(model, lambda: runs.inside)
    runs = GroupedRuns(calls.owner)
    macs, kept = MacCounter(model), KeptParameters(model)
    handles = list(_inside_hooks(calls))
    try:
        with unchanged(model), seeded(SEED), torch.no_grad(), kept, runs, macs, calls:
            evaluate(model)
            output = inputs.map(torch.clone).call(model)
    except Exception as error:
        raise ModelError(forward_failed(model, inputs, error)) from error
    finally:
        for handle in handles:
            handle.remove()
            # torch 2.13 leaves this mark behind, and torch.compile then warns of global hooks.
            hooks._global_forward_hooks_with_kwargs.pop(handle.id, None)
    hidden = (run for run in runs.runs if run.owner.site is None and run.owner.function is None)
    return Counted(
        modules=calls.modules,
        functions=list(calls.functions.values()),
        unseen=list(_unseen(hidden)),
        weights=calls.weights,
        lent_others=calls.lent_others,
        runs=len(runs.runs),
        written=kept.written(model),
        strangers=calls.strangers,
        macs=macs.of_one(inputs),
        output=output,
    )


def _unseen(runs: Iterator[GroupedRun[_Owner]]) -> Iterator[Unseen]:
    counts = Counter(
        (run.owner.path, run.operator, run.place, run.groups, run.owner.inside) for run in runs
    )
    for key, count in counts.items():
        yield Unseen(*key, count)
