"""A model, and the random generators, as they were before a run."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .alone import ALONE
from .settings import settings_unchanged


@contextlib.contextmanager
def unchanged(*models: nn.Module) -> Iterator[None]:
    """Put back, at the end, every module's mode, every buffer, and the random generators' states.

    A buffer that was written to gets its values back, one that was replaced is put back itself,
    and so is a module, a parameter (trained or not, as it was) and a plain attribute, such as the
    weight that a legacy `weight_norm` leaves on its module, or what a forward keeps for the next
    call; lists and dicts among them hold what they held, and a generator is where it was.
    """
    with ALONE:
        before = _State(models)
        with _generators_unchanged(), settings_unchanged():
            try:
                yield
            finally:
                before.put_back()


class _State:
    """Modes, buffers and plain attributes of models, as they are now."""

    def __init__(self, models: tuple[nn.Module, ...]) -> None:
        modules = [module for model in models for module in model.modules()]
        self._modes = [(m, m.training) for m in modules if hasattr(m, "training")]
        self._buffers = [
            (module, name, buffer, None if buffer is None else buffer.detach().clone())
            for module in modules
            for name, buffer in module._buffers.items()
        ]
        parameters = {id(each): each for module in modules for each in module._parameters.values()}
        self._trained = [
            (each, each.requires_grad) for each in parameters.values() if each is not None
        ]
        self._attributes = [(vars(module), _attributes(module)) for module in modules]
        held = (
            vars(module).get(name) for module in modules for name in ("_modules", "_parameters")
        )
        self._held = [(each, each.copy()) for each in held if isinstance(each, dict)]
        values = [value for _, kept in self._attributes for value in kept.values()]
        self._containers = [(each, each.copy()) for each in values if type(each) in (dict, list)]
        generators = (value for value in values if isinstance(value, torch.Generator))
        self._generators = [(each, each.get_state()) for each in generators]

    def put_back(self) -> None:
        """As they were."""
        for registered, before in self._held:
            if [*map(id, registered.values())] != [*map(id, before.values())]:
                _hold(registered, before)
        for module, mode in self._modes:
            set_mode(module, mode)
        for parameter, trained in self._trained:
            if parameter.requires_grad is not trained:
                parameter.requires_grad_(trained)
        self._put_back_attributes()
        for module, name, buffer, values in self._buffers:
            if name not in module._buffers or module._buffers[name] is not buffer:
                module._buffers[name] = buffer
            if buffer is not None and values is not None:
                _put_back(buffer, values)

    def _put_back_attributes(self) -> None:
        for now, kept in self._attributes:
            for name in now.keys() - kept.keys() - _OWN:
                del now[name]
            now.update(kept)
        for container, content in self._containers:
            _hold(container, content)
        for generator, state in self._generators:
            generator.set_state(state)


def evaluate(model: nn.Module, *, training: bool = False) -> None:
    """Eval mode for every module by its flag alone: `eval()` may be overridden, or refuse.

    With `training` train mode in its place.
    """
    for module in model.modules():
        if hasattr(module, "training"):  # a frozen TorchScript module has no mode
            set_mode(module, training)


def set_mode(module: nn.Module, mode: bool) -> None:
    """Train or eval mode for this module alone."""
    # torch looks at each assignment to a module, in case it is a tensor.
    if vars(module).get("training") is not mode:
        module.training = mode


@contextlib.contextmanager
def _generators_unchanged() -> Iterator[None]:
    # Whoever came second would put back what the first has left in the meantime.
    with ALONE:
        python, numbers = random.getstate(), np.random.get_state()
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        with torch.random.fork_rng(devices):
            try:
                yield
            finally:
                random.setstate(python)
                np.random.set_state(numbers)


def seed_torch(seed: int) -> None:
    """Seed torch's generators: of the CPU, and of a device that is in use.

    `torch.manual_seed` also leaves the seed, with a formatted stack, for a device that is used for
    the first time later: nothing could put back what the caller had left there.
    """
    torch.default_generator.manual_seed(seed)
    for device in (torch.cuda, torch.xpu, torch.mtia):
        if device.is_initialized():
            device.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


_OWN = frozenset(vars(nn.Module()))
"""What every module has: modes, buffers and parameters are put back on their own."""


def _attributes(module: nn.Module) -> dict[str, Any]:
    """The plain attributes of a module."""
    return {name: value for name, value in vars(module).items() if name not in _OWN}


def _hold(container: Any, content: Any) -> None:
    """Let a list or a dict hold what it held, the very objects."""
    if isinstance(container, list):
        container[:] = content
    else:
        container.clear()
        container.update(content)


def _put_back(buffer: Tensor, value: Tensor) -> None:
    same = buffer.shape == value.shape and buffer.dtype == value.dtype
    dense = buffer.layout is torch.strided  # others are not compared, and written back
    if same and (buffer.is_meta or (dense and torch.equal(buffer, value))):
        return
    with torch.no_grad():
        if same:
            buffer.copy_(value)
        else:
            buffer.data = value
