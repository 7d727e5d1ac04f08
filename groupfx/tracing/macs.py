"""Multiply-accumulates of a forward, counted while it runs."""

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..inputs import ExampleInputs


class MacCounter(TorchDispatchMode):
    """Counts the convolutions and matrix products that run inside `with`, by torch's own formulas.

    torch's `FlopCounterMode` does the same and loads the compiler as well.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._flops = 0

    def of_one(self, inputs: ExampleInputs) -> int:
        """MACs of one sample: two floating-point operations each."""
        return self._flops // (2 * max(inputs.batch or 1, 1))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self._flops += int(formula(*args, **(kwargs or {}), out_val=result))
        return result
