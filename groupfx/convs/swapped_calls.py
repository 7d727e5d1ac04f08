"""Other graphs in place of a module's calls of convolution functions, the user's code kept.

A `forward` that cannot be traced may call `F.conv2d`. While the module runs, the call is taken by
a small graph instead: of the same input, weight and bias, which forward still makes as it likes.
So the class, its control flow and its modes stay the user's, and what it computes is trained.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any

from torch import fx, nn
from torch.overrides import TorchFunctionMode

from ..nn.swapped import SwappedConv
from .calls import CONV_FUNCTIONS, arguments_of_call, spec_of_call
from .spec import ConvSpec

_HOOKS = ("_forward_pre_hooks", "_forward_hooks")


class SwappedCalls(TorchFunctionMode):
    """The graphs for one module, by the numbers of the calls that they stand for.

    A graph takes the input, the weight and, where there is one, the bias. A call with other
    numbers is left as it is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.graphs: dict[ConvSpec, fx.GraphModule] = {}

    @classmethod
    def of(cls, module: nn.Module) -> SwappedCalls:
        """Those of `module`, which gets none if it has none yet."""
        for hook in module._forward_pre_hooks.values():
            found = _swapped(hook)
            if found is not None:
                return found
        calls = cls()
        # Before the user's own hooks, and behind them: they are a part of the call.
        module.register_forward_pre_hook(calls.before, prepend=True)
        module.register_forward_hook(calls.after, always_call=True)
        return calls

    def before(self, _module: nn.Module, _args: Any) -> None:
        """The module starts."""
        self.__enter__()  # type: ignore[no-untyped-call]

    def after(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        """The module ends, well or not."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in CONV_FUNCTIONS:
            spec = spec_of_call(func, args, kwargs)
            graph = None if spec is None else self.graphs.get(spec)
            if graph is not None and not _in_a_swapped_module():
                # Its own __call__ does the same, and prints a traceback of what it raises.
                return nn.Module.__call__(graph, *arguments_of_call(func, args, kwargs))
        return func(*args, **kwargs)


def _in_a_swapped_module() -> bool:
    """Whether the call is one of a graph that stands for a whole convolution: no call of forward's.

    It may have the very numbers, where a module lends its weight or a layer lies outside the model.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), SwappedConv):
            return True
        frame = frame.f_back
    return False


def swapped_calls(module: nn.Module) -> Mapping[ConvSpec, fx.GraphModule]:
    """The graphs that stand for calls of `module`, which stays as it is."""
    found = filter(None, map(_swapped, module._forward_pre_hooks.values()))
    return next((calls.graphs for calls in found), {})


def without_swapped_calls(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a module as if none of its calls were swapped."""
    ours = {key for name in _HOOKS for key, hook in fields.get(name, {}).items() if _swapped(hook)}
    if not ours:
        return dict(fields)
    return {
        name: type(value)((k, v) for k, v in value.items() if k not in ours)
        if name.startswith("_forward") and isinstance(value, dict)
        else value
        for name, value in fields.items()
    }


def _swapped(hook: object) -> SwappedCalls | None:
    owner = getattr(hook, "__self__", None)
    return owner if isinstance(owner, SwappedCalls) else None
