"""Mistakes made in one site of an ONNX file of ours, each of them with the file still valid.

A corruption takes the site and a random generator, changes the message in place and says what it
did, or None where the site has nothing that it could change: the message is then as it was.
`CORRUPTIONS` is the table. Sites are found by their marks alone.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

Array = np.ndarray[Any, np.dtype[Any]]
Random = np.random.Generator

_MARK = "groupfx.site"
_CONVS = ("Conv", "ConvTranspose")


class MarkedSite:
    """The nodes of one site, the values that go in and come out, and its tensors."""

    def __init__(self, proto: onnx.ModelProto, name: str) -> None:
        self.graph = proto.graph
        self.name = name
        self.nodes = [node for node in self.graph.node if site_of(node) == name]
        self._held = {tensor.name: tensor for tensor in self.graph.initializer}

    @property
    def convs(self) -> list[onnx.NodeProto]:
        return self.of_type(*_CONVS)

    @property
    def start(self) -> str:
        made = {name for node in self.nodes for name in node.output}
        taken = {name for node in self.nodes for name in node.input}
        (start,) = taken - made - set(self._held)
        return start

    @property
    def end(self) -> str:
        others = [node for node in self.graph.node if site_of(node) != self.name]
        used = {name for node in others for name in node.input}
        used |= {value.name for value in self.graph.output}
        (end,) = {name for node in self.nodes for name in node.output} & used
        return end

    def of_type(self, *types: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if node.op_type in types]

    def array(self, name: str) -> Array:
        return numpy_helper.to_array(self._held[name]).copy()

    def put(self, name: str, array: Array) -> None:
        self._held[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), name))

    def put_convs_last(self) -> None:
        """Move the convolutions to where the last of them stands, behind what they may read."""
        convs = [copy.deepcopy(conv) for conv in self.convs]
        names = {conv.name for conv in convs}
        places = [place for place, node in enumerate(self.graph.node) if node.name in names]
        for place in reversed(places):
            del self.graph.node[place]
        for place, conv in enumerate(convs, places[-1] + 1 - len(convs)):
            self.graph.node.insert(place, conv)

    def kernels(self, conv: onnx.NodeProto) -> Array:
        """The weight as `[groups, out / groups, in / groups, *kernel]`."""
        weight, groups = self.array(conv.input[1]), attribute(conv, "group", 1)
        grouped = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
        return grouped.swapaxes(1, 2) if conv.op_type == "ConvTranspose" else grouped

    def put_kernels(self, conv: onnx.NodeProto, kernels: Array) -> None:
        grouped = kernels.swapaxes(1, 2) if conv.op_type == "ConvTranspose" else kernels
        self.put(conv.input[1], grouped.reshape(-1, *grouped.shape[2:]))


Corruption = Callable[[MarkedSite, Random], str | None]


def site_of(node: onnx.NodeProto) -> str | None:
    """The site that a node is marked with."""
    return next((entry.value for entry in node.metadata_props if entry.key == _MARK), None)


def site_names(proto: onnx.ModelProto) -> list[str]:
    """The sites of a file, in its order."""
    marked = [site_of(node) for node in proto.graph.node]
    return list(dict.fromkeys(name for name in marked if name is not None))


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """The value of an attribute."""
    found = [entry for entry in node.attribute if entry.name == name]
    return onnx.helper.get_attribute_value(found[0]) if found else default


def _set_ints(node: onnx.NodeProto, name: str, values: Sequence[int]) -> None:
    kept = [entry for entry in node.attribute if entry.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute(name, list(map(int, values)))])


def _pick(random: Random, options: Sequence[Any]) -> Any:
    return options[int(random.integers(len(options)))]


def _pair(random: Random, number: int) -> tuple[int, int]:
    first, second = random.choice(number, 2, replace=False)
    return int(first), int(second)


def _size(random: Random) -> float:
    """From a change that rounding would hide to one as large as the weight."""
    return float(10 ** random.uniform(-7, 0)) * _pick(random, (-1, 1))


# Weights


def _weight_element(site: MarkedSite, random: Random) -> str | None:
    conv = _pick(random, site.convs)
    weight = site.array(conv.input[1])
    place = tuple(int(random.integers(size)) for size in weight.shape)
    step = _size(random) * float(np.abs(weight).max() or 1)
    weight[place] += step
    site.put(conv.input[1], weight)
    return f"{conv.input[1]}{list(place)} is {step:.3g} larger"


def _weight_sign(site: MarkedSite, random: Random) -> str | None:
    conv = _pick(random, site.convs)
    weight = site.array(conv.input[1])
    place = tuple(int(random.integers(size)) for size in weight.shape)
    weight[place] *= -1
    site.put(conv.input[1], weight)
    return f"the sign of {conv.input[1]}{list(place)} is flipped"


def _bfloat16(site: MarkedSite, random: Random) -> str | None:
    for conv in site.convs:
        rounded = torch.from_numpy(site.array(conv.input[1])).bfloat16().float()
        site.put(conv.input[1], rounded.numpy())
    return "its weights are rounded to bfloat16"


def _flipped_kernel(site: MarkedSite, random: Random) -> str | None:
    chosen = _some_conv(site, random, lambda kernels: max(kernels.shape[3:]) > 1)
    if chosen is None:
        return None
    conv, kernels = chosen
    axis = _pick(random, [axis for axis in range(3, kernels.ndim) if kernels.shape[axis] > 1])
    site.put_kernels(conv, np.flip(kernels, axis))
    return f"the kernel of {conv.name} is flipped along axis {axis - 3}"


def _transposed_kernel(site: MarkedSite, random: Random) -> str | None:
    chosen = _some_conv(
        site, random, lambda k: k.ndim == 5 and k.shape[3] == k.shape[4] and k.shape[3] > 1
    )
    if chosen is None:
        return None
    conv, kernels = chosen
    site.put_kernels(conv, kernels.swapaxes(3, 4))
    return f"the kernel of {conv.name} is transposed"


def _some_conv(
    site: MarkedSite, random: Random, wanted: Callable[[Array], bool]
) -> tuple[onnx.NodeProto, Array] | None:
    held = [(conv, site.kernels(conv)) for conv in site.convs]
    usable = [(conv, kernels) for conv, kernels in held if wanted(kernels)]
    return _pick(random, usable) if usable else None


# Channels and groups


def _swapped_outputs(site: MarkedSite, random: Random) -> str | None:
    chosen = _some_conv(site, random, lambda kernels: kernels.shape[0] * kernels.shape[1] > 1)
    if chosen is None:
        return None
    conv, kernels = chosen
    rows = kernels.reshape(-1, *kernels.shape[2:])
    first, second = _pair(random, len(rows))
    rows[[first, second]] = rows[[second, first]]
    site.put_kernels(conv, rows.reshape(kernels.shape))
    along = len(conv.input) > 2 and bool(random.integers(2))
    if along:
        bias = site.array(conv.input[2])
        bias[[first, second]] = bias[[second, first]]
        site.put(conv.input[2], bias)
    return f"outputs {first} and {second} of {conv.name} are swapped{', bias too' * along}"


def _swapped_inputs(site: MarkedSite, random: Random) -> str | None:
    chosen = _some_conv(site, random, lambda kernels: kernels.shape[2] > 1)
    if chosen is None:
        return None
    conv, kernels = chosen
    group, (first, second) = int(random.integers(len(kernels))), _pair(random, kernels.shape[2])
    kernels[group][:, [first, second]] = kernels[group][:, [second, first]]
    site.put_kernels(conv, kernels)
    return f"inputs {first} and {second} of group {group} of {conv.name} are swapped"


def _exchanged_groups(site: MarkedSite, random: Random) -> str | None:
    """In one grouped convolution the kernels of two groups are exchanged."""
    chosen = _some_conv(site, random, lambda kernels: len(kernels) > 1)
    if chosen is None:
        return None
    conv, kernels = chosen
    first, second = _pair(random, len(kernels))
    kernels[[first, second]] = kernels[[second, first]]
    site.put_kernels(conv, kernels)
    return f"the kernels of groups {first} and {second} of {conv.name} are exchanged"


def _like_branches(
    site: MarkedSite, random: Random, wanted: Callable[[onnx.NodeProto], Any], index: int
) -> str | None:
    """Exchange input `index` of two branches for which `wanted` gives the same."""
    pairs = [
        (first, second)
        for position, first in enumerate(site.convs)
        for second in site.convs[position + 1 :]
        if wanted(first) == wanted(second) and first.input[index] != second.input[index]
    ]
    if not pairs:
        return None
    first, second = _pick(random, pairs)
    first.input[index], second.input[index] = second.input[index], first.input[index]
    site.put_convs_last()
    return f"{first.name} and {second.name} have each other's {('input', 'weight')[index]}"


def _exchanged_slices(site: MarkedSite, random: Random) -> str | None:
    def width(conv: onnx.NodeProto) -> int:
        kernels = site.kernels(conv)
        return kernels.shape[0] * kernels.shape[2]

    return _like_branches(site, random, width, 0)


def _exchanged_weights(site: MarkedSite, random: Random) -> str | None:
    return _like_branches(site, random, lambda conv: site.kernels(conv).shape, 1)


def _exchanged_in_concat(site: MarkedSite, random: Random) -> str | None:
    concats = [node for node in site.of_type("Concat") if attribute(node, "axis", 0) == 1]
    if not concats:
        return None
    (concat,) = concats
    first, second = _pair(random, len(concat.input))
    concat.input[first], concat.input[second] = concat.input[second], concat.input[first]
    return f"branches {first} and {second} are concatenated in the other order"


# Bias


def _biased(site: MarkedSite, random: Random) -> onnx.NodeProto | None:
    convs = [conv for conv in site.convs if len(conv.input) > 2]
    return _pick(random, convs) if convs else None


def _dropped_bias(site: MarkedSite, random: Random) -> str | None:
    conv = _biased(site, random)
    if conv is None:
        return None
    name = conv.input.pop()
    return f"{name} is dropped"


def _bias_element(site: MarkedSite, random: Random) -> str | None:
    conv = _biased(site, random)
    if conv is None:
        return None
    bias = site.array(conv.input[2])
    place = int(random.integers(len(bias)))
    step = _size(random) * float(np.abs(bias).max() or 1)
    bias[place] += step
    site.put(conv.input[2], bias)
    return f"{conv.input[2]}[{place}] is {step:.3g} larger"


# Geometry: the shape of the output stays as it is


def _shifted_pad(site: MarkedSite, random: Random) -> str | None:
    padded = list(_padded_axes(site))
    if not padded:
        return None
    conv, pads, axis = _pick(random, padded)
    pads[axis] += 1
    pads[len(pads) // 2 + axis] -= 1
    _set_ints(conv, "pads", pads)
    return f"the pads of {conv.name} are {pads}"


def _padded_axes(site: MarkedSite) -> Iterator[tuple[onnx.NodeProto, list[int], int]]:
    for conv in site.convs:
        pads = list(attribute(conv, "pads", []))
        half = len(pads) // 2
        yield from ((conv, pads, axis) for axis in range(half) if pads[half + axis] > 0)


def _larger_dilation(site: MarkedSite, random: Random) -> str | None:
    convs = [
        conv
        for conv in site.of_type("Conv")
        if site.kernels(conv).shape[3] % 2 and _taps(site, conv)
    ]
    if not convs:
        return None
    conv = _pick(random, convs)
    dims = site.kernels(conv).ndim - 3
    taps = _taps(site, conv)
    dilations = list(attribute(conv, "dilations", [1] * dims))
    pads = list(attribute(conv, "pads", [0] * 2 * dims))
    dilations[0] += 1
    pads[0] += taps // 2
    pads[dims] += taps // 2
    _set_ints(conv, "dilations", dilations)
    _set_ints(conv, "pads", pads)
    return f"the dilations of {conv.name} are {dilations}, its pads {pads}"


def _taps(site: MarkedSite, conv: onnx.NodeProto) -> int:
    """Taps along the first axis besides one."""
    return site.kernels(conv).shape[3] - 1


# Gathers of frozen sites


def _gather_index(site: MarkedSite, random: Random) -> str | None:
    gathers = site.of_type("Gather")
    if not gathers:
        return None
    gather = _pick(random, gathers)
    indices = site.array(gather.input[1])
    place, other = _pair(random, len(indices))
    indices[place] = indices[other]
    site.put(gather.input[1], indices)
    return f"{gather.name} takes channel {indices[other]} at {place} too"


def _exchanged_indices(site: MarkedSite, random: Random) -> str | None:
    gathers = site.of_type("Gather")
    if not gathers:
        return None
    gather = _pick(random, gathers)
    indices = site.array(gather.input[1])
    first, second = _pair(random, len(indices))
    indices[[first, second]] = indices[[second, first]]
    site.put(gather.input[1], indices)
    return f"{gather.name} takes places {first} and {second} in the other order"


CORRUPTIONS: dict[str, Corruption] = {
    "weight-element": _weight_element,
    "weight-sign": _weight_sign,
    "bfloat16": _bfloat16,
    "flipped-kernel": _flipped_kernel,
    "transposed-kernel": _transposed_kernel,
    "swapped-outputs": _swapped_outputs,
    "swapped-inputs": _swapped_inputs,
    "exchanged-groups": _exchanged_groups,
    "exchanged-slices": _exchanged_slices,
    "exchanged-weights": _exchanged_weights,
    "exchanged-in-concat": _exchanged_in_concat,
    "dropped-bias": _dropped_bias,
    "bias-element": _bias_element,
    "shifted-pad": _shifted_pad,
    "larger-dilation": _larger_dilation,
    "gather-index": _gather_index,
    "exchanged-indices": _exchanged_indices,
}
