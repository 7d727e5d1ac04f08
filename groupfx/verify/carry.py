"""Tensors of an original region and of its rewritten form: the same elements, then other ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping

import torch
from torch import Tensor, nn

from ..state import Entry, Picked, Rows, coverage
from .measures import identical
from .region import RegionCopy, RegionState, drawn

Draw = Callable[[str, Tensor], object]
"""Writes numbers into a tensor of the original, given its full name."""


class TensorMap:
    """Which elements of the original's tensors each of the rewritten ones is.

    `entries` maps names in the rewritten model to elements of the original's tensors, as
    `StateDictMap.entries` does; a name that it does not have stands for itself. `native` names
    tensors that decide something, such as learned-group maps: they are never made random.
    """

    def __init__(
        self,
        original: RegionState,
        rewritten: RegionState,
        entries: Mapping[str, Entry],
        native: Collection[str] = (),
    ) -> None:
        self._before, self._after = original, rewritten
        self._native = frozenset(native)
        self._entries = {name: entries.get(name, Rows(name)) for name in rewritten.originals}
        self._by_key: dict[str, list[Entry]] = {}
        for _, entry in self.pairs():
            self._by_key.setdefault(entry.key, []).append(entry)

    def pairs(self) -> Iterator[tuple[str, Entry]]:
        """Every tensor of the rewritten region that comes from one of the original's."""
        for name, entry in self._entries.items():
            if entry.key in self._before.originals:
                yield name, entry

    def problem(self) -> str | None:
        """What is wrong with the rewritten tensors as they are; None if nothing is."""
        for name, tensor in self._after.originals.items():
            source = self._before.originals.get(self._entries[name].key)
            if source is None and isinstance(tensor, nn.Parameter):
                return f"parameter {name} comes from no parameter of the original"
            found = None if source is None else self._tensor_problem(name, source, tensor)
            if found is not None:
                return found
        return self._missing_rows()

    def _tensor_problem(self, name: str, source: Tensor, tensor: Tensor) -> str | None:
        entry = self._entries[name]
        if tensor.dtype != source.dtype:
            return f"{name} is {tensor.dtype}, and {entry} is {source.dtype}"
        if not identical(entry.of(source.detach()), tensor.detach()):
            return f"{name} does not hold the values of {entry}"
        if tensor.requires_grad != source.requires_grad:
            return f"{name} has requires_grad={tensor.requires_grad}, and {entry} has not"
        mode, kept = self._after.modes[name], self._before.modes.get(entry.key)
        if None not in (mode, kept) and mode != kept:
            modes = {True: "train", False: "eval"}
            return (
                f"the module of {name} is in {modes[bool(mode)]} mode, and that of {entry} is in "
                f"{modes[bool(kept)]} mode"
            )
        return None

    def _missing_rows(self) -> str | None:
        """A row that no branch holds. Where elements are picked, what is left out is the pass's."""
        for key, source in self._before.originals.items():
            entries = self._by_key.get(key, [])
            if not isinstance(source, nn.Parameter) or key in self._native:
                continue
            if not _only_rows(entries):
                continue
            held = coverage(entries, source.shape).flatten() > 0
            if not bool(held.all()):
                row = int((~held).nonzero()[0])
                return f"row {row} of {key} is not in the rewritten model"
        return None

    def has_padding(self) -> bool:
        """Whether some rewritten tensor has elements that come from nowhere."""
        return any(isinstance(entry, Picked) and entry.is_padded for _, entry in self.pairs())

    def is_free(self, name: str, tensor: Tensor) -> bool:
        """Whether any number may stand in a tensor: it is floating, and decides nothing."""
        # A float8 has no random numbers, and what is made of one is not widened either.
        numbers = tensor.is_complex() or (tensor.is_floating_point() and tensor.itemsize > 1)
        return name not in self._native and numbers


class Carrier(TensorMap):
    """Writes numbers into copies of both sides, the same elements on either."""

    def __init__(
        self,
        original: RegionCopy,
        rewritten: RegionCopy,
        entries: Mapping[str, Entry],
        native: Collection[str] = (),
    ) -> None:
        super().__init__(original.state, rewritten.state, entries, native)
        self._original = original
        self._rewritten = rewritten

    def restore(self) -> None:
        """Give both copies the values of the tensors that they were copied from."""
        with torch.no_grad():
            for side in (self._original, self._rewritten):
                for name, tensor in side.tensors.items():
                    own = side.originals[name].detach()
                    own = drawn(own) if own.is_meta else own.cpu()
                    tensor.data = own.to(tensor.dtype, copy=True)

    def randomize(self, generator: torch.Generator) -> None:
        """Give both copies the same random parameters and floating buffers.

        Weights keep the scale of a fresh initialisation, norms stay away from zero and variances
        are positive, so that the gradients are well conditioned.
        """
        self.fill(lambda name, tensor: tensor.copy_(_random(name, tensor, generator)))

    def fill(self, draw: Draw) -> None:
        """Give both copies the same parameters and floating buffers, as `draw` writes them.

        Where elements are picked, zeros stay zeros, because the form may rest on them. Native
        tensors and integers stay as they are.
        """
        done: set[int] = set()
        with torch.no_grad():
            for name, tensor in self._original.tensors.items():
                if not self.is_free(name, tensor) or id(tensor) in done:
                    continue
                done.add(id(tensor))
                draw(name, tensor)
                own = self._original.originals[name]
                if not _only_rows(self._by_key.get(name, [])) and not own.is_meta:
                    tensor.mul_(own.to(tensor.device) != 0)
            for name, entry in self.pairs():
                tensor = self._rewritten.tensors[name]
                if not self.is_free(name, tensor):
                    continue
                value = entry.of(self._original.tensors[entry.key].detach())
                if isinstance(entry, Rows) and isinstance(tensor, nn.Parameter):
                    tensor.data = value  # the same memory: a second copy would be the largest thing
                else:
                    tensor.copy_(value)


def placed(entry: Entry, like: Tensor) -> Tensor | None:
    """Where a rewritten tensor holds elements of the original's `like`; None if everywhere."""
    if isinstance(entry, Rows) or not entry.is_padded:
        return None
    return entry.of(torch.ones_like(like), fill=0.0) != 0


def _only_rows(entries: Collection[Entry]) -> bool:
    return all(isinstance(entry, Rows) for entry in entries)


def _random(name: str, tensor: Tensor, generator: torch.Generator) -> Tensor:
    normal = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
    if name.endswith("running_var"):
        return normal.abs_().add_(0.5)
    if tensor.dim() < 2:
        return normal.mul_(0.3).add_(1)
    fan = max(tensor.numel() // max(tensor.shape[0], 1), 1)
    return normal.div_(math.sqrt(fan))
