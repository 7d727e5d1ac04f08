"""The module classes that a file may hold, by name: those of `torch.nn` and of `groupfx.nn`.

Each of them computes with its own tensors and fields. None takes code, and none that runs others
(`DataParallel`) is among them. Lazy modules are not either: they change class on the first call.
"""

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType

from torch import nn
from torch.nn.utils import parametrizations, parametrize

from ... import nn as groupfx_nn
from ..names import Damaged

_PARAMETRIZATIONS = ("_Orthogonal", "_SpectralNorm", "_WeightNorm")


def class_name(kind: type) -> str | None:
    """Name under which a file knows the class; None if it does not."""
    return _names().get(kind)


def class_of(name: object) -> type[nn.Module]:
    """The class of that name. Raises `Damaged`."""
    found = classes().get(name) if isinstance(name, str) else None
    if found is None:
        raise Damaged(f"{name!r:.80} is not a module that a file may hold")
    return found


@functools.cache
def classes() -> dict[str, type[nn.Module]]:
    """Name -> class. The short public name (`torch.nn.Conv2d`) wherever there is one."""
    found: dict[str, type[nn.Module]] = {}
    for room in _torch_rooms():
        for name, kind in inspect.getmembers(room, inspect.isclass):
            if kind.__module__ != room.__name__ or not issubclass(kind, nn.Module):
                continue
            if issubclass(kind, nn.modules.lazy.LazyModuleMixin):
                continue
            public = getattr(nn, name, None) is kind
            found[f"torch.nn.{name}" if public else f"{room.__name__}.{name}"] = kind
    for name in groupfx_nn.__all__:
        kind = getattr(groupfx_nn, name)
        if inspect.isclass(kind) and issubclass(kind, nn.Module):
            found[f"groupfx.nn.{name}"] = kind
    found["torch.nn.utils.parametrize.ParametrizationList"] = parametrize.ParametrizationList
    for name in _PARAMETRIZATIONS:
        found[f"torch.nn.utils.parametrizations.{name}"] = getattr(parametrizations, name)
    return found


def _torch_rooms() -> Iterator[ModuleType]:
    for info in pkgutil.iter_modules(nn.modules.__path__):
        yield importlib.import_module(f"{nn.modules.__name__}.{info.name}")


@functools.cache
def _names() -> dict[type, str]:
    return {kind: name for name, kind in classes().items()}
