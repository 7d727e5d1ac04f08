"""The operations that compute one site, as a small graph without numbers: for a drawing of it.

Both realms make it, of an fx graph and of an ONNX graph.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..convs.spec import ConvSpec

Node = TypeVar("Node", bound=Hashable)


@dataclass(frozen=True)
class Piece:
    """One operation in words, and the places of those, earlier in the list, whose value it reads.

    What comes from outside the site is not among them.
    """

    label: str
    reads: tuple[int, ...] = ()


def conv_label(kind: str, spec: ConvSpec) -> str:
    """A convolution without its name, such as `Conv 64->64 /4, 3x3`."""
    return f"{kind} {spec.brief()}, {'x'.join(map(str, spec.kernel_size))}"


def pieces_of(
    nodes: Sequence[Node],
    reads: Callable[[Node], Iterable[Node]],
    label: Callable[[Node], str | None],
) -> tuple[Piece, ...]:
    """The pieces of `nodes`, each of which stands behind those that it reads.

    A node without a label computes nothing, such as one that names a parameter: it is left out,
    and who reads it reads what it reads.
    """
    made: list[Piece] = []
    stands: dict[Node, tuple[int, ...]] = {}
    for node in nodes:
        sources = _places(stands, reads(node))
        text = label(node)
        if text is None:
            stands[node] = sources
            continue
        stands[node] = (len(made),)
        made.append(Piece(text, sources))
    return tuple(made)


def _places(stands: Mapping[Node, tuple[int, ...]], nodes: Iterable[Node]) -> tuple[int, ...]:
    return tuple(sorted({place for node in nodes for place in stands.get(node, ())}))
