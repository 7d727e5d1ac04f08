"""What a forward may switch for all of torch, as it was before.

A forward that switches the grad mode off and on again leaves it off where it is cut short in
between, as a trace cuts it: the caller's next training step would have no gradients.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

Setting = tuple[Callable[[], Any], Callable[[Any], object]]
"""What reads a setting, and what writes it."""

_SETTINGS: tuple[Setting, ...] = (
    # The levels of `torch.vmap` and its kin: an exported graph opens and closes them by calls.
    (
        torch._C._functorch.get_dynamic_layer_stack_depth,
        torch._C._functorch.pop_dynamic_layer_stack_and_undo_to_depth,
    ),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.is_anomaly_enabled, torch.set_anomaly_enabled),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (
        lambda: torch.is_autocast_enabled("cpu"),
        lambda on: torch.set_autocast_enabled("cpu", on),
    ),
    (torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
    (torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled),
)


@contextlib.contextmanager
def settings_unchanged() -> Iterator[None]:
    """Put back, at the end, whatever was switched and left so."""
    before = [read() for read, _ in _SETTINGS]
    try:
        yield
    finally:
        for (read, write), was in zip(_SETTINGS, before, strict=True):
            if read() != was:
                write(was)
