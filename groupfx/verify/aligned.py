"""Convolve group by group, every operand in memory of its own.

BLAS may add up the same products in another order where an operand lies at another alignment: on an
AMD processor with AVX-512, rows 3 to 6 of a weight gave a result that was 1e-16 off that of a copy
of those rows. A grouped convolution reads rows of one weight, its branches read copies. Under this
mode both read copies, so that what is the same computation gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..plan.channels import group_slices
from ..running.float64 import operator_name
from .bounds import SIGNATURES


class AlignedConvs(TorchFunctionMode):
    """Context manager under which a convolution of `groups` is that many with copied operands."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        name = operator_name(func)
        if name not in SIGNATURES:
            return func(*args, **named)
        call = {**dict(zip(SIGNATURES[name], args, strict=False)), **named}
        if call["input"].dim() != call["weight"].dim():
            return func(*args, **named)
        transposed = "transpose" in name or bool(call.get("transposed"))
        return _by_group(func, call, transposed)


def _by_group(func: Callable[..., Any], call: Mapping[str, Any], transposed: bool) -> Tensor:
    data, weight, bias = call["input"], call["weight"], call.get("bias")
    groups = int(call.get("groups", 1))
    out_channels = weight.shape[1] * groups if transposed else weight.shape[0]
    inputs, outputs = group_slices(data.shape[1], groups), group_slices(out_channels, groups)
    values = []
    for part, result in zip(inputs, outputs, strict=True):
        rows = part if transposed else result
        own: dict[str, Any] = {
            "input": data[:, part.start : part.stop].clone(),
            "weight": weight[rows.start : rows.stop].clone(),
            "bias": None if bias is None else bias[result.start : result.stop].clone(),
        }
        values.append(func(**{**call, **own, "groups": 1}))
    return values[0] if groups == 1 else torch.cat(values, 1)
