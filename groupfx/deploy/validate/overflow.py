"""The first node whose result is not finite although all that it takes is: where a range ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.module_tracker import ModuleTracker

from ..graph.node_names import told_name
from ..running.runtime import Session
from .sides import OnnxSide, Side, TorchSide

Array = npt.NDArray[Any]

# They make infinities on purpose: masks of an attention.
_ON_PURPOSE = ("full", "fill", "masked_fill", "where", "scalar_tensor", "empty")


def first_overflow(side: Side, feeds: Mapping[str, Array], dtype: torch.dtype) -> str | None:
    """In words, the first node of a side that overflows on `feeds`; None where none is found."""
    try:
        return (
            _of_onnx(side, feeds) if isinstance(side, OnnxSide) else _of_torch(side, feeds, dtype)
        )
    except Exception:  # it explains an answer, and must not take its place
        return None


def _of_onnx(side: OnnxSide, feeds: Mapping[str, Array]) -> str | None:
    nodes = list(side.model.graph)
    names = [value.name for node in nodes for value in node.outputs if value.name]
    for value in side.model.graph.initializers.values():
        users = [use.node for use in value.uses()]
        if users and not _finite_constant(value):
            read = ", ".join(map(told_name, users))
            return f"the constant {value.name} of node {read} is not finite"
    own = side.own(feeds)
    session = Session(side.model, "off", source=side.source, also=names)
    values = {**own, **session.run(own, names)}
    for node in nodes:
        taken = [values[v.name] for v in node.inputs if v is not None and v.name in values]
        given = [values[v.name] for v in node.outputs if v.name in values]
        if not _all_finite(given) and _all_finite(taken):
            return _text(f"node {told_name(node)} ({node.op_type})", given, taken)
    return None


def _finite_constant(value: ir.Value) -> bool:
    tensor = value.const_value
    if tensor is None or not tensor.dtype.is_floating_point():
        return True
    return bool(np.isfinite(tensor.numpy().astype(np.float64)).all())


class _Watch(TorchDispatchMode):
    # Whole, as one operator: what is inside has no module to be named by.
    supports_higher_order_operators = True

    def __init__(self, place: Callable[[], str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._place = place
        self.found: str | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.__name__.partition(".")[0]
        if self.found is None and not name.startswith(_ON_PURPOSE):
            taken, given = (_arrays(v) for v in ((args, kwargs), result))
            if not _all_finite(given) and _all_finite(taken):
                place = self._place()
                self.found = _text(f"{name} in {place}" if place else name, given, taken)
        return result


def _of_torch(side: TorchSide, feeds: Mapping[str, Array], dtype: torch.dtype) -> str | None:
    with ModuleTracker() as tracker:

        def place() -> str:
            inside = max(tracker.parents - {"Global"}, key=len, default="")
            return inside.partition(".")[2]

        with _Watch(place) as watch:
            side.native(feeds, dtype)
    found: str | None = watch.found
    return found


def _arrays(value: Any) -> list[Array]:
    leaves = torch.utils._pytree.tree_leaves(value)
    floats = [v for v in leaves if isinstance(v, Tensor) and v.is_floating_point()]
    return [v.detach().double().numpy() for v in floats]


def _all_finite(values: Iterable[Array]) -> bool:
    return all(np.isfinite(v).all() for v in values if v.dtype.kind == "f")


def _text(node: str, given: Iterable[Array], taken: Iterable[Array]) -> str:
    floats = [v.astype(np.float64) for v in taken if v.dtype.kind == "f" and v.size]
    peak = max((float(np.abs(v).max()) for v in floats), default=0.0)
    kind = "NaN" if any(np.isnan(v).any() for v in given if v.dtype.kind == "f") else "infinity"
    return f"{node} is the first to give {kind}, from values of at most {peak:.3g}"
