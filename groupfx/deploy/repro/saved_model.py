"""A part of a model, in a form that runs without groupfx: an ONNX file, or code and tensors."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from onnx_ir.convenience import extract
from torch import Tensor, fx

from ...errors import ModelError
from ..export.graph_sites import tensor_at
from ..graph.files import proto_of
from ..graph.metadata import strip
from ..running.runtime import Session
from ..validate.site_functions import SiteFunction

Array = npt.NDArray[Any]

_FREED = re.compile(r";  [\w =]+ = None$", re.MULTILINE)


@dataclass(frozen=True)
class SavedModel:
    """One side: its files, the function of the script that runs it, and the same here.

    The function is called `role`, takes the arrays in order and whether ONNX Runtime may optimise,
    and gives an array. `modes` are the values of that which make a difference.
    """

    files: Mapping[str, bytes]
    code: str
    run: Callable[[Sequence[Array], bool], Array]
    role: str
    modes: tuple[bool, ...] = (False,)
    needs: str = "torch"

    def channels(self, first: int, last: int) -> SavedModel:
        """The same with these channels of its output alone."""
        role, run = self.role, self.run
        code = (
            f"{self.code}\n\nall_of_{role} = {role}\n\n\n"
            f"def {role}(inputs, optimised):\n"
            f"    return all_of_{role}(inputs, optimised)[:, {first}:{last}]\n"
        )
        return replace(self, code=code, run=lambda inputs, mode: run(inputs, mode)[:, first:last])


# ONNX


def onnx_part(
    role: str, model: ir.Model, inputs: Sequence[str], output: str, given: Sequence[Array]
) -> SavedModel:
    """The nodes between the values `inputs`, which are `given` here, and the value `output`.

    Raises GroupfxError where they are not bounded by these, or do not run alone.
    """
    try:
        graph = extract(model.graph, inputs=list(inputs), outputs=[output])
    except ValueError as error:
        raise ModelError(f"{output} cannot be taken out of its model: {error}") from error
    # In a fixed order, and without what their producer wrote beside the numbers.
    held = sorted(graph.initializers.items())
    graph.initializers.clear()
    for name, value in held:
        tensor = value.const_value
        if tensor is not None:
            value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name)
        graph.initializers[name] = value
    for value, array in zip(graph.inputs, given, strict=True):
        value.dtype = ir.DataType.from_numpy(array.dtype)
        # The batch stays open, for a part that is shown on one row.
        value.shape = ir.Shape(("rows", *array.shape[1:]) if array.ndim else ())
    graph.name = role
    made = ir.Model(graph, ir_version=model.ir_version, producer_name="groupfx")
    made.functions.update(model.functions)
    strip(made)
    data: bytes = proto_of(made).SerializeToString(deterministic=True)
    sessions = {mode: Session(made, "on" if mode else "off", source=role) for mode in (False, True)}
    names = list(inputs)

    def run(arrays: Sequence[Array], optimised: bool) -> Array:
        found = sessions[optimised].run(dict(zip(names, arrays, strict=True)), [output])
        return found[output]

    code = (
        f"def {role}(inputs, optimised):\n"
        f'    return run_onnx("{role}.onnx", {names!r}, inputs, optimised)\n'
    )
    return SavedModel({f"{role}.onnx": data}, code, run, role, (False, True), "onnxruntime")


# torch


def layer_part(role: str, function: SiteFunction, given: Array) -> SavedModel:
    """A convolution and the BatchNorms behind it, as calls of torch in float64."""
    x = torch.from_numpy(np.array(given, dtype=np.float64))
    tensors: dict[str, Array] = {"weight": _narrow(function.weight)}
    if function.bias is not None:
        tensors["bias"] = _narrow(function.bias)
    lines = list(_convolution(function, x.shape[2:]))
    for number, norm in enumerate(function.norms):
        for name in ("scale", "mean", "beta"):
            tensors[f"{name}_{number}"] = _narrow(getattr(norm, name))
        parts = (f"channels(t.{name}_{number}, y)" for name in ("mean", "scale", "beta"))
        lines.append("y = (y - {}) * {} + {}".format(*parts))
    body = "".join(f"    {line}\n" for line in lines)
    code = (
        f"def {role}_forward(t, x):\n{body}    return y\n\n\n"
        f"def {role}(inputs, optimised):\n"
        f'    return run_torch("{role}.npz", {role}_forward, inputs, torch.float64)\n'
    )

    def run(arrays: Sequence[Array], optimised: bool) -> Array:
        (array,) = arrays
        wide = torch.from_numpy(np.array(array, dtype=np.float64))
        return function.value(wide).numpy()

    return SavedModel({f"{role}.npz": npz(tensors)}, code, run, role)


def _convolution(function: SiteFunction, sizes: Sequence[int]) -> list[str]:
    spec, window = function.spec, function.window
    rank, bias = spec.dims, "t.bias" if function.bias is not None else "None"
    if spec.transposed:
        ones = [1] * rank
        strides, dilations = list(window.strides or ones), list(window.dilations or ones)
        crops = window.crops(sizes, spec.kernel_size)
        pads = [-amount for pair in reversed(crops) for amount in pair]
        rest = f"{strides}, 0, 0, {spec.groups}, {dilations}"
        lines = [f"y = F.pad(F.conv_transpose{rank}d(x, t.weight, None, {rest}), {pads})"]
        return lines if bias == "None" else [*lines, "y = y + channels(t.bias, y)"]
    axes = window.axes(sizes, spec.kernel_size)
    pads = [amount for axis in reversed(axes) for amount in axis.borders]
    strides, dilations = [axis.stride for axis in axes], [axis.dilation for axis in axes]
    rest = f"{strides}, 0, {dilations}, {spec.groups}"
    return [f"y = F.conv{rank}d(F.pad(x, {pads}), t.weight, {bias}, {rest})"]


def _narrow(tensor: Tensor) -> Array:
    """In float32 where that holds the very numbers."""
    wide = tensor.detach().double().numpy()
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float32)
    return narrow if np.array_equal(narrow.astype(np.float64), wide) else wide


def graph_part(
    role: str, graph: fx.GraphModule, inputs: Sequence[str], output: str, *, wide: bool
) -> SavedModel:
    """The operators of an exported graph between nodes called `inputs` and the one `output`.

    `wide` runs it in float64. Raises GroupfxError where the graph holds what is no code.
    """
    nodes = {node.name: node for node in graph.graph.nodes}
    made, holder = fx.Graph(), torch.nn.Module()
    copies = {nodes[name]: made.placeholder(f"x{k}") for k, name in enumerate(inputs)}
    tensors: dict[str, Tensor] = {}
    for node in _needed(nodes[output], set(copies)):
        if node.op == "placeholder":
            raise ModelError(f"{output} needs the input {node.name} as well")
        if node.op == "get_attr":
            name = f"t{len(tensors)}"
            tensors[name] = tensor_at(graph, node).detach()
            setattr(holder, name, torch.nn.Buffer(tensors[name]))
            copies[node] = made.get_attr(name)
            continue
        copies[node] = made.node_copy(node, lambda n: copies[n])
    made.output(copies[nodes[output]])
    source = made.python_code("self").src
    if "_tensor_constant" in source or "<" in source:
        raise ModelError(f"{output} is computed by what cannot be written as code")
    module = fx.GraphModule(holder, made)
    # Without the lines' ends that only free memory.
    body = _FREED.sub("", source.strip()).replace("def forward(", f"def {role}_forward(", 1)
    dtype = "torch.float64" if wide else "None"
    code = (
        f"{body}\n\n\ndef {role}(inputs, optimised):\n"
        f'    return run_torch("{role}.npz", {role}_forward, inputs, {dtype})\n'
    )

    def run(arrays: Sequence[Array], optimised: bool) -> Array:
        kind = torch.float64 if wide else None
        given = [_as_tensor(array, kind) for array in arrays]
        with torch.no_grad():
            twin = module.double() if wide else module
            found: Array = twin(*given).numpy()
        return found

    held = {name: _plain(tensor) for name, tensor in tensors.items()}
    return SavedModel({f"{role}.npz": npz(held)}, code, run, role)


def _needed(end: fx.Node, given: set[fx.Node]) -> list[fx.Node]:
    seen, pending = set(given), [end]
    found = []
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            found.append(node)
            pending += node.all_input_nodes
    order = {node: place for place, node in enumerate(end.graph.nodes)}
    return sorted(found, key=order.__getitem__)


def _as_tensor(array: Array, dtype: torch.dtype | None) -> Tensor:
    tensor = torch.from_numpy(np.array(array))
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def _plain(tensor: Tensor) -> Array:
    if tensor.dtype == torch.bfloat16:
        raise ModelError("numpy has no bfloat16, in which this model holds its tensors")
    found: Array = tensor.cpu().contiguous().numpy()
    return found


def npz(arrays: Mapping[str, Array]) -> bytes:
    """The bytes of a .npz file: the same for the same arrays, as numpy dates its entries 1980."""
    buffer = io.BytesIO()
    np.savez(buffer, **{name: np.asarray(array) for name, array in arrays.items()})  # type: ignore[arg-type]
    return buffer.getvalue()
