"""One fault each in a quantised file: what a quantiser, a rewrite or a hand gets wrong.

Drawn at random: the file, the site, the channel, the fault. A fault that changes nothing beyond
what quantising does anyway is none, and another one is drawn: a scale of the neighbour that is the
same, a zero point that is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from tests.deploy.validate.quantised_files import Scheme, drawn_net, drawn_scheme, quantised

Array = np.ndarray[Any, np.dtype[Any]]

_TELLING = 1.1
"""By how much a scale must be another one: less is what calibrations differ by."""


@dataclass(frozen=True)
class Faulty:
    """A float network, its quantised file with one fault, and what should be said of it.

    `sites` are the convolutions one of which must be named, `kinds` what kind of fault is right.
    """

    float_model: onnx.ModelProto
    model: onnx.ModelProto
    fault: str
    sites: frozenset[str]
    kinds: frozenset[str]
    scheme: Scheme


@dataclass(frozen=True)
class _Operands:
    """Names of what a quantised convolution reads: weight and bias, with scales and zero points."""

    site: str
    weight: str
    weight_scale: str | None
    weight_zero: str | None
    bias: str | None
    groups: int
    transposed: bool


class File:
    """A quantised file whose initialisers can be written."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.graph = self.model.graph
        self.held = {tensor.name: tensor for tensor in self.graph.initializer}
        self.maker = {name: node for node in self.graph.node for name in node.output}

    def array(self, name: str) -> Array:
        return np.array(numpy_helper.to_array(self.held[name]))

    def write(self, name: str, array: Array) -> None:
        old = self.held[name]
        made = numpy_helper.from_array(np.ascontiguousarray(array), name)
        made.data_type = old.data_type
        old.CopyFrom(made)

    def own(self, node: onnx.NodeProto, place: int) -> str:
        """A copy of an operand that this node alone reads."""
        name = node.input[place]
        copy = numpy_helper.from_array(self.array(name), f"{name}.of.{node.name}.{place}")
        copy.data_type = self.held[name].data_type
        self.graph.initializer.append(copy)
        self.held[copy.name] = self.graph.initializer[-1]
        node.input[place] = copy.name
        return copy.name

    def convs(self) -> Iterator[_Operands]:
        for node in self.graph.node:
            groups = next((a.i for a in node.attribute if a.name == "group"), 1)
            more = {"groups": groups, "transposed": node.op_type == "ConvTranspose"}
            name = node.name.removesuffix("_quant")
            if node.op_type in ("Conv", "ConvTranspose"):
                made = self.maker.get(node.input[1])
                if made is None or made.op_type != "DequantizeLinear":
                    continue
                bias = self.maker.get(node.input[2])
                held = None if bias is None else bias.input[0]
                zero = made.input[2] if len(made.input) > 2 else None
                yield _Operands(name, *made.input[:2], zero, held, **more)
            elif node.op_type == "QLinearConv":
                yield _Operands(name, *node.input[3:6], node.input[8], **more)
            elif node.op_type == "ConvInteger":
                yield _Operands(name, node.input[1], None, node.input[3], None, **more)

    def pairs(self) -> Iterator[tuple[str, onnx.NodeProto, int, int]]:
        """Who reads whole numbers for a convolution: its site, node, places of scale and zero."""
        for node in self.graph.node:
            name = node.name.removesuffix("_quant")
            if node.op_type == "QLinearConv" and node.input[0] in self.maker:
                yield name, node, 1, 2
            elif node.op_type in ("Conv", "ConvTranspose"):
                read = self.maker.get(node.input[0])
                if read is not None and read.op_type == "DequantizeLinear":
                    yield name, read, 1, 2

    def results(self) -> Iterator[tuple[str, str, str]]:
        """What convolutions give: the site, the names of scale and zero point, on both ends."""
        for node in self.graph.node:
            if node.op_type == "QLinearConv":
                yield node.name.removesuffix("_quant"), node.input[6], node.input[7]
            elif node.op_type == "QuantizeLinear":
                made = self.maker.get(node.input[0])
                while made is not None and made.op_type in ("Relu", "Clip"):
                    made = self.maker.get(made.input[0])
                if made is not None and made.op_type in ("Conv", "ConvTranspose"):
                    yield made.name, node.input[1], node.input[2]


Change = Callable[[File, np.random.Generator], tuple[set[str], set[str]] | None]
"""Writes a fault into a file: the sites and the kinds that are right; None where there is none."""


def _differ(one: float, other: float) -> bool:
    low, high = sorted((abs(one), abs(other)))
    return low > 0 and high / low > _TELLING


def neighbours_scale(file: File, draw: np.random.Generator) -> tuple[set[str], set[str]] | None:
    """One channel of a weight has the scale of the next one."""
    found = [c for c in file.convs() if c.weight_scale and file.array(c.weight_scale).size > 1]
    if not found:
        return None
    conv = found[draw.integers(len(found))]
    assert conv.weight_scale is not None
    scales = file.array(conv.weight_scale)
    channel = int(draw.integers(len(scales)))
    other = (channel + 1) % len(scales)
    if not _differ(scales[channel], scales[other]):
        return None
    scales[channel] = scales[other]
    file.write(conv.weight_scale, scales)
    return {conv.site}, {"scale"}


def other_sites_scale(file: File, draw: np.random.Generator) -> tuple[set[str], set[str]] | None:
    """The scale of one site's weight is that of another's."""
    found = [c for c in file.convs() if c.weight_scale]
    order = draw.permutation(len(found))
    for one in order:
        for other in order:
            names = found[one].weight_scale, found[other].weight_scale
            assert names[0] is not None
            assert names[1] is not None
            scales = [file.array(name) for name in names]
            if one == other or scales[0].shape != scales[1].shape:
                continue
            if _differ(float(scales[0].mean()), float(scales[1].mean())):
                file.write(names[0], scales[1])
                return {found[one].site}, {"scale"}
    return None


def scales_not_cut(file: File, draw: np.random.Generator) -> tuple[set[str], set[str]] | None:
    """Each group has the scales of the first."""
    found = [
        c
        for c in file.convs()
        if c.groups > 1 and c.weight_scale and file.array(c.weight_scale).size > c.groups
    ]
    if not found:
        return None
    conv = found[draw.integers(len(found))]
    assert conv.weight_scale is not None
    scales = file.array(conv.weight_scale)
    if len(scales) % conv.groups:
        return None
    wrong = np.tile(scales[: len(scales) // conv.groups], conv.groups)
    if not any(_differ(a, b) for a, b in zip(scales, wrong, strict=True)):
        return None
    file.write(conv.weight_scale, wrong)
    return {conv.site}, {"scale"}


def weight_zero_lost(file: File, draw: np.random.Generator) -> tuple[set[str], set[str]] | None:
    """The zero points of a weight are 0."""
    found = [c for c in file.convs() if c.weight_zero and file.array(c.weight_zero).any()]
    if not found:
        return None
    conv = found[draw.integers(len(found))]
    assert conv.weight_zero is not None
    file.write(conv.weight_zero, np.zeros_like(file.array(conv.weight_zero)))
    return {conv.site}, {"zero point"}


def channels_swapped(file: File, draw: np.random.Generator) -> tuple[set[str], set[str]] | None:
    """Two channels of a weight have changed places, their scales have not."""
    found = [c for c in file.convs() if not c.transposed]
    if not found:
        return None
    conv = found[draw.integers(len(found))]
    weight = file.array(conv.weight)
    one, other = draw.choice(len(weight), 2, replace=False)
    weight[[one, other]] = weight[[other, one]]
    file.write(conv.weight, weight)
    return {conv.site}, {"weight"}


def other_sites_weight(file: File, draw: np.random.Generator) -> tuple[set[str], set[str]] | None:
    """The numbers of one site are those of another."""
    found = list(file.convs())
    order = draw.permutation(len(found))
    for one in order:
        for other in order:
            weights = [file.array(found[k].weight) for k in (one, other)]
            if one != other and weights[0].shape == weights[1].shape:
                file.write(found[one].weight, weights[1])
                return {found[one].site}, {"weight"}
    return None


def read_zero_lost(file: File, draw: np.random.Generator) -> tuple[set[str], set[str]] | None:
    """What reads a value for a convolution has lost its zero point."""
    found = [p for p in file.pairs() if file.array(p[1].input[p[3]]).any()]
    if not found:
        return None
    site, node, _, place = found[draw.integers(len(found))]
    name = file.own(node, place)
    file.write(name, np.zeros_like(file.array(name)))
    return {site}, {"zero point"}


def read_scale_of_another(
    file: File, draw: np.random.Generator
) -> tuple[set[str], set[str]] | None:
    """What reads a value for a convolution has the scale of another value."""
    found = list(file.pairs())
    if len(found) < 2:
        return None
    one, other = draw.choice(len(found), 2, replace=False)
    site, node, place, _ = found[one]
    scales = [file.array(n.input[p]) for _, n, p, _ in (found[one], found[other])]
    if not _differ(float(scales[0].ravel()[0]), float(scales[1].ravel()[0])):
        return None
    file.write(file.own(node, place), scales[1].reshape(scales[0].shape))
    return {site}, {"scale"}


def biases_swapped(file: File, draw: np.random.Generator) -> tuple[set[str], set[str]] | None:
    """Two channels of a bias have changed places."""
    found = [c for c in file.convs() if c.bias]
    if not found:
        return None
    conv = found[draw.integers(len(found))]
    assert conv.bias is not None
    bias = file.array(conv.bias)
    one, other = draw.choice(len(bias), 2, replace=False)
    if abs(float(bias[one]) - float(bias[other])) < 0.3 * float(np.abs(bias).max()):
        return None
    bias[[one, other]] = bias[[other, one]]
    file.write(conv.bias, bias)
    return {conv.site}, {"bias"}


def scale_not_finite(file: File, draw: np.random.Generator) -> tuple[set[str], set[str]] | None:
    """One scale of a weight is no number."""
    found = [c for c in file.convs() if c.weight_scale]
    if not found:
        return None
    conv = found[draw.integers(len(found))]
    assert conv.weight_scale is not None
    scales = file.array(conv.weight_scale)
    scales.reshape(-1)[draw.integers(scales.size)] = draw.choice([np.nan, np.inf])
    file.write(conv.weight_scale, scales)
    return {conv.site}, {"not finite"}


def range_of_another(file: File, draw: np.random.Generator) -> tuple[set[str], set[str]] | None:
    """Both ends of what a site gives have the scale of something else, 4 to 30 times off."""
    found = list(file.results())
    if not found:
        return None
    site, scale, _ = found[draw.integers(len(found))]
    factor = float(np.exp(draw.uniform(np.log(4), np.log(30)))) ** float(draw.choice([-1, 1]))
    file.write(scale, (file.array(scale) * factor).astype(np.float32))
    # Where a convolution reads it next, it stands there too, in a pair or in an operator.
    return {site}, {"range", "zero point"}


CHANGES: tuple[Change, ...] = (
    neighbours_scale,
    other_sites_scale,
    scales_not_cut,
    weight_zero_lost,
    channels_swapped,
    other_sites_weight,
    read_zero_lost,
    read_scale_of_another,
    biases_swapped,
    scale_not_finite,
    range_of_another,
)


def honest_file(seed: int) -> tuple[onnx.ModelProto, onnx.ModelProto, Scheme]:
    """A float network, the quantised file of it, and how it was quantised."""
    draw = np.random.default_rng(seed)
    scheme = drawn_scheme(draw)
    model = drawn_net(draw, scheme.opset, norms=bool(draw.random() < 0.3))
    return model, quantised(model, scheme, seed), scheme


def faulty_files(seed: int, count: int, *, each: int = 4) -> Iterator[Faulty]:
    """`count` files with one fault each, `each` of one honest file; every fault as often."""
    draw = np.random.default_rng(seed)
    made, number = 0, 0
    while made < count:
        model, honest, scheme = honest_file(int(draw.integers(2**31)))
        tried = 0
        for _ in range(3 * each):
            change = CHANGES[number % len(CHANGES)]
            number += 1
            file = File(honest)
            right = change(file, draw)
            if right is None:
                continue
            yield Faulty(
                model, file.model, change.__name__, frozenset(right[0]), frozenset(right[1]), scheme
            )
            made, tried = made + 1, tried + 1
            if made == count or tried == each:
                break
