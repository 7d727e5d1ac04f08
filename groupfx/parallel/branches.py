"""What a concatenation joins: branches, each a convolution on a part of one value.

    y = cat([g(conv_k(f(x)[:, part_k])) for each branch k], dim=1)

Here f stands for padding and the like, which leave channels alone, and g for a BatchNorm, a bias
that is added, an activation, or none. A graph is read as the operations of `groupfx.folding`, which
both realms speak of.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..folding.orders import Order, identity
from ..folding.wiring import Operation, Parameter, Value

CHANNELS = 1
"""The dimension of the channels."""


@dataclass(frozen=True)
class Stage:
    """An operation behind a convolution, and the dimension of each parameter with its channels.

    A dimension is None for a parameter that all channels read alike.
    """

    op: Operation
    parameters: tuple[tuple[Parameter, int | None], ...] = ()


@dataclass(frozen=True)
class Read:
    """A value that a branch may start from: the channels of it that its convolution reads.

    `front` are the operations in between that leave channels alone, in order. `parts` are the
    values in between.
    """

    value: Value
    channels: Order
    front: tuple[Operation, ...] = ()
    parts: tuple[Value, ...] = ()

    @property
    def is_part(self) -> bool:
        """Whether it is less than the whole value, or the whole in another order."""
        whole = identity(self.value.shape[CHANNELS])
        return not np.array_equal(self.channels, whole)


@dataclass(frozen=True)
class Branch:
    """A convolution, what it may be said to read, and what stands behind it."""

    conv: Operation
    reads: tuple[Read, ...]
    behind: tuple[Stage, ...]
    inner: tuple[Value, ...] = field(default=())

    @property
    def weight(self) -> Parameter:
        """`[out, in / groups, ...]`, or `[in, out / groups, ...]` where it is transposed."""
        found = self.conv.parameter("weight")
        assert found is not None
        return found

    @property
    def bias(self) -> Parameter | None:
        """`[out]`."""
        return self.conv.parameter("bias")

    @property
    def groups(self) -> int:
        """Its own groups."""
        return int(self.conv.numbers["groups"])

    @property
    def in_channels(self) -> int:
        """How many channels go in."""
        return self.conv.values[0].shape[CHANNELS]

    @property
    def out_channels(self) -> int:
        """How many channels come out."""
        return self.conv.outputs[0].shape[CHANNELS]

    @property
    def sizes(self) -> tuple[int, int]:
        """The inputs and the outputs of one group."""
        return self.in_channels // self.groups, self.out_channels // self.groups

    @property
    def parameters(self) -> Iterator[Parameter]:
        """All that it is made of."""
        yield self.weight
        if self.bias is not None:
            yield self.bias
        for stage in self.behind:
            yield from (parameter for parameter, _ in stage.parameters)

    @property
    def joined(self) -> Iterator[Parameter]:
        """All of it that has channels; what all channels read alike, such as a bound, is shared."""
        shared = {p.key for stage in self.behind for p, dim in stage.parameters if dim is None}
        yield from (parameter for parameter in self.parameters if parameter.key not in shared)


class Reader:
    """Looks back from the values of a graph, which is given as its operations in order."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        self.operations = tuple(operations)
        self.made: dict[Hashable, tuple[Operation, int]] = {
            value.key: (op, place)
            for op in self.operations
            for place, value in enumerate(op.outputs)
        }
        self.uses: Counter[Hashable] = Counter(
            held.key for op in self.operations for held in _held(op)
        )

    def branch(self, value: Value) -> Branch | None:
        """The branch that gives `value`; None where no convolution is behind it."""
        stages: list[Stage] = []
        inner = [value]
        while (found := self.made.get(value.key)) is not None:
            op, _ = found
            if op.rule == "convolution":
                reads = tuple(self._reads(op.values[0]))
                return Branch(op, reads, tuple(reversed(stages)), tuple(inner))
            stage = stage_of(op)
            if stage is None:
                return None
            stages.append(stage)
            (value,) = op.values.values()
            inner.append(value)
        return None

    def _reads(self, value: Value) -> Iterator[Read]:
        """`value`, what it is a part of, and so on."""
        if len(value.shape) <= CHANNELS:
            return
        read = Read(value, identity(value.shape[CHANNELS]))
        yield read
        while (found := self.made.get(read.value.key)) is not None:
            op, place = found
            if op.rule == "select" and op.numbers["dim"] == CHANNELS:
                channels = np.asarray(op.numbers["reads"][place], dtype=np.intp)[read.channels]
                front = read.front
            elif (view := self._viewed(op)) is not None:
                # `x.unflatten(1, (g, n))[:, k]`: the view itself is shared, and no part.
                source, first = view
                yield (read := Read(source, first + read.channels, read.front, read.parts))
                continue
            elif op.numbers.get("whole", False):
                # A cut of another axis that leaves nothing out, as an export writes them.
                channels, front = read.channels, read.front
            elif op.rule == "select" or _leaves_channels(op):
                # What is cut along other axes is cut alike, whatever the channels are.
                channels, front = read.channels, (op, *read.front)
            else:
                return
            (source,) = op.values.values()
            read = Read(source, channels, front, (*read.parts, read.value))
            yield read

    def _viewed(self, op: Operation) -> tuple[Value, int] | None:
        """The value whose channels a view sees as groups, and the first of the group picked."""
        found = self.made.get(op.values[0].key) if op.rule == "pick" and 0 in op.values else None
        if found is None or found[0].rule != "reshape" or op.numbers["dim"] != CHANNELS:
            return None
        view = found[0]
        (source,) = view.values.values()
        groups, each = op.values[0].shape[CHANNELS : CHANNELS + 2] or (0, 0)
        before, after = source.shape, op.values[0].shape
        if before != (*after[:CHANNELS], groups * each, *after[CHANNELS + 2 :]):
            return None
        said = view.numbers.get("sizes") or ()
        others = [size for dim, size in enumerate(said) if dim not in (CHANNELS, CHANNELS + 1)]
        if any(size not in (None, -1, 0) for size in others):
            return None  # of one size of input alone
        return source, int(op.numbers["picked"][0]) * each


def _held(op: Operation) -> Iterator[Value | Parameter]:
    """Every tensor that an operation uses, as often as it does."""
    yield from op.inputs.values()
    yield from (held for held in op.numbers.values() if isinstance(held, Parameter))


def _leaves_channels(op: Operation) -> bool:
    """Whether an operation treats all channels alike, and none of them with others."""
    if op.rule == "quantize":
        return not _scales(op)
    alone = len(op.inputs) == 1 and CHANNELS not in op.numbers.get("dims", ())
    return op.rule == "elementwise" and alone


def _scales(op: Operation) -> list[Parameter]:
    """The scales and zero points of which a quantization has several."""
    given = (op.parameter("scale"), op.parameter("zero"))
    return [held for held in given if held is not None and math.prod(held.shape) > 1]


def stage_of(op: Operation) -> Stage | None:
    """`op` as something behind a convolution that acts on each channel alone; None if it is not."""
    if len(op.values) != 1:
        return None
    if op.rule in ("elementwise", "quantize") and _leaves_channels(op):
        return Stage(op)
    if op.rule == "quantize" and op.numbers["dim"] == CHANNELS:
        return Stage(op, tuple((held, 0) for held in _scales(op)))
    if op.rule == "per channel":
        roles = (op.parameter(role) for role in ("weight", "bias", "mean", "variance"))
        return Stage(op, tuple((held, 0) for held in roles if held is not None))
    if op.rule == "binary":
        return _with_parameters(op)
    return None


def _with_parameters(op: Operation) -> Stage | None:
    """A function of a value and of parameters that have an element a channel, or one for all."""
    (value,) = op.values.values()
    if value.shape != op.outputs[0].shape:
        return None
    dims = [(parameter, channel_dim(parameter, value)) for parameter in op.parameters]
    sizes = {parameter.shape[dim] for parameter, dim in dims if dim is not None}
    return Stage(op, tuple(dims)) if sizes <= {value.shape[CHANNELS]} else None


def channel_dim(parameter: Parameter, value: Value) -> int | None:
    """The dimension of a parameter that meets the channels of `value`; None where all meet one."""
    dim = len(parameter.shape) - len(value.shape) + CHANNELS
    return None if dim < 0 or parameter.shape[dim] == 1 else dim


COMMUTATIVE = frozenset({"add", "eq", "max", "maximum", "min", "minimum", "mul", "multiply", "sum"})
"""Functions of two tensors, whichever comes first."""


def common_read(branches: Sequence[Branch]) -> tuple[Read, ...] | None:
    """How each branch reads the nearest value that all of them start from; None without one."""
    tables = [{read.value.key: read for read in branch.reads} for branch in branches]
    for read in branches[0].reads:
        key = read.value.key
        if all(key in table for table in tables):
            return tuple(table[key] for table in tables)
    return None
