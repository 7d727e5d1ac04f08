"""The container that takes a convolution module's place in the user's own model."""

from typing import Any

import torch
from torch import fx, nn


class SwappedConv(fx.GraphModule):
    """A small graph in place of a convolution module.

    The model's own code may ask the module that it knows for its fields, so they stay readable:
    `in_channels`, `groups` and the like are those of the original, `weight` and `bias` are put
    together from the branches (a copy: writing to them changes nothing).
    """

    @classmethod
    def of(cls, graph: fx.GraphModule, replaced: nn.Module) -> "SwappedConv":
        """The container of `graph`, with the tensors and children of it, for `replaced`."""
        swapped = cls(graph, graph.graph, class_name=type(replaced).__name__)
        for held in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
            swapped.__dict__[held].update(graph.__dict__[held])
        swapped.training = replaced.training
        swapped.keep_fields(replaced)
        return swapped

    def keep_fields(self, module: nn.Module) -> None:
        """Take over the plain fields of the module that is replaced."""
        for name, value in module.__dict__.items():
            if not name.startswith("_") and name not in self.__dict__:
                self.__dict__[name] = value

    def __deepcopy__(self, memo: dict[int, Any]) -> "SwappedConv":
        twin = super().__deepcopy__(memo)
        assert isinstance(twin, SwappedConv)
        twin.keep_fields(self)
        return twin

    @property
    def weight(self) -> torch.Tensor | None:
        """The weight of the original, `[out, in / groups, ...]` or, transposed, `[in, ...]`."""
        return self._whole("weight")

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias of the original, `[out]`."""
        return self._whole("bias")

    def _whole(self, name: str) -> torch.Tensor | None:
        for held in (self._parameters, self._buffers):
            if name in held:
                return held[name]
        if "parametrizations" in self._modules:
            computed: torch.Tensor = self.get_submodule(f"parametrizations.{name}")()
            return computed
        if "whole" in self._modules:
            return getattr(self.get_submodule("whole"), name)  # type: ignore[no-any-return]
        parts = [getattr(branch, name) for key, branch in self._modules.items() if key.isdigit()]
        if not parts:
            raise AttributeError(f"{type(self).__name__} has no {name}")
        return None if parts[0] is None else torch.cat(parts)
