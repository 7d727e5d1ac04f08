"""A model, and the random generators, as they were before a run."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from .alone import ALONE


@contextlib.contextmanager
def unchanged(*models: nn.Module) -> Iterator[None]:
    """Put back, at the end, every module's mode, every buffer, and the random generators' states.

    A buffer that was written to gets its values back, one that was replaced is put back itself,
    and so is a tensor that is a plain attribute, such as the weight that a legacy `weight_norm`
    leaves on its module.
    """
    with ALONE:
        yield from _unchanged(models)


def _unchanged(models: tuple[nn.Module, ...]) -> Iterator[None]:
    modules = [module for model in models for module in model.modules()]
    modes = [(module, module.training) for module in modules if hasattr(module, "training")]
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.detach().clone())
        for module in modules
        for name, buffer in module._buffers.items()
    ]
    attributes = [
        (module, name, value)
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, Tensor)
    ]
    with _generators_unchanged():
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for module, name, value in attributes:
                vars(module)[name] = value
            for module, name, buffer, kept in buffers:
                if name not in module._buffers or module._buffers[name] is not buffer:
                    module._buffers[name] = buffer
                if buffer is not None and kept is not None:
                    _put_back(buffer, kept)


def evaluate(model: nn.Module) -> None:
    """Eval mode for every module by its flag alone: `eval()` may be overridden, or refuse."""
    for module in model.modules():
        if hasattr(module, "training"):  # a frozen TorchScript module has no mode
            module.training = False


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


def _put_back(buffer: Tensor, value: Tensor) -> None:
    same = buffer.shape == value.shape and buffer.dtype == value.dtype
    if same and (buffer.is_meta or torch.equal(buffer, value)):
        return
    with torch.no_grad():
        if same:
            buffer.copy_(value)
        else:
            buffer.data = value
