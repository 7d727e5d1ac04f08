"""One of us at a time, where torch knows no threads.

A symbolic trace and `torch.export` change classes of torch while they run, and the random state and
a model's modes are put back afterwards: two threads that do that at once would see each other's
half. Code of the user's beside is not held up.

What the caller has switched on around us does not reach our runs: under autocast a model computes
something else than what is looked at, and a default device of `meta` makes tensors without values.
"""

import contextlib
import functools
import re
import threading
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._pytree import tree_map

from .collecting import new_objects_alone
from .settings import settings_unchanged

P = ParamSpec("P")
T = TypeVar("T")

# For one thread any number of times: a rewrite traces, and runs, and traces again.
ALONE = threading.RLock()


def alone(function: Callable[P, T]) -> Callable[P, T]:
    """`function`, of which one at a time runs, whichever of those that are decorated it is.

    It runs without the caller's autocast, and without a default device that holds no values; and
    what was there before it waits for the garbage collector until its end.
    """

    @functools.wraps(function)
    def held(*args: P.args, **kwargs: P.kwargs) -> T:
        with ALONE, shielded(), new_objects_alone():
            return function(*args, **kwargs)

    return held


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Without what the caller has switched on for the code around us."""
    # A model may be made under FakeTensorMode; what is made of it here is not fake.
    with unset_fake_temporarily(), settings_unchanged(), contextlib.ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.is_inference_mode_enabled():
            # What is made in it can never be trained.
            stack.enter_context(torch.inference_mode(False))
        if torch.get_default_device().type == "meta":
            stack.enter_context(torch.device("cpu"))
        yield


@contextlib.contextmanager
def beside(model: nn.Module) -> Iterator[None]:
    """While torch exports `model`, another thread's training goes on as it does without.

    torch.export tells the whole process that it runs: an optimizer's step in another thread then
    writes notes into a global of the exporter's, and either of them ends with KeyError 'custom'. It
    also switches mkldnn off for all threads, which rounds otherwise. So where there are other
    threads, that it runs is said to this one alone, and mkldnn stays on unless the model needs it
    off: recurrent layers, which have an operator of mkldnn's own. That it is on must not be seen in
    the graph: whether a convolution would run in it depends on its batch, which would be bounded.
    """
    if threading.active_count() == 1:
        yield
        return
    here, exporting = threading.get_ident(), torch.compiler.is_exporting
    trace: Any = import_module("torch.export._trace")
    switching, choosing = trace._ignore_backend_decomps, torch._C._select_conv_backend

    def is_exporting() -> bool:
        return threading.get_ident() == here and exporting()

    def of_the_example(*given: Any, **options: Any) -> Any:
        return choosing(*tree_map(_without_symbols, given), **tree_map(_without_symbols, options))

    torch.compiler.is_exporting = is_exporting
    torch._C._select_conv_backend = of_the_example
    if not _is_recurrent(model):
        trace._ignore_backend_decomps = contextlib.nullcontext
    try:
        yield
    finally:
        torch.compiler.is_exporting = exporting
        torch._C._select_conv_backend = choosing
        trace._ignore_backend_decomps = switching


def _without_symbols(given: Any) -> Any:
    """The number that an open size has in the example; a tensor like the given one, of such sizes.

    A symbol that the choice saw, in a number of groups too, would be one value from then on.
    """
    if isinstance(given, torch.SymInt):
        return int(given.node.hint)
    if not isinstance(given, Tensor):
        return given
    if all(isinstance(n, int) for n in (*given.shape, *given.stride())):
        return given
    sizes, strides = tree_map(_without_symbols, [[*given.shape], [*given.stride()]])
    return torch.empty_strided(sizes, strides, dtype=given.dtype, device=given.device)


_RECURRENT = re.compile(r"aten[.:]+(\w*_)?(lstm|gru|rnn)\b|aten[.:]+rnn_")


def _is_recurrent(model: nn.Module) -> bool:
    if any(isinstance(module, nn.RNNBase) for module in model.modules()):
        return True
    graphs = (module.graph for module in model.modules() if isinstance(module, fx.GraphModule))
    return any(_RECURRENT.match(str(node.target)) for graph in graphs for node in graph.nodes)
