"""Which grouped convolutions a forward calls: through their modules, and outside of any."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode

from ..convs.spec import CONV_TYPES, original_type
from ..errors import ModelError
from ..learned.groups import has_learned_groups
from ..running.inputs import ExampleInputs
from ..running.macs import MacCounter
from ..running.unchanged import evaluate, unchanged
from .graphs import forward_failed
from .program import Shapes


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
    """

    shapes: Shapes | None
    example: torch.Tensor | None
    count: int = 1


@dataclass
class Counted:
    """Grouped convolution calls of one forward: by module, and outside of all of them.

    `macs` are the multiply-accumulates of all of that forward, for one sample.
    """

    modules: dict[str, ModuleCalls]
    outside: int
    macs: int


class _GroupedCalls(TorchDispatchMode):
    """Counts grouped convolutions that run while no convolution module is running."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.inside = 0
        self.outside = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default and args[8] > 1 and not self.inside:
            self.outside += 1
        return func(*args, **(kwargs or {}))


def count_calls(model: nn.Module, inputs: ExampleInputs) -> Counted:
    """Run `model` once in eval mode and see where its grouped convolutions are called."""
    counter, macs = _GroupedCalls(), MacCounter(model)
    found: dict[str, ModuleCalls] = {}
    handles = []
    for path, module in site_modules(model).items():
        if not path:
            continue

        def before(_module: nn.Module, _args: Any) -> None:
            counter.inside += 1

        def after(
            _module: nn.Module, args: Any, kwargs: Any, output: Any, path: str = path
        ) -> None:
            counter.inside -= 1
            data = args[0] if args else kwargs["input"]
            if path in found:
                found[path].count += 1
            elif isinstance(output, torch.Tensor):
                shapes = Shapes(tuple(data.shape), tuple(output.shape))
                plain = original_type(_module) in CONV_TYPES or has_learned_groups(_module)
                found[path] = ModuleCalls(shapes, None if plain else data.detach())

        handles.append(module.register_forward_pre_hook(before))
        handles.append(module.register_forward_hook(after, with_kwargs=True))
    try:
        with unchanged(model), torch.no_grad(), counter, macs:
            evaluate(model)
            inputs.call(model)
    except Exception as error:
        raise ModelError(forward_failed(model, inputs, error)) from error
    finally:
        for handle in handles:
            handle.remove()
    return Counted(found, counter.outside, macs.of_one(inputs))
