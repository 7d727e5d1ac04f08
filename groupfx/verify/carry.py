"""Tensors of an original region and of its rewritten form: the same rows, then random ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ..state_map import Rows
from .measures import identical
from .region import Float64Copy


class Carrier:
    """Which rows of the original's tensors each of the rewritten ones is.

    `rows` maps names in the rewritten model to rows of the original's, as
    `StateDictMap.entries` does; a name that it does not have stands for itself.
    """

    def __init__(
        self, original: Float64Copy, rewritten: Float64Copy, rows: Mapping[str, Rows]
    ) -> None:
        self._original = original
        self._rewritten = rewritten
        self._rows = {name: rows.get(name, Rows(name)) for name in rewritten.tensors}

    def pairs(self) -> Iterator[tuple[str, Rows]]:
        """Every tensor of the rewritten region that comes from one of the original's."""
        for name, rows in self._rows.items():
            if rows.key in self._original.tensors:
                yield name, rows

    def problem(self) -> str | None:
        """What is wrong with the rewritten tensors as they are; None if nothing is."""
        for name, tensor in self._rewritten.originals.items():
            source = self._original.originals.get(self._rows[name].key)
            if source is None and isinstance(tensor, nn.Parameter):
                return f"parameter {name} comes from no parameter of the original"
            found = None if source is None else self._tensor_problem(name, source, tensor)
            if found is not None:
                return found
        return self._missing_rows()

    def _tensor_problem(self, name: str, source: Tensor, tensor: Tensor) -> str | None:
        rows = self._rows[name]
        if tensor.dtype != source.dtype:
            return f"{name} is {tensor.dtype}, and {rows} is {source.dtype}"
        if not identical(cut(source.detach(), rows), tensor.detach()):
            return f"{name} does not hold the values of {rows}"
        if tensor.requires_grad != source.requires_grad:
            return f"{name} has requires_grad={tensor.requires_grad}, and {rows} has not"
        return None

    def _missing_rows(self) -> str | None:
        for key, source in self._original.originals.items():
            if not isinstance(source, nn.Parameter):
                continue
            size = source.shape[0] if source.dim() else 1
            held = [False] * size
            for _, rows in self.pairs():
                if rows.key == key:
                    stop = size if rows.stop is None else rows.stop
                    held[rows.start : stop] = [True] * (stop - rows.start)
            if not all(held):
                return f"row {held.index(False)} of {key} is not in the rewritten model"
        return None

    def values(self) -> tuple[dict[str, Tensor], ...]:
        """A copy of all tensors of both sides, for `restore`."""
        return tuple(
            {name: tensor.detach().clone() for name, tensor in side.tensors.items()}
            for side in (self._original, self._rewritten)
        )

    def restore(self, values: tuple[dict[str, Tensor], ...]) -> None:
        """Put back what `values` returned."""
        with torch.no_grad():
            for side, kept in zip((self._original, self._rewritten), values, strict=True):
                for name, value in kept.items():
                    side.tensors[name].copy_(value)

    def randomize(self, generator: torch.Generator) -> None:
        """Give both copies the same random parameters and floating buffers.

        Weights keep the scale of a fresh initialisation, norms stay away from zero and variances
        are positive, so that the gradients are well conditioned. Tensors that keep their own dtype,
        and integers, stay as they are.
        """
        done: set[int] = set()
        with torch.no_grad():
            for name, tensor in self._original.tensors.items():
                if tensor.dtype == torch.float64 and id(tensor) not in done:
                    done.add(id(tensor))
                    tensor.copy_(_random(name, tensor, generator))
            for name, rows in self.pairs():
                tensor = self._rewritten.tensors[name]
                if tensor.dtype == torch.float64:
                    tensor.copy_(cut(self._original.tensors[rows.key], rows))


def cut(tensor: Tensor, rows: Rows) -> Tensor:
    """The rows themselves; all of a 0-d tensor."""
    if rows.stop is None or not tensor.dim():
        return tensor
    return tensor.narrow(0, rows.start, rows.stop - rows.start)


def _random(name: str, tensor: Tensor, generator: torch.Generator) -> Tensor:
    normal = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
    if name.endswith("running_var"):
        return normal.abs() + 0.5
    if tensor.dim() < 2:
        return 1 + 0.3 * normal
    fan = max(tensor.numel() // max(tensor.shape[0], 1), 1)
    return normal / math.sqrt(fan)
