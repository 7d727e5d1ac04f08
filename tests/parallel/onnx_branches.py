"""ONNX graphs of branches side by side, as other tools and people write them, right and wrong."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, np.dtype[Any]]
Cut = Literal["split", "slice", "gather", "nested"]
Behind = Literal["norm", "bias", "relu", "clip", "pool"]


@dataclass(frozen=True)
class Branched:
    """Branches of one convolution each, on `starts` of `size` channels of an input.

    `groups`, `outs` and the kernel are those of each branch; where `unequal` has an entry for it,
    inputs, outputs and groups are those, and `starts` are in order. `change` is what is wrong with
    it, at branch `at`.
    """

    channels: int = 12
    size: int = 4
    starts: tuple[int, ...] = (0, 4, 8)
    groups: int = 2
    outs: int = 6
    dims: int = 2
    transposed: bool = False
    bias: bool = True
    cut: Cut = "slice"
    pad: bool = False
    behind: tuple[Behind, ...] = ()
    change: str | None = None
    at: int = 1
    seed: int = 0
    unequal: tuple[tuple[int, int, int], ...] = ()

    def sides(self, k: int) -> tuple[int, int, int]:
        """Inputs, outputs and groups of branch `k`."""
        return self.unequal[k] if self.unequal else (self.size, self.outs, self.groups)

    def changed(self, **fields: Any) -> Branched:
        """The same with other fields."""
        return replace(self, **fields)


@dataclass
class _Builder:
    """Nodes and initialisers under way."""

    case: Branched
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.draw = np.random.default_rng(self.case.seed)

    def whole(self, *shape: int) -> Array:
        """Small whole numbers, so that every sum is exact; never 0."""
        found = self.draw.integers(1, 4, shape) * self.draw.choice([-1, 1], shape)
        return np.asarray(found, dtype=np.float32)

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def held(self, name: str, array: Array) -> str:
        self.tensors[name] = array
        return name

    def numbers(self, name: str, *values: int) -> str:
        return self.held(name, np.array(values, dtype=np.int64))


def build(case: Branched) -> onnx.ModelProto:
    """The model, from `x` to `y`; some changes give it a second output `z`."""
    work = _Builder(case)
    parts = _parts(work)
    values = [_branch(work, k, part) for k, part in enumerate(parts)]
    if case.change == "swapped outputs":
        values[0], values[case.at] = values[case.at], values[0]
    if case.change == "joined twice":
        values[case.at] = values[0]
    axis = 2 if case.change == "another axis" else 1
    if case.change == "something else joined":
        values[case.at] = work.node("Relu", [parts[case.at]], "other")
    work.node("Concat", values, "y", axis=axis)
    outputs = ["y"]
    if case.change == "inside used":
        outputs.append(work.node("Neg", [values[case.at]], "z"))
    if case.change == "part used":
        outputs.append(work.node("Neg", [parts[case.at]], "z"))
    if case.change == "inside given":
        outputs.append(values[case.at])
    shape = ["N", case.channels, *(9, 7, 5)[: case.dims]]
    graph = helper.make_graph(
        work.nodes,
        "branches",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info(
                name, TensorProto.FLOAT, [f"{name}{k}" for k in range(len(shape))]
            )
            for name in outputs
        ],
        [numpy_helper.from_array(array, name) for name, array in work.tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def _parts(work: _Builder) -> list[str]:
    case = work.case
    source = "x"
    starts = list(case.starts)
    if case.change == "shifted":
        beyond = starts[case.at] + case.sides(case.at)[0]
        starts[case.at] += 1 if beyond < case.channels else -1
    if case.change == "read twice":
        starts[case.at] = starts[0]
    if case.cut == "split":
        pieces = [case.size] * (case.channels // case.size)
        if case.unequal:
            return _cut_unequal(work)
        sizes = work.numbers("sizes", *pieces)
        names = [f"part{k}" for k in range(len(pieces))]
        work.nodes.append(helper.make_node("Split", ["x", sizes], names, name="cut", axis=1))
        order = [names[start // case.size] for start in starts]
        if case.change == "swapped parts":
            order[0], order[case.at] = order[case.at], order[0]
        return order
    parts = []
    for k, start in enumerate(starts):
        other = case.change == "another value" and k == case.at
        data = work.node("Softmax", ["x"], "other", axis=1) if other else source
        parts.append(_part(work, k, data, start))
    return parts


def _cut_unequal(work: _Builder) -> list[str]:
    case = work.case
    pieces = [case.sides(k)[0] for k in range(len(case.starts))]
    rest = case.channels - sum(pieces)
    names = [f"part{k}" for k in range(len(pieces) + bool(rest))]
    sizes = work.numbers("sizes", *pieces, *([rest] if rest else []))
    work.nodes.append(helper.make_node("Split", ["x", sizes], names, name="cut", axis=1))
    return names[: len(pieces)]


def _part(work: _Builder, k: int, data: str, start: int) -> str:
    case, name = work.case, f"part{k}"
    stop = start + case.sides(k)[0]
    if case.cut == "gather":
        indices = work.numbers(f"{name}.indices", *range(start, stop))
        return work.node("Gather", [data, indices], name, axis=1)
    if case.cut == "nested" and start + 1 < case.channels:
        wide = [work.numbers(f"{name}.wide{n}", v) for n, v in enumerate((start, 2**31, 1))]
        data = work.node("Slice", [data, *wide], f"{name}.tail")
        start, stop = 0, case.sides(k)[0]
    bounds = [work.numbers(f"{name}.{n}", v) for n, v in enumerate((start, stop, 1))]
    return work.node("Slice", [data, *bounds], name)


def _branch(work: _Builder, k: int, part: str) -> str:
    case = work.case
    here = k == case.at
    home = f"convs.{k}"
    value = part
    if case.pad:
        edges = work.numbers(f"{home}.edges", *[0, 0, *[1] * case.dims] * 2)
        mode = "edge" if here and case.change == "other pads" else "constant"
        value = work.node("Pad", [value, edges], f"{home}.padded", mode=mode)
    # With a kernel, or a dilation, that reaches further, the sizes stay by wider pads.
    size, outs, groups = case.sides(k)
    groups = 1 if here and case.change == "other groups" else groups
    wider = here and case.change in ("other kernel", "other dilation")
    kernel = [5 if wider and case.change == "other kernel" else 3] * case.dims
    rows, columns = (size, outs) if case.transposed else (outs, size)
    inputs = [value, work.held(f"{home}.weight", work.whole(rows, columns // groups, *kernel))]
    if here and case.change == "tied":
        inputs[1] = "convs.0.weight"
    if here and case.change == "computed":
        inputs[1] = work.node("Add", [inputs[1], _largest_of_x(work)], f"{home}.computed")
    if case.bias and not (here and case.change == "no bias"):
        inputs.append(work.held(f"{home}.bias", work.whole(outs)))
    inside = 1 if not case.pad else 2 * case.transposed
    pads, dilations = inside + wider, 1 + (wider and case.change == "other dilation")
    options = {"group": groups, "pads": [pads] * (2 * case.dims)}
    options["dilations"] = [dilations] * case.dims
    kind = "ConvTranspose" if case.transposed else "Conv"
    value = work.node(kind, inputs, home, **options)
    for stage in case.behind:
        value = _stage(work, k, stage, value)
    if here and case.change == "one more":
        value = work.node("Relu", [value], f"{home}.more")
    return value


def _largest_of_x(work: _Builder) -> str:
    return work.node("ReduceMax", ["x"], "largest", keepdims=0)


def _stage(work: _Builder, k: int, stage: Behind, value: str) -> str:
    case, home = work.case, f"{stage}s.{k}"
    here, outs = k == case.at, case.sides(k)[1]
    if stage == "norm":
        variance = np.full(outs, 1, dtype=np.float32)
        given = [
            work.held(f"{home}.{role}", array)
            for role, array in (
                ("weight", work.whole(outs)),
                ("bias", work.whole(outs)),
                ("running_mean", work.whole(outs)),
                ("running_var", variance),
            )
        ]
        epsilon = 1.0 if here and case.change == "other epsilon" else 3.0
        return work.node("BatchNormalization", [value, *given], home, epsilon=epsilon)
    if stage == "bias":
        added = work.held(f"{home}.added", work.whole(1, outs, *[1] * case.dims))
        return work.node("Add", [added, value] if case.seed % 2 else [value, added], home)
    if stage == "clip":
        highest = 5 if here and case.change == "other clip" else 7
        bounds = [
            work.held(f"{home}.{n}", np.array(v, np.float32)) for n, v in enumerate((-3, highest))
        ]
        return work.node("Clip", [value, *bounds], home)
    if stage == "pool":
        return work.node("MaxPool", [value], home, kernel_shape=[2] * case.dims)
    other = here and case.change == "other activation"
    return work.node("LeakyRelu" if other else "Relu", [value], home)
