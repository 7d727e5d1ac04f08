"""The container that takes a convolution module's place in the user's own model."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.utils._python_dispatch import _disable_current_modes


def replace_child(parent: nn.Module, name: str, child: nn.Module) -> None:
    """Put `child` in place of the child of that name, where `parent` calls it."""
    parent._modules[name] = child
    if is_compiled(parent):
        # It calls the module that it was given, wherever that lies.
        parent._initialize()  # type: ignore[operator]


def replace_everywhere(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` in the place of `old` under each of its names: heads of a detector share convs."""
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if module is old:
            parent, _, name = path.rpartition(".")
            replace_child(model.get_submodule(parent), name, new)


def is_compiled(module: nn.Module) -> bool:
    """Whether it is what `torch.compile` made of another, which it holds."""
    kind = type(module)  # torch loads the compiler where it is needed, and not before
    return kind.__name__ == "OptimizedModule" and kind.__module__.startswith("torch._dynamo")


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
        # Each has a class of its own, which goes by the name of the class that it stands for.
        type(twin).__name__ = type(self).__name__
        twin.keep_fields(self)
        return twin

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as a `GraphModule`, and what that is loaded as is of this class again."""
        return _unpickled, (*super().__reduce__(), type(self).__name__)

    @property
    def weight(self) -> torch.Tensor | None:
        """The weight of the original, `[out, in / groups, ...]` or, transposed, `[in, ...]`."""
        return self._whole("weight")

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias of the original, `[out]`."""
        return self._whole("bias")

    @contextlib.contextmanager
    def standing_for(self, module: nn.Module) -> Iterator[None]:
        """While active, it stands for `module`, which it still calls as it is."""
        self.__dict__["_opened"] = module
        try:
            yield
        finally:
            del self.__dict__["_opened"]

    def _whole(self, name: str) -> torch.Tensor | None:
        if "_opened" in self.__dict__:
            # What it will be made of: no parameter, and not in the memory of one.
            with _disable_current_modes():
                opened = getattr(self.__dict__["_opened"], name)
                return None if opened is None else opened.clone()
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


def _unpickled(
    restore: Callable[..., fx.GraphModule], arguments: tuple[Any, ...], name: str
) -> SwappedConv:
    graph = restore(*arguments)
    swapped = SwappedConv.of(graph, graph)
    type(swapped).__name__ = name
    return swapped
