"""How the dimensions of a tensor are made of those of another: reshape and transpose, in integers.

A *layout* says of each dimension which *atoms* it runs over, the outermost first. Views of a tensor
split its dimensions into atoms, move them, and join them again; `[N, C, H, W]` seen as
`[N, g, C/g, H*W]` has the channels in two atoms, and the last two dimensions in one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .orders import Order, identity

UNITS, OUTER, INNER = -1, -2, -3
"""In place of a dimension: the channels of an axis, and what repeats them outside and inside."""


@dataclass(frozen=True)
class Atom:
    """`size` positions of dimension `of`, each `stride` from the next."""

    of: int
    size: int
    stride: int = 1


Layout = tuple[tuple[Atom, ...], ...]


def whole(shape: Sequence[int], dim: int, outer: int = 1, inner: int = 1) -> Layout:
    """A tensor as it is, whose dimension `dim` holds `outer x channels x inner` positions."""
    found: list[tuple[Atom, ...]] = [(Atom(k, size),) for k, size in enumerate(shape)]
    units = shape[dim] // (outer * inner)
    found[dim] = (Atom(OUTER, outer), Atom(UNITS, units), Atom(INNER, inner))
    return tuple(map(_joined, found))


def reshaped(layout: Layout, shape: Sequence[int]) -> Layout | None:
    """The same positions in another shape; None where its dimensions cut across the atoms."""
    rest = [atom for dim in layout for atom in dim if atom.size > 1][::-1]
    found: list[tuple[Atom, ...]] = []
    for size in shape:
        dim: list[Atom] = []
        while size > 1 and rest:
            atom = rest.pop()
            if atom.size > size and atom.size % size == 0:
                inner = atom.size // size
                rest.append(Atom(atom.of, inner, atom.stride))
                atom = Atom(atom.of, size, atom.stride * inner)
            if size % atom.size:
                return None
            size //= atom.size
            dim.append(atom)
        if size != 1:
            return None
        found.append(_joined(dim))
    return None if rest else tuple(found)


def transposed(layout: Layout, dims: Sequence[int]) -> Layout:
    """With its dimensions in another order."""
    return tuple(layout[dim] for dim in dims)


def channels(dim: Sequence[Atom]) -> tuple[Atom, ...]:
    """The atoms of a dimension that are of the channels."""
    return tuple(atom for atom in dim if atom.of == UNITS)


def units(layout: Layout) -> tuple[Atom, ...]:
    """The atoms of the channels, in the order in which the layout has them."""
    return tuple(atom for dim in layout for atom in channels(dim))


def surroundings(layout: Layout) -> tuple[tuple[Atom, ...], tuple[Atom, ...]]:
    """The atoms in front of the channels and behind them, whatever dimensions they are in."""
    atoms = [atom for dim in layout for atom in dim]
    places = [k for k, atom in enumerate(atoms) if atom.of == UNITS] or [len(atoms)]
    return _joined(atoms[: places[0]]), _joined(atoms[places[-1] + 1 :])


@dataclass(frozen=True)
class OneAxis:
    """The dimension that holds all channels, and how often each stands outside and inside.

    `batch` says that samples are what it stands for outside or inside.
    """

    dim: int
    outer: int
    inner: int
    batch: bool


def one_axis(layout: Layout) -> OneAxis | None:
    """Where all channels are in one dimension side by side, in whatever order."""
    dims = [k for k, dim in enumerate(layout) if channels(dim)]
    if len(dims) != 1:
        return None
    atoms = layout[dims[0]]
    places = [k for k, atom in enumerate(atoms) if atom.of == UNITS]
    if places != list(range(places[0], places[-1] + 1)):
        return None
    before, behind = atoms[: places[0]], atoms[places[-1] + 1 :]
    outer, inner = (math.prod(atom.size for atom in side) for side in (before, behind))
    return OneAxis(dims[0], outer, inner, any(atom.of == 0 for atom in atoms))


def order_of(atoms: Sequence[Atom]) -> Order:
    """The channels in the order in which these atoms, the outermost first, run over them."""
    found = identity(1) * 0
    for atom in atoms:
        found = (found[:, None] + identity(atom.size) * atom.stride).ravel()
    return found


def _joined(atoms: Sequence[Atom]) -> tuple[Atom, ...]:
    """Atoms of one position gone, and those in one that run on from each other."""
    found: list[Atom] = []
    for atom in atoms:
        if atom.size == 1:
            continue
        last = found[-1] if found else None
        if last is not None and last.of == atom.of and last.stride == atom.stride * atom.size:
            found[-1] = Atom(atom.of, last.size * atom.size, atom.stride)
        else:
            found.append(atom)
    return tuple(found)
