"""Programs written down: one method an operation, weights drawn on the way.

    sketch = Sketch("depthwise/2d")
    x = sketch.input(6, 7, 5)
    sketch.output(sketch.relu(sketch.conv(x, 6, (3, 3), groups=6)))
    program = sketch.program()

Numbers are drawn from a generator that the name seeds: a case is the same on every machine, and its
neighbours may come and go. They have few digits, so that float16 holds them as they are.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .known import Array, Known
from .operations import (
    Activation,
    Binary,
    Concat,
    Gather,
    Identity,
    MatMul,
    Mean,
    Norm,
    Reshape,
    Slice,
    Split,
    Transpose,
)
from .program import Input, Operation, Program, Size, Step
from .windows import AveragePool, Conv, ConvTranspose, MaxPool, Pad, Sizes

# Multiples of 1/64 up to 2: exact in float16, and too many of them for sums to agree by chance.
_GRID, _LARGEST = 64, 128
BATCH = 2
DEFAULT_OPSET = 17


class Sketch:
    """A program in the making. Values are names; shapes are known on the way."""

    def __init__(self, name: str, *, opset: int = DEFAULT_OPSET, dtype: str = "float32") -> None:
        self.opset, self.dtype = opset, dtype
        self.random = np.random.default_rng(zlib.crc32(name.encode()))
        self._inputs: list[Input] = []
        self._constants: dict[str, Array] = {}
        self._steps: list[Step] = []
        self._outputs: list[str] = []
        self._feeds: list[dict[str, Array]] = [{}]
        self._known: dict[str, Known] = {}

    def program(self) -> Program:
        """What was written down."""
        return Program(
            tuple(self._inputs),
            dict(self._constants),
            tuple(self._steps),
            tuple(self._outputs),
            tuple(self._feeds),
            self.opset,
        )

    def shape(self, name: str) -> tuple[int, ...]:
        """Sizes of a value."""
        return self._known[name].shape

    def drawn(self, *sizes: int) -> Array:
        """Numbers between -2 and 2, none of them 0."""
        whole = self.random.integers(1, _LARGEST + 1, sizes) * self.random.choice((-1, 1), sizes)
        found: Array = np.asarray(whole / _GRID, self.dtype)
        return found

    def input(self, *sizes: int, declared: Sequence[Size] = (), values: Array | None = None) -> str:
        """An input [2, *sizes]; `declared` names axes that are open."""
        name = f"x{len(self._inputs)}" if self._inputs else "x"
        array = self.drawn(BATCH, *sizes) if values is None else values
        self._inputs.append(Input(name, array.dtype.name, tuple(declared) or array.shape))
        self._feeds[0][name] = array
        self._known[name] = Known.exact(array)
        return name

    def also_on(self, *shapes: Sizes) -> None:
        """Run it on inputs of these shapes too."""
        pairs = zip(self._inputs, shapes, strict=True)
        self._feeds.append({each.name: self.drawn(*shape) for each, shape in pairs})

    def constant(self, array: Array) -> str:
        """A value of the file."""
        name = f"c{len(self._constants)}"
        self._constants[name] = array
        self._known[name] = Known.exact(array)
        return name

    def weight(self, *sizes: int) -> str:
        """A constant that is drawn."""
        return self.constant(self.drawn(*sizes))

    def output(self, *names: str) -> None:
        """Outputs of the model."""
        self._outputs += names

    def apply(self, operation: Operation, *reads: str, results: int = 1) -> tuple[str, ...]:
        """Any operation."""
        gives = tuple(f"v{len(self._steps)}_{i}" for i in range(results))
        self._steps.append(Step(operation, reads, gives))
        found = operation.define(*(self._known[name] for name in reads))
        self._known |= dict(zip(gives, found, strict=True))
        return gives

    def one(self, operation: Operation, *reads: str) -> str:
        """Any operation with one result."""
        return self.apply(operation, *reads)[0]

    def conv(
        self, x: str, out: int, kernel: Sizes, *, groups: int = 1, bias: bool = True, **window: Any
    ) -> str:
        """A convolution with weights of its own."""
        weight = self.weight(out, self.shape(x)[1] // groups, *kernel)
        biases = [self.weight(out)] if bias else []
        return self.one(Conv(groups=groups, **window), x, weight, *biases)

    def transposed(
        self, x: str, out: int, kernel: Sizes, *, groups: int = 1, bias: bool = True, **window: Any
    ) -> str:
        """A transposed convolution with weights of its own."""
        weight = self.weight(self.shape(x)[1], out // groups, *kernel)
        biases = [self.weight(out)] if bias else []
        return self.one(ConvTranspose(groups=groups, **window), x, weight, *biases)

    def norm(self, x: str) -> str:
        """A BatchNormalization whose statistics are not those of a fresh layer."""
        channels = self.shape(x)[1]
        variance = self.constant(np.abs(self.drawn(channels)))
        rows = [self.weight(channels) for _ in range(3)]
        return self.one(Norm(), x, *rows, variance)

    def relu(self, x: str) -> str:
        """max(x, 0)."""
        return self.one(Activation(), x)

    def act(self, x: str, kind: Any) -> str:
        """Another activation."""
        return self.one(Activation(kind), x)

    def add(self, left: str, right: str) -> str:
        """The sum."""
        return self.one(Binary("Add"), left, right)

    def mul(self, left: str, right: str) -> str:
        """The product."""
        return self.one(Binary("Mul"), left, right)

    def concat(self, *parts: str, axis: int = 1) -> str:
        """Parts one after another."""
        return self.one(Concat(axis), *parts)

    def split(self, x: str, *sizes: int, axis: int = 1) -> tuple[str, ...]:
        """Parts by one operation."""
        return self.apply(Split(sizes, axis), x, results=len(sizes))

    def slice(self, x: str, start: int, stop: int, step: int = 1, axis: int = 1) -> str:
        """Positions of an axis in a row."""
        return self.one(Slice(start, stop, step, axis), x)

    def gather(self, x: str, indices: Sequence[int], axis: int = 1) -> str:
        """Positions of an axis in any order."""
        return self.one(Gather(tuple(int(i) for i in indices), axis), x)

    def transpose(self, x: str, *axes: int) -> str:
        """Axes in another order."""
        return self.one(Transpose(axes), x)

    def reshape(self, x: str, *sizes: int) -> str:
        """Other sizes."""
        return self.one(Reshape(sizes), x)

    def shuffle(self, x: str, groups: int) -> str:
        """Channel (g, n) to (n, g), as view, transpose, view."""
        _, channels, *sizes = self.shape(x)
        apart = self.reshape(x, 0, groups, channels // groups, *sizes)
        axes = range(3, 3 + len(sizes))
        return self.reshape(self.transpose(apart, 0, 2, 1, *axes), 0, channels, *sizes)

    def permutation(self, channels: int) -> list[int]:
        """An order of channels in which few stay where they are."""
        order: list[int] = self.random.permutation(channels).tolist()
        return order if order != sorted(order) else order[::-1]

    def pad(self, x: str, pads: Sizes, value: float = 0.0) -> str:
        """A Pad of its own."""
        return self.one(Pad(pads, value), x)

    def max_pool(self, x: str, kernel: Sizes, **window: Any) -> str:
        """The largest of each window."""
        return self.one(MaxPool(kernel=kernel, **window), x)

    def average_pool(self, x: str, kernel: Sizes, **window: Any) -> str:
        """The mean of each window."""
        return self.one(AveragePool(kernel=kernel, **window), x)

    def mean(self, x: str) -> str:
        """The mean over all positions."""
        return self.one(Mean(), x)

    def linear(self, x: str, out: int) -> str:
        """A matrix times x [N, C], and a bias."""
        product = self.one(MatMul(), x, self.weight(self.shape(x)[1], out))
        return self.add(product, self.weight(out))

    def identity(self, x: str, kind: Any = "Identity") -> str:
        """Nothing."""
        return self.one(Identity(kind), x)

    def feeds(self) -> Mapping[str, Array]:
        """The first set of inputs."""
        return self._feeds[0]
