"""Mistakes made in one operator of an ONNX file, no convolution, with the file still valid.

A corruption takes a node of the graph and a random generator, changes the message in place and
says what it did, or None where it has nothing that it could change. `OPERATOR_CORRUPTIONS` is the
table; nothing of groupfx is used here.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Array = np.ndarray[Any, np.dtype[Any]]
Random = np.random.Generator
Shapes = Mapping[str, tuple[int, ...]]


class Place:
    """A node of a graph, and what surrounds it."""

    def __init__(self, proto: onnx.ModelProto, name: str, shapes: Shapes) -> None:
        """`shapes` are those of all values in one run."""
        self.graph = proto.graph
        self.shapes = shapes
        self.position, self.node = next(
            (k, node) for k, node in enumerate(proto.graph.node) if node.name == name
        )
        self.held = {tensor.name: tensor for tensor in proto.graph.initializer}

    @property
    def kind(self) -> str:
        return self.node.op_type

    def option(self, name: str, default: Any) -> Any:
        found = [entry for entry in self.node.attribute if entry.name == name]
        return helper.get_attribute_value(found[0]) if found else default

    def set(self, **values: Any) -> None:
        kept = [entry for entry in self.node.attribute if entry.name not in values]
        made = [helper.make_attribute(name, v) for name, v in values.items() if v is not None]
        del self.node.attribute[:]
        self.node.attribute.extend([*kept, *made])

    def become(self, kind: str, inputs: int | None = None, **options: Any) -> None:
        """Another operator in the same place."""
        self.node.op_type = kind
        self.node.domain = ""
        del self.node.attribute[:]
        self.set(**options)
        if inputs is not None:
            del self.node.input[inputs:]

    def array(self, index: int) -> Array | None:
        """A constant input."""
        name = self.node.input[index] if index < len(self.node.input) else ""
        return numpy_helper.to_array(self.held[name]).copy() if name in self.held else None

    def put(self, index: int, array: Array) -> None:
        """Another constant for this node alone."""
        name = f"{self.node.name}.corrupted{index}"
        self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        while len(self.node.input) <= index:
            self.node.input.append("")
        self.node.input[index] = name

    def behind(self, make: Callable[[str, str], Sequence[onnx.NodeProto]]) -> None:
        """Put nodes behind the first output: `make` gets the old and the new name of the value."""
        name = self.node.output[0]
        self.node.output[0] = f"{name}.before"
        for offset, node in enumerate(make(f"{name}.before", name), 1):
            self.graph.node.insert(self.position + offset, node)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.shapes.get(name, ())


Corruption = Callable[[Place, Random], str | None]


def _as(
    kind: str, others: Sequence[tuple[str, dict[str, Any]]], inputs: int | None = 1
) -> Corruption:
    def corrupt(place: Place, random: Random) -> str | None:
        if place.kind != kind:
            return None
        other, options = others[int(random.integers(len(others)))]
        place.become(other, inputs, **options)
        return f"{kind} is {other} {options}"

    return corrupt


def _bound(place: Place, random: Random) -> str | None:
    if place.kind != "Clip":
        return None
    index = 1 if place.array(1) is not None and random.integers(2) else 2
    held = place.array(index)
    if held is None:
        return None
    place.put(index, np.asarray(held + np.asarray(0.25, held.dtype), held.dtype))
    return "a bound of Clip is larger by 0.25"


def _subtracted(place: Place, random: Random) -> str | None:
    if place.kind not in ("Add", "Sub"):
        return None
    place.node.op_type = {"Add": "Sub", "Sub": "Add"}[place.kind]
    return "add against sub"


def _multiplied(place: Place, random: Random) -> str | None:
    if place.kind not in ("Mul", "Div"):
        return None
    place.node.op_type = {"Mul": "Add", "Div": "Mul"}[place.kind]
    return "another product"


def _exchanged_operands(place: Place, random: Random) -> str | None:
    inputs = place.node.input
    if place.kind not in ("Sub", "Div", "MatMul", "Pow") or len(set(inputs)) < 2:
        return None
    inputs[0], inputs[1] = inputs[1], inputs[0]
    return "its operands are exchanged"


def _other_skip(place: Place, random: Random) -> str | None:
    """A join reads another value of the same shape, made before."""
    if place.kind not in ("Add", "Concat", "Mul"):
        return None
    index = int(random.integers(len(place.node.input)))
    now = place.node.input[index]
    made = [name for node in list(place.graph.node)[: place.position] for name in node.output]
    like = [
        name
        for name in made
        if name not in place.node.input and place.shape(name) == place.shape(now)
    ]
    if not like or not place.shape(now) or now in place.held:
        return None
    place.node.input[index] = like[int(random.integers(len(like)))]
    return f"reads {place.node.input[index]} in place of {now}"


def _concat_order(place: Place, random: Random) -> str | None:
    inputs = place.node.input
    if place.kind != "Concat" or len(set(inputs)) < 2:
        return None
    if place.shape(place.node.output[0]) and len(place.shape(place.node.output[0])) < 2:
        return None
    first, second = (int(k) for k in random.choice(len(inputs), 2, replace=False))
    inputs[first], inputs[second] = inputs[second], inputs[first]
    return f"its inputs {first} and {second} are exchanged"


def _shifted_slice(place: Place, random: Random) -> str | None:
    starts, ends, axes = (place.array(k) for k in (1, 2, 3))
    if place.kind != "Slice" or starts is None or ends is None or axes is None:
        return None
    shape = place.shape(place.node.input[0])
    if len(shape) < 2:
        return None
    size = shape[int(axes[0])]
    step = 1 if starts[0] >= 0 and 0 < ends[0] < size else -1 if starts[0] > 0 else 0
    if not step:
        return None
    if step < 0:
        ends[0] = min(int(ends[0]), size)
    place.put(1, starts + np.eye(len(starts), dtype=starts.dtype)[0] * step)
    place.put(2, ends + np.eye(len(ends), dtype=ends.dtype)[0] * step)
    return f"starts {step} later"


def _exchanged_parts(place: Place, random: Random) -> str | None:
    outputs = place.node.output
    like = [k for k, name in enumerate(outputs) if place.shape(name) == place.shape(outputs[0])]
    if place.kind != "Split" or len(like) < 2:
        return None
    first, second = (int(k) for k in random.choice(like, 2, replace=False))
    outputs[first], outputs[second] = outputs[second], outputs[first]
    return f"its parts {first} and {second} are exchanged"


def _gathered(place: Place, random: Random) -> str | None:
    shape = place.shape(place.node.input[0])
    indices = place.array(1)
    if place.kind != "Gather" or indices is None or len(shape) < 2:
        return None
    size = shape[place.option("axis", 0)]
    flat = indices.reshape(-1)
    spot = int(random.integers(flat.size))
    flat[spot] = (flat[spot] + 1) % size
    place.put(1, flat.reshape(indices.shape))
    return f"takes its neighbour at {spot}"


def _gathered_ids(place: Place, random: Random) -> str | None:
    table = place.array(0)
    if place.kind != "Gather" or table is None or table.dtype.kind != "f":
        return None
    place.put(0, table[[1, 0, *range(2, len(table))]])
    return "rows 0 and 1 of its table are exchanged"


def _transposed(place: Place, random: Random) -> str | None:
    shape = place.shape(place.node.output[0])
    perm = list(place.option("perm", range(len(shape))[::-1]))
    like = [(a, b) for a in range(len(shape)) for b in range(a) if shape[a] == shape[b] > 1]
    if place.kind != "Transpose" or not like:
        return None
    a, b = like[int(random.integers(len(like)))]
    perm[a], perm[b] = perm[b], perm[a]
    place.set(perm=perm)
    return f"its axes are {perm}"


def _padded(place: Place, random: Random) -> str | None:
    if place.kind != "Pad":
        return None
    mode = place.option("mode", b"constant").decode()
    place.set(mode="edge" if mode != "edge" else "reflect")
    return f"its mode is not {mode}"


def _pad_value(place: Place, random: Random) -> str | None:
    if place.kind != "Pad" or place.option("mode", b"constant") != b"constant":
        return None
    place.put(2, np.float32(0.5))
    return "pads with 0.5"


def _shifted_pad(place: Place, random: Random) -> str | None:
    pads = place.array(1)
    if place.kind != "Pad" or pads is None:
        return None
    half = len(pads) // 2
    axes = [axis for axis in range(half) if pads[half + axis] > 0]
    if not axes:
        return None
    axis = axes[int(random.integers(len(axes)))]
    pads[axis] += 1
    pads[half + axis] -= 1
    place.put(1, pads)
    return f"its pads of axis {axis} are shifted"


def _pooled(place: Place, random: Random) -> str | None:
    if place.kind not in ("MaxPool", "AveragePool") or len(place.node.output) > 1:
        return None
    place.node.op_type = {"MaxPool": "AveragePool", "AveragePool": "MaxPool"}[place.kind]
    place.set(storage_order=None, dilations=None, count_include_pad=None)
    return "another pool"


def _counted_pad(place: Place, random: Random) -> str | None:
    if place.kind != "AveragePool":
        return None
    place.set(count_include_pad=1 - place.option("count_include_pad", 0))
    return "counts the padding otherwise"


def _shifted_pool(place: Place, random: Random) -> str | None:
    pads = list(place.option("pads", []))
    half = len(pads) // 2
    kernel = list(place.option("kernel_shape", []))
    if place.kind not in ("MaxPool", "AveragePool") or not half or not pads[half]:
        return None
    if pads[0] + 1 >= kernel[0]:
        return None
    pads[0] += 1
    pads[half] -= 1
    place.set(pads=pads)
    return f"its pads are {pads}"


def _resized(place: Place, random: Random) -> str | None:
    if place.kind != "Resize":
        return None
    mode = place.option("mode", b"nearest")
    if mode == b"nearest":
        if random.integers(2):
            place.set(mode="linear")
            return "linear, not nearest"
        place.set(nearest_mode="ceil", coordinate_transformation_mode="half_pixel")
        return "nearest otherwise"
    now = place.option("coordinate_transformation_mode", b"half_pixel")
    other = "asymmetric" if now != b"asymmetric" else "half_pixel"
    place.set(coordinate_transformation_mode=other)
    return f"its coordinates are {other}"


def _reduced(place: Place, random: Random) -> str | None:
    kinds = {"ReduceMean": "ReduceMax", "ReduceSum": "ReduceMean", "ReduceMax": "ReduceMean"}
    kinds |= {"GlobalAveragePool": "GlobalMaxPool", "GlobalMaxPool": "GlobalAveragePool"}
    if place.kind not in kinds:
        return None
    place.node.op_type = kinds[place.kind]
    return f"is {place.kind}"


def _axis(place: Place, random: Random) -> str | None:
    shape = place.shape(place.node.output[0])
    if place.kind not in ("Softmax", "LogSoftmax") or len(shape) < 2:
        return None
    size = len(shape)
    now = place.option("axis", -1) % size
    other = int(random.choice([axis for axis in range(size) if axis != now]))
    place.set(axis=other)
    return f"its axis is {other} and not {now}"


def _smallest(place: Place, random: Random) -> str | None:
    if place.kind == "ArgMax":
        place.node.op_type = "ArgMin"
        return "takes the smallest"
    if place.kind == "TopK":
        place.set(largest=1 - place.option("largest", 1))
        return "takes the other end"
    return None


def _epsilon(place: Place, random: Random) -> str | None:
    kinds = ("LayerNormalization", "GroupNormalization", "InstanceNormalization")
    if place.kind not in (*kinds, "BatchNormalization", "RMSNormalization"):
        return None
    place.set(epsilon=float(place.option("epsilon", 1e-5) * 100))
    return "its epsilon is a hundred times as large"


def _constant(place: Place, random: Random) -> str | None:
    """One number of a constant is other by a thousandth of the largest."""
    kinds = ("Gemm", "MatMul", "Add", "Mul", "Sub", "Div", "Pow", "LayerNormalization")
    kinds += ("GroupNormalization", "BatchNormalization", "PRelu", "InstanceNormalization")
    if place.kind not in kinds:
        return None
    held = {k: place.array(k) for k in range(len(place.node.input))}
    floats = [k for k, array in held.items() if array is not None and array.dtype.kind == "f"]
    if not floats:
        return None
    index = int(random.choice(floats))
    array = held[index]
    assert array is not None
    flat = array.reshape(-1)
    spot = int(random.integers(flat.size))
    flat[spot] += np.float32(1e-3 * (np.abs(flat).max() or 1.0))
    place.put(index, flat.reshape(array.shape))
    return f"number {spot} of its input {index} is larger"


def _dropped_bias(place: Place, random: Random) -> str | None:
    if place.kind not in ("Gemm", "LayerNormalization") or len(place.node.input) < 3:
        return None
    bias = place.array(2)
    if bias is None or not bias.any():
        return None
    del place.node.input[2:]
    return "its bias is dropped"


def _bypassed(place: Place, random: Random) -> str | None:
    """The operator is not there at all: what reads it reads what it read."""
    before, after = place.node.input[0], place.node.output[0]
    if place.shape(before) != place.shape(after) or before in place.held:
        return None
    if place.kind in ("Conv", "Reshape", "Identity", "Cast") or len(place.shape(after)) < 2:
        return None
    if any(value.name == after for value in place.graph.output):
        return None
    for node in place.graph.node:
        for k, name in enumerate(node.input):
            node.input[k] = before if name == after else name
    place.graph.node.remove(place.node)
    return f"{place.kind} is left out"


def _float(place: Place) -> bool:
    shape = place.shape(place.node.output[0])
    whole = ("ArgMax", "Shape", "TopK", "Cast", "Equal", "Less", "Greater", "NonZero")
    return len(shape) >= 2 and place.kind not in (*whole, "Conv", "ConvTranspose", "Not", "And")


def _readers(place: Place) -> set[str]:
    """The operators that read what the node gives; none where it is an output of the graph."""
    output = place.node.output[0]
    return {node.op_type for node in place.graph.node if output in node.input}


def _clipped(place: Place, random: Random) -> str | None:
    """Another operator behind it, that shows on large values alone."""
    if not _float(place) or place.kind in ("Softmax", "Sigmoid", "Tanh", "HardSigmoid", "Clip"):
        return None
    if "Normalization" in place.kind or _readers(place) == {"Min"}:
        return None  # what is bounded below that is not changed
    low, high = (f"{place.node.name}.{end}" for end in ("low", "high"))
    for name, value in ((low, -30.0), (high, 30.0)):
        place.graph.initializer.append(numpy_helper.from_array(np.float32(value), name))
    name = f"{place.node.name}.clip"
    place.behind(lambda old, new: [helper.make_node("Clip", [old, low, high], [new], name=name)])
    return "clipped to 30 behind it"


def _halved(place: Place, random: Random) -> str | None:
    """Rounded to half precision behind it."""
    if not _float(place):
        return None
    name = place.node.name
    place.behind(
        lambda old, new: [
            helper.make_node("Cast", [old], [f"{new}.half"], name=f"{name}.half", to=10),
            helper.make_node("Cast", [f"{new}.half"], [new], name=f"{name}.float", to=1),
        ]
    )
    return "rounded to float16 behind it"


def _wrong_at_batch(place: Place, random: Random) -> str | None:
    """1 % more, in one batch alone."""
    if not _float(place) or _readers(place) == {"InstanceNormalization"}:
        return None  # a normalisation takes the factor out again
    batch = int(random.choice([3, 5]))
    name = place.node.name
    parts = {"zero": np.int64(0), "batch": np.int64(batch), "more": np.float32(1.01)}
    for part, value in (*parts.items(), ("one", np.float32(1))):
        place.graph.initializer.append(numpy_helper.from_array(value, f"{name}.{part}"))
    source = place.graph.input[0].name
    place.behind(
        lambda old, new: [
            helper.make_node("Shape", [source], [f"{new}.shape"], name=f"{name}.shape"),
            helper.make_node(
                "Gather", [f"{new}.shape", f"{name}.zero"], [f"{new}.rows"], name=f"{name}.rows"
            ),
            helper.make_node(
                "Equal", [f"{new}.rows", f"{name}.batch"], [f"{new}.same"], name=f"{name}.same"
            ),
            helper.make_node(
                "Where",
                [f"{new}.same", f"{name}.more", f"{name}.one"],
                [f"{new}.factor"],
                name=f"{name}.factor",
            ),
            helper.make_node("Mul", [old, f"{new}.factor"], [new], name=f"{name}.scaled"),
        ]
    )
    return f"1 % more in a batch of {batch}"


_ACTIVATIONS: dict[str, Sequence[tuple[str, dict[str, Any]]]] = {
    "Relu": (("Identity", {}), ("Elu", {}), ("Abs", {}), ("Softplus", {}), ("HardSwish", {})),
    "Sigmoid": (("HardSigmoid", {}), ("Tanh", {}), ("Softsign", {})),
    "Tanh": (("Softsign", {}), ("Sigmoid", {})),
    "Gelu": (("Gelu", {"approximate": "tanh"}), ("Relu", {}), ("Mish", {})),
    "HardSwish": (("Relu", {}), ("Mish", {})),
    "HardSigmoid": (("Sigmoid", {}), ("HardSigmoid", {"alpha": 0.2})),
    "Erf": (("Tanh", {}),),
    "Sqrt": (("Identity", {}),),
    "Exp": (("Softplus", {}),),
    "Softplus": (("Relu", {}),),
    "LeakyRelu": (("LeakyRelu", {"alpha": 0.011}), ("Relu", {})),
    "Elu": (("Elu", {"alpha": 1.01}), ("Selu", {})),
    "Softmax": (("Sigmoid", {}), ("LogSoftmax", {"axis": -1})),
    "Clip": (("Relu", {}), ("Identity", {})),
}

OPERATOR_CORRUPTIONS: dict[str, Corruption] = {
    **{f"other-{kind.lower()}": _as(kind, others) for kind, others in _ACTIVATIONS.items()},
    "leaky-relu": _as("Relu", [("LeakyRelu", {"alpha": 1e-5})]),
    "leaky-relu-large": _as("Relu", [("LeakyRelu", {"alpha": 0.01})]),
    "clip-bound": _bound,
    "add-as-sub": _subtracted,
    "other-product": _multiplied,
    "exchanged-operands": _exchanged_operands,
    "other-skip": _other_skip,
    "concat-order": _concat_order,
    "shifted-slice": _shifted_slice,
    "exchanged-parts": _exchanged_parts,
    "gathered": _gathered,
    "gathered-ids": _gathered_ids,
    "transposed": _transposed,
    "pad-mode": _padded,
    "pad-value": _pad_value,
    "shifted-pad-node": _shifted_pad,
    "other-pool": _pooled,
    "counted-pad": _counted_pad,
    "shifted-pool": _shifted_pool,
    "resized": _resized,
    "reduced": _reduced,
    "softmax-axis": _axis,
    "smallest": _smallest,
    "epsilon": _epsilon,
    "constant": _constant,
    "dropped-bias-of-linear": _dropped_bias,
    "bypassed": _bypassed,
    "clipped": _clipped,
    "halved": _halved,
    "wrong-at-batch": _wrong_at_batch,
}
