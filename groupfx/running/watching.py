"""What a forward runs, operator by operator, whoever asks for it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._ops import HigherOrderOperator, OpOverload
from torch.utils._python_dispatch import TorchDispatchMode


class Watcher(TorchDispatchMode):
    """Shows each operator that runs inside `with` to `saw`, on any device.

    Under `inference_mode` composite operators arrive in one piece, and are taken apart as they are
    elsewhere. What a higher-order operator (`torch.cond`) calls is watched as well.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._compiled = False
        self.inside = 0
        """In how many higher-order operators, one in the other, what runs now lies."""

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        if self._compiled:
            # torch.cond compiles what calls it, and under a mode gives that up for good.
            torch._dynamo.reset()

    def seeing(self, func: OpOverload, args: Any, kwargs: Any) -> None:
        """Called in front of each operator."""

    def saw(self, func: OpOverload, args: Any, kwargs: Any, result: Any) -> None:
        """Called behind each operator."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            inside = [self._watched(arg) for arg in args]
            named = {key: self._watched(arg) for key, arg in kwargs.items()}
            self._compiled = True
            return func(*inside, **named)
        if func._can_decompose():
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        self.seeing(func, args, kwargs)
        result = func(*args, **kwargs)
        self.saw(func, args, kwargs, result)
        return result

    def _watched(self, value: Any) -> Any:
        if not callable(value) or isinstance(value, type):
            return value
        called: Callable[..., Any] = value.forward if isinstance(value, nn.Module) else value

        def watched(*args: Any, **kwargs: Any) -> Any:
            self.inside += 1
            try:
                with self:
                    return called(*args, **kwargs)
            finally:
                self.inside -= 1

        return watched
