"""What a forward runs, operator by operator, whoever asks for it."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._library.custom_ops import OPDEFS
from torch._ops import HigherOrderOperator, OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

# The operators that are being looked into, one in the other. One list for all watchers: of several
# that watch one run, the innermost takes an operator apart, and the others see its parts.
_INSIDE: list[str] = []
# The operators that watchers are passing on, which a mode of functions would take for calls.
_PASSED_ON: list[OpOverload] = []


def is_passed_on(function: object) -> bool:
    """Whether a call of an operator is a watcher's, and nobody's who wrote a forward."""
    return any(func is function for func in _PASSED_ON)


class Watcher(TorchDispatchMode):
    """Shows each operator that runs inside `with` to `saw`, on any device.

    Under `inference_mode` composite operators arrive in one piece, and are taken apart as they are
    elsewhere. What a higher-order operator (`torch.cond`) calls is watched as well, and what an
    operator that was written in Python (`torch.library.custom_op`) does. `compiled` is whether a
    higher-order one ran, which compiles what it is given.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.compiled = False

    @property
    def inside(self) -> str:
        """Name of the outermost operator that what runs now is a part of; empty: of none."""
        return _INSIDE[0] if _INSIDE else ""

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        if self.compiled:
            # torch.cond compiles what calls it, and under a mode gives that up for good.
            torch._dynamo.reset()

    def seeing(self, func: OpOverload, args: Any, kwargs: Any) -> None:
        """Called in front of each operator."""

    def saw(self, func: OpOverload, args: Any, kwargs: Any, result: Any) -> None:
        """Called behind each operator."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether torch keeps its compiler out of `__torch_dispatch__` from the first operator on.

        That imports the compiler, which takes .8 s of each process; it is kept out where it is.
        """
        return False

    def __enter__(self) -> Any:
        _keep_compiler_out()
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _keep_compiler_out():  # a forward that compiles, or `torch.cond`, has just imported it
            return self.__torch_dispatch__(func, types, args, kwargs)
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            name = f"torch.{func.name()}"
            inside = [self._watched(arg, name) for arg in args]
            named = {key: self._watched(arg, name) for key, arg in kwargs.items()}
            self.compiled = True
            return func(*inside, **named)
        if func._can_decompose():
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        written = _written_in_python(func, args)
        if written is not None:
            return self._watched(written, func._schema.name)(*args, **kwargs)
        self.seeing(func, args, kwargs)
        _PASSED_ON.append(func)
        try:
            result = func(*args, **kwargs)
        finally:
            _PASSED_ON.pop()
        self.saw(func, args, kwargs, result)
        return result

    def _watched(self, value: Any, operator: str) -> Any:
        if not callable(value) or isinstance(value, type):
            return value
        called: Callable[..., Any] = value.forward if isinstance(value, nn.Module) else value

        def watched(*args: Any, **kwargs: Any) -> Any:
            _INSIDE.append(operator)
            try:
                with self:
                    return called(*args, **kwargs)
            finally:
                _INSIDE.pop()

        return watched


_PLAIN = Watcher.__torch_dispatch__


def _keep_compiler_out() -> bool:
    """Let torch's compiler, where it is imported, leave watchers alone; whether that was new."""
    new = "torch._dynamo" in sys.modules and Watcher.__torch_dispatch__ is _PLAIN
    if new:
        Watcher.__torch_dispatch__ = torch._dynamo.disable(_PLAIN)  # type: ignore[method-assign]
    return new


def _written_in_python(func: OpOverload, args: Any) -> Callable[..., Any] | None:
    """What a `torch.library.custom_op` calls for tensors like these; None for other operators.

    The dispatcher calls it below all modes.
    """
    made = OPDEFS.get(func._schema.name)
    if made is None or made._init_fn.__module__.startswith("torch."):
        return None
    tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
    if any(tensor.is_meta for tensor in tensors):
        return None
    device = tensors[0].device.type if tensors else None
    kernels: dict[str | None, Callable[..., Any]] = made._backend_fns
    return kernels.get(device) or kernels.get(None) or made._init_fn
