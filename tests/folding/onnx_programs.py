"""Random ONNX graphs of the operations of the table of rules, in float64.

A program is a list of (operation, numbers of the values that it reads, seed); every value is
`[2, channels, 4, 6]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

BATCH, HEIGHT, WIDTH = 2, 4, 6
STEM = 12
MOST_CHANNELS = 24

Step = tuple[str, int, int, int]
Array = npt.NDArray[Any]


class OnnxProgram:
    """The nodes and constants of a graph while it is written; the last value is what is asked."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        self.rng = np.random.default_rng(0)
        self.shared = self.constant(self.random(12, 12, 1, 1))
        stem = self.constant(self.random(STEM, 3, 1, 1))
        values = [(self.node("Conv", "x", stem), STEM)]
        for name, first, second, seed in steps:
            self.rng = np.random.default_rng(seed)
            value, width = values[first % len(values)]
            other, its = values[second % len(values)]
            made = OPERATIONS[name](self, value, width, other, its)
            values.append(made or (self.node("Relu", value), width))
        last, width = values[-1]
        outputs = [self.node("Conv", last, self.constant(self.random(4, width, 1, 1)))]
        outputs += [self.node("GlobalAveragePool", value) for value, _ in values[-3:]]
        outputs.append(last)
        self.outputs = dict.fromkeys(outputs)

    def random(self, *shape: int) -> Array:
        return self.rng.uniform(0.5, 1.5, shape) * self.rng.choice([-1, 1], shape)

    def constant(self, array: Array) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(array)
        return name

    def ints(self, *numbers: int) -> str:
        return self.constant(np.array(numbers, dtype=np.int64))

    def node(self, kind: str, *inputs: str, outputs: int = 0, **attributes: Any) -> Any:
        """A node; the name of its output, or of all where there are several."""
        names = [
            f"v{len(self.nodes)}" if not k else f"v{len(self.nodes)}_{k}"
            for k in range(max(1, outputs))
        ]
        made = helper.make_node(kind, list(inputs), names, name=f"n{len(self.nodes)}", **attributes)
        self.nodes.append(made)
        return names if outputs else names[0]

    def model(self, opset: int = 21, batch: int | str = BATCH) -> ir.Model:
        """The graph as a model."""
        double = TensorProto.DOUBLE
        image = helper.make_tensor_value_info("x", double, [batch, 3, HEIGHT, WIDTH])
        results = [
            helper.make_tensor_value_info(n, double, [batch, None, None, None])
            for n in self.outputs
        ]
        held = [numpy_helper.from_array(array, name) for name, array in self.constants.items()]
        graph = helper.make_graph(self.nodes, "program", [image], results, held)
        opsets = [helper.make_opsetid("", opset)]
        return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))


Made = tuple[str, int] | None
Write = Callable[[OnnxProgram, str, int, str, int], Made]
OPERATIONS: dict[str, Write] = {}


def operation(write: Write) -> Write:
    """Enter a function into the table, under its name."""
    OPERATIONS[write.__name__.replace("_", " ").strip()] = write
    return write


def _simple(name: str, kind: str, **attributes: Any) -> None:
    OPERATIONS[name] = lambda p, x, c, y, d: (p.node(kind, x, **attributes), c)


_simple("relu", "Relu")
_simple("sigmoid", "Sigmoid")
_simple("softmax", "Softmax", axis=1)
_simple("pool", "AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
_simple("max pool", "MaxPool", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
_simple("normalize", "LpNormalization", axis=1)


@operation
def local_response_norm(p: OnnxProgram, x: str, c: int, y: str, d: int) -> Made:
    return (p.node("LRN", x, size=3), c) if c > 3 else None


@operation
def conv(p: OnnxProgram, x: str, c: int, y: str, d: int) -> Made:
    return p.node("Conv", x, p.constant(p.random(12, c, 1, 1)), p.constant(p.random(12))), 12


@operation
def shared_conv(p: OnnxProgram, x: str, c: int, y: str, d: int) -> Made:
    if c != 12 or d != 12:
        return None
    return p.node("Add", p.node("Conv", x, p.shared), p.node("Conv", y, p.shared)), 12


@operation
def grouped(p: OnnxProgram, x: str, c: int, y: str, d: int) -> Made:
    groups = int(p.rng.choice([n for n in (2, 3, 4) if c % n == 0] or [0]))
    if not groups:
        return None
    weight = p.constant(p.random(2 * groups, c // groups, 1, 1))
    return p.node("Conv", x, weight, p.constant(p.random(2 * groups)), group=groups), 2 * groups


@operation
def depthwise(p: OnnxProgram, x: str, c: int, y: str, d: int) -> Made:
    weight = p.constant(p.random(c, 1, 3, 3))
    return p.node("Conv", x, weight, group=c, pads=[1, 1, 1, 1]), c


@operation
def multiplier(p: OnnxProgram, x: str, c: int, y: str, d: int) -> Made:
    if 2 * c > MOST_CHANNELS:
        return None
    return p.node("Conv", x, p.constant(p.random(2 * c, 1, 1, 1)), group=c), 2 * c


@operation
def transposed(p: OnnxProgram, x: str, c: int, y: str, d: int) -> Made:
    return p.node("ConvTranspose", x, p.constant(p.random(c, 6, 1, 1))), 6


@operation
def dequantized(p: OnnxProgram, x: str, c: int, y: str, d: int) -> Made:
    weight = p.constant(p.rng.integers(-9, 10, (9, c, 1, 1)).astype(np.int8))
    scale = p.constant(p.rng.uniform(0.1, 0.3, 9).astype(np.float32))
    zero = p.constant(p.rng.integers(-3, 4, 9).astype(np.int8))
    made = p.node("DequantizeLinear", weight, scale, zero, axis=0)
    return p.node("Conv", x, p.node("Cast", made, to=TensorProto.DOUBLE)), 9


@operation
def batch_norm(p: OnnxProgram, x: str, c: int, y: str, d: int) -> Made:
    given = [p.constant(p.random(c)) for _ in range(3)]
    return p.node("BatchNormalization", x, *given, p.constant(np.abs(p.random(c)))), c


@operation
def instance_norm(p: OnnxProgram, x: str, c: int, y: str, d: int) -> Made:
    given = [p.constant(p.random(c)) for _ in range(2)]
    return p.node("InstanceNormalization", x, *given, epsilon=0.1), c


@operation
def group_norm(p: OnnxProgram, x: str, c: int, y: str, d: int) -> Made:
    groups = 3 if c % 3 == 0 else 2 if c % 2 == 0 else 1
    flat = p.node("Reshape", x, p.ints(0, groups, -1))
    given = [p.constant(p.random(groups)) for _ in range(2)]
    norm = p.node("InstanceNormalization", flat, *given, epsilon=0.1)
    back = p.node("Reshape", norm, p.ints(0, c, HEIGHT, WIDTH))
    return p.node("Mul", back, p.constant(p.random(c, 1, 1))), c


@operation
def layer_norm(p: OnnxProgram, x: str, c: int, y: str, d: int) -> Made:
    last = p.node("Transpose", x, perm=[0, 2, 3, 1])
    given = [p.constant(p.random(c)) for _ in range(2)]
    norm = p.node("LayerNormalization", last, *given, epsilon=0.1)
    return p.node("Transpose", norm, perm=[0, 3, 1, 2]), c


@operation
def prelu(p: OnnxProgram, x: str, c: int, y: str, d: int) -> Made:
    return p.node("PRelu", x, p.constant(p.random(c, 1, 1))), c


@operation
def permutation(p: OnnxProgram, x: str, c: int, y: str, d: int) -> Made:
    order = p.rng.permutation(c) - int(p.rng.choice([0, c]))
    return p.node("Gather", x, p.ints(*order), axis=int(p.rng.choice([1, -3]))), c


@operation
def repeats(p: OnnxProgram, x: str, c: int, y: str, d: int) -> Made:
    return p.node("Gather", x, p.ints(*p.rng.integers(c, size=6)), axis=1), 6


@operation
def slice_(p: OnnxProgram, x: str, c: int, y: str, d: int) -> Made:
    if c < 5:
        return None
    return p.node("Slice", x, p.ints(1), p.ints(-1), p.ints(1)), c - 2


@operation
def swap(p: OnnxProgram, x: str, c: int, y: str, d: int) -> Made:
    cut = int(p.rng.integers(1, c)) if c > 1 else 0
    if not cut:
        return None
    parts = p.node("Split", x, p.ints(cut, c - cut), outputs=2, axis=1)
    return p.node("Concat", *parts[::-1], axis=-3), c


@operation
def branches(p: OnnxProgram, x: str, c: int, y: str, d: int) -> Made:
    """As in ShuffleNet v2: one half goes through a layer, and the two are shuffled."""
    if c % 2 or c < 4:
        return None
    left, right = p.node("Split", x, p.ints(c // 2, c // 2), outputs=2, axis=1)
    made = p.node("Conv", right, p.constant(p.random(c // 2, c // 2, 1, 1)))
    joint = p.node("Concat", left, made, axis=1)
    return shuffle(p, joint, c, y, d)


@operation
def concat(p: OnnxProgram, x: str, c: int, y: str, d: int) -> Made:
    return (p.node("Concat", x, y, axis=1), c + d) if c + d <= MOST_CHANNELS else None


@operation
def add(p: OnnxProgram, x: str, c: int, y: str, d: int) -> Made:
    return (p.node("Add", x, y), c) if c == d or 1 in (c, d) else None


@operation
def gate(p: OnnxProgram, x: str, c: int, y: str, d: int) -> Made:
    pooled = p.node("GlobalAveragePool", x)
    made = p.node("Sigmoid", p.node("Conv", pooled, p.constant(p.random(c, c, 1, 1))))
    return p.node("Mul", made, x), c


@operation
def scale(p: OnnxProgram, x: str, c: int, y: str, d: int) -> Made:
    shape = [(c, 1, 1), (1, c, 1, 1), (WIDTH,), (HEIGHT, 1)][int(p.rng.integers(4))]
    return p.node("Mul", p.constant(p.random(*shape)), x), c


@operation
def centre(p: OnnxProgram, x: str, c: int, y: str, d: int) -> Made:
    return p.node("Sub", x, p.node("ReduceMean", x, p.ints(-3))), c


@operation
def cumsum(p: OnnxProgram, x: str, c: int, y: str, d: int) -> Made:
    axis = p.constant(np.array(int(p.rng.choice([1, 2]))))
    return p.node("Tanh", p.node("CumSum", x, axis)), c


@operation
def flip(p: OnnxProgram, x: str, c: int, y: str, d: int) -> Made:
    given = p.ints(-1), p.ints(-(2**60)), p.ints(int(p.rng.choice([1, 2]))), p.ints(-1)
    return p.node("Slice", x, *given), c


def _groups(p: OnnxProgram, c: int) -> int:
    return int(p.rng.choice([n for n in (2, 3, 4, 5) if c % n == 0 and c > n] or [1]))


@operation
def shuffle(p: OnnxProgram, x: str, c: int, y: str, d: int) -> Made:
    g = _groups(p, c)
    flat = bool(p.rng.integers(2))
    sizes = (-1,) if flat else (HEIGHT, WIDTH)
    seen = p.node("Reshape", x, p.ints(BATCH, g, c // g, *sizes))
    turned = p.node("Transpose", seen, perm=[0, 2, 1, *range(3, 3 + len(sizes))])
    return p.node("Reshape", turned, p.ints(0, -1, HEIGHT, WIDTH)), c


@operation
def batch_shuffle(p: OnnxProgram, x: str, c: int, y: str, d: int) -> Made:
    if c % 2 or c < 4:
        return None
    seen = p.node("Reshape", x, p.ints(BATCH * c // 2, 2, -1))
    turned = p.node("Transpose", seen, perm=[1, 0, 2])
    halves = p.node("Reshape", turned, p.ints(2, BATCH, c // 2, HEIGHT, WIDTH))
    index = p.constant(np.array(int(p.rng.choice([0, 1, -1]))))
    return p.node("Gather", halves, index, axis=0), c // 2


@operation
def relu_in_a_view(p: OnnxProgram, x: str, c: int, y: str, d: int) -> Made:
    g = _groups(p, c)
    seen = p.node("Reshape", x, p.ints(0, g, -1, HEIGHT, WIDTH))
    made = p.node("Softmax" if p.rng.integers(2) else "Relu", seen)
    if p.rng.integers(2):
        made = p.node("Transpose", made, perm=[0, 2, 1, 3, 4])
    return p.node("Reshape", made, p.ints(0, c, HEIGHT, WIDTH)), c


@operation
def softmax_of_a_view(p: OnnxProgram, x: str, c: int, y: str, d: int) -> Made:
    seen = p.node("Reshape", x, p.ints(0, _groups(p, c), -1, HEIGHT, WIDTH))
    made = p.node("Softmax", seen, axis=int(p.rng.integers(1, 4)))
    return p.node("Reshape", made, p.ints(0, c, HEIGHT, WIDTH)), c


@operation
def sum_of_a_view(p: OnnxProgram, x: str, c: int, y: str, d: int) -> Made:
    g, axis = _groups(p, c), int(p.rng.integers(1, 3))
    seen = p.node("Reshape", x, p.ints(0, g, -1, HEIGHT, WIDTH))
    return p.node("ReduceMean", seen, p.ints(axis), keepdims=0), c // g if axis == 1 else g


@operation
def depth(p: OnnxProgram, x: str, c: int, y: str, d: int) -> Made:
    if 4 * c > 2 * MOST_CHANNELS:
        return None
    deep = p.node("SpaceToDepth", x, blocksize=2)
    made = (
        p.node("Relu", deep)
        if p.rng.integers(2)
        else p.node("Conv", deep, p.constant(p.random(4 * c, 1, 1, 1)), group=4 * c)
    )
    return p.node("DepthToSpace", made, blocksize=2, mode=str(p.rng.choice(["DCR", "CRD"]))), c


@operation
def matrix(p: OnnxProgram, x: str, c: int, y: str, d: int) -> Made:
    last = p.node("Transpose", x, perm=[0, 2, 3, 1])
    weight = p.constant(p.random(10, c) if p.rng.integers(2) else p.random(c, 10).T.copy())
    made = p.node("MatMul", last, p.node("Transpose", weight, perm=[1, 0]))
    joint = p.node("Add", made, p.constant(p.random(10)))
    return p.node("Transpose", joint, perm=[0, 3, 1, 2]), 10


def _heads(p: OnnxProgram, x: str, c: int, heads: int) -> str:
    flat = p.node("Reshape", x, p.ints(0, c, -1))
    tokens = p.node("Transpose", flat, perm=[0, 2, 1])
    seen = p.node("Reshape", tokens, p.ints(0, -1, heads, c // heads))
    return str(p.node("Transpose", seen, perm=[0, 2, 1, 3]))


@operation
def attention(p: OnnxProgram, x: str, c: int, y: str, d: int) -> Made:
    """Queries and keys of one value, values of it or of another, at times through layers."""
    heads = int(p.rng.choice([n for n in (1, 2, 3) if c % n == 0]))
    value = y if c == d and p.rng.integers(2) else x
    given = [x, x, value]
    for k in range(3):
        if p.rng.integers(2):
            given[k] = p.node("Conv", given[k], p.constant(p.random(c, c, 1, 1)))
        if p.rng.integers(2):
            given[k] = p.node("Gather", given[k], p.ints(*p.rng.permutation(c)), axis=1)
    q, k, v = (_heads(p, z, c, heads) for z in given)
    q = p.node("Mul", q, p.constant(np.array(0.1)))
    if p.rng.integers(2):
        q = p.node("Mul", q, p.constant(p.random(heads, 1, 1)))
    scores = p.node("MatMul", q, p.node("Transpose", k, perm=[0, 1, 3, 2]))
    if p.rng.integers(2):
        scores = p.node("Add", scores, p.constant(p.random(1, heads, 1, 1)))
    made = p.node("MatMul", p.node("Softmax", scores, axis=-1), v)
    tokens = p.node("Reshape", p.node("Transpose", made, perm=[0, 2, 1, 3]), p.ints(0, -1, c))
    back = p.node("Transpose", tokens, perm=[0, 2, 1])
    return p.node("Reshape", back, p.ints(0, c, HEIGHT, WIDTH)), c


@operation
def channel_attention(p: OnnxProgram, x: str, c: int, y: str, d: int) -> Made:
    """Products over space: channels of one value against those of another."""
    left, right = (p.node("Reshape", z, p.ints(0, n, -1)) for z, n in ((x, c), (y, d)))
    scores = p.node("MatMul", left, p.node("Transpose", right, perm=[0, 2, 1]))
    weights = p.node("Softmax", scores, axis=-1)
    return p.node("Reshape", p.node("MatMul", weights, right), p.ints(0, c, HEIGHT, WIDTH)), c
