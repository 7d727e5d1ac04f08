"""Run an ONNX model in float64: the yardstick where the reference of a validation is a file.

ONNX Runtime has no float64 convolution on the CPU. The reference evaluator of onnx runs any type,
and its float64 is as good as the model's types let it be:

    as_float64     a copy in which every float is a double, types and constants alike
    Float64Model   that copy in the evaluator, with the kernels of `float64_kernels`

What cannot be computed in float64 is refused by name, so that the caller can take another
yardstick; it is never rounded on the way.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from ...errors import ModelError, UsageError, kind_and_line
from .float64_kernels import DOUBLE, FLOAT_TYPES, KERNELS, ROUNDED
from .float64_windows import Array

# Attributes of operators of the main domain that hold an element type.
_TYPE_ATTRIBUTES = frozenset(
    ("dtype", "output_datatype", "output_dtype", "softmax_precision", "stash_type", "to")
)

# Operators that make float32 where no attribute says what else.
_FLOAT_BY_DEFAULT: Mapping[str, str] = {
    "BlackmanWindow": "output_datatype",
    "HammingWindow": "output_datatype",
    "HannWindow": "output_datatype",
    "MelWeightMatrix": "output_datatype",
    "RandomNormal": "dtype",
    "RandomUniform": "dtype",
}

# Where the checker and the exporters write the main domain out.
_MAIN_DOMAINS = ("", "ai.onnx")


class Float64Model:
    """An ONNX model in float64.

    Raises UsageError where an operator is not known, or only in float32, and where tensors of the
    model still lie in files beside it.
    """

    def __init__(self, model: ModelProto, rounded: np.dtype[Any] | None = None) -> None:
        """Prepare a float64 copy of `model`, which itself stays as it is.

        With a dtype `rounded`, every tensor and every result of a node is rounded to it: what a
        model in that dtype computes whose kernels add up in a wider one.
        """
        _refuse_foreign(model)
        copy = as_float64(model)
        given = {tensor.name for tensor in copy.graph.initializer}
        self._inputs = tuple(value.name for value in copy.graph.input)
        self._required = tuple(name for name in self._inputs if name not in given)
        try:
            self._evaluator = _Evaluator(copy)
            if rounded is not None:
                _round_values(self._evaluator, rounded)
        except Exception as error:  # each implementation refuses in its own way
            raise UsageError(
                f"{_place(error)} cannot run in float64: {_first_line(error)}; "
                "compare with ONNX Runtime in float32 instead"
            ) from error

    def run(
        self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """The results by their names, all of them or `outputs`.

        Floats among `inputs` are widened to float64, and float results are float64. Raises
        UsageError where the names of inputs or outputs do not fit, ModelError where a node fails.
        """
        names = list(self._evaluator.output_names if outputs is None else outputs)
        _check_names("input", inputs, self._inputs)
        _check_names("output", names, self._evaluator.output_names)
        if missing := [name for name in self._required if name not in inputs]:
            raise UsageError(f"no value for the inputs {missing} of the ONNX model: give them too")
        wide = {name: _wide(np.asarray(value)) for name, value in inputs.items()}
        try:
            with np.errstate(all="ignore"):  # infinities and NaNs are results like any other
                found = self._evaluator.run(names, wide)
        except Exception as error:  # torch, numpy and the evaluator have no error in common
            raise ModelError(f"{_place(error)} failed in float64: {_first_line(error)}") from error
        return dict(zip(names, found, strict=True))


class _Evaluator(ReferenceEvaluator):
    """The evaluator with our kernels, also inside functions and where an operator is a function."""

    def __init__(self, proto: Any, **options: Any) -> None:
        if isinstance(proto, FunctionProto):
            copy = FunctionProto()
            copy.CopyFrom(proto)
            _widen_function(copy)
            proto = copy
        super().__init__(proto, **(options | {"new_ops": list(KERNELS)}))
        for node in self.rt_nodes_:
            _use_plain_floats(node)


def _round_values(evaluator: ReferenceEvaluator, dtype: np.dtype[Any]) -> None:
    """Round the tensors of an evaluator, and what its nodes give, to `dtype`."""

    def narrow(value: Any) -> Any:
        if not isinstance(value, np.ndarray) or value.dtype != np.float64:
            return value
        return value.astype(dtype).astype(np.float64)

    def narrowed(run: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *inputs, **named: tuple(map(narrow, run(*inputs, **named)))

    for name, value in evaluator.rt_inits_.items():
        evaluator.rt_inits_[name] = narrow(value)
    for node in evaluator.rt_nodes_:
        node.run = narrowed(node.run)


def _use_plain_floats(node: OpRun) -> None:
    """Make Python floats of the attributes: an np.float32 drags other numbers down to float32."""
    for name in node.attributes_names_:
        value = getattr(node, name)
        if isinstance(value, np.float32):
            setattr(node, name, float(value))
        elif isinstance(value, list) and any(isinstance(each, np.float32) for each in value):
            setattr(node, name, [float(each) for each in value])


def as_float64(model: ModelProto) -> ModelProto:
    """A copy of `model` in which every float16, bfloat16 and float32 is a float64.

    That is initializers, constants, types of inputs and outputs, and the types that nodes name, in
    the graph, its subgraphs and the functions. Integers, booleans and float8 stay; `value_info` is
    dropped. Raises UsageError where a tensor lies in another file.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    for opset in copy.opset_import:
        opset.domain = _domain(opset.domain)
    _widen_graph(copy.graph)
    for function in copy.functions:
        _widen_function(function)
    return copy


def _domain(domain: str) -> str:
    return "" if domain in _MAIN_DOMAINS else domain


def _widen_graph(graph: GraphProto) -> None:
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        _widen_type(value.type)
    for tensor in (*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)):
        _widen_tensor(tensor)
    _widen_nodes(graph)


def _widen_function(function: FunctionProto) -> None:
    del function.value_info[:]
    for opset in function.opset_import:
        opset.domain = _domain(opset.domain)
    for attribute in function.attribute_proto:
        _widen_attribute(attribute)
    _widen_nodes(function)


def _widen_nodes(owner: GraphProto | FunctionProto) -> None:
    nodes = list(owner.node)
    for node in nodes:
        _widen_node(node)
    if not any(_makes_float32(node) for node in nodes):
        return
    widened = [made for node in nodes for made in _with_cast(node)]
    del owner.node[:]
    owner.node.extend(widened)


def _widen_node(node: NodeProto) -> None:
    node.domain = _domain(node.domain)
    for attribute in node.attribute:
        _widen_attribute(attribute)
        if not node.domain and attribute.name in _TYPE_ATTRIBUTES and attribute.i in FLOAT_TYPES:
            attribute.i = DOUBLE
    if node.domain:
        return
    given = {attribute.name for attribute in node.attribute}
    name = _FLOAT_BY_DEFAULT.get(node.op_type)
    if name is not None and name not in given:
        node.attribute.append(onnx.helper.make_attribute(name, DOUBLE))
    if node.op_type == "ConstantOfShape" and "value" not in given:
        node.attribute.append(onnx.helper.make_attribute("value", _double([0.0], (1,))))
    if node.op_type == "Constant" and given & {"value_float", "value_floats"}:
        _widen_constant(node.attribute[0])


def _widen_constant(attribute: AttributeProto) -> None:
    """Turn the float32 numbers of a Constant into a tensor."""
    if attribute.ref_attr_name:
        return  # only known when the function is called: see `_with_cast`
    many = attribute.type == AttributeProto.FLOATS
    numbers = list(attribute.floats) if many else [attribute.f]
    tensor = _double(numbers, (len(numbers),) if many else ())
    attribute.CopyFrom(onnx.helper.make_attribute("value", tensor))


def _makes_float32(node: NodeProto) -> bool:
    """Whether a node of a function makes a float32 of an attribute that the caller passes."""
    return not node.domain and any(
        attribute.ref_attr_name and attribute.name in ("value_float", "value_floats")
        for attribute in node.attribute
    )


def _with_cast(node: NodeProto) -> Iterable[NodeProto]:
    """The node, and where it makes a float32 of an attribute, a Cast behind it."""
    if not _makes_float32(node):
        return (node,)
    name = node.output[0]
    node.output[0] = f"{name}_float32"
    return (node, onnx.helper.make_node("Cast", [node.output[0]], [name], to=DOUBLE))


def _widen_attribute(attribute: AttributeProto) -> None:
    for tensor in (attribute.t, *attribute.tensors):
        _widen_tensor(tensor)
    for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
        _widen_tensor(sparse.values)
    for graph in _subgraphs(attribute):
        _widen_graph(graph)
    for each in (attribute.tp, *attribute.type_protos):
        _widen_type(each)


def _subgraphs(attribute: AttributeProto) -> Sequence[GraphProto]:
    return [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def _widen_type(found: onnx.TypeProto) -> None:
    kind = found.WhichOneof("value")
    if kind in ("tensor_type", "sparse_tensor_type"):
        tensor = getattr(found, kind)
        tensor.elem_type = DOUBLE if tensor.elem_type in FLOAT_TYPES else tensor.elem_type
    elif kind in ("sequence_type", "optional_type"):
        _widen_type(getattr(found, kind).elem_type)
    elif kind == "map_type":
        _widen_type(found.map_type.value_type)


def _widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_location == TensorProto.EXTERNAL:
        raise UsageError(
            f"the tensor {tensor.name!r} of the ONNX model lies in another file: load the model "
            "with onnx.load, which reads it too"
        )
    if tensor.data_type in FLOAT_TYPES:
        wide = onnx.numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(onnx.numpy_helper.from_array(wide, tensor.name))


def _double(numbers: Sequence[float], shape: tuple[int, ...]) -> TensorProto:
    return onnx.numpy_helper.from_array(np.array(numbers, np.float64).reshape(shape))


def _refuse_foreign(model: ModelProto) -> None:
    """Refuse what the evaluator does not know, and what it knows in float32 only."""
    functions = {(function.domain, function.name) for function in model.functions}
    for owner in (model.graph, *model.functions):
        for node in _all_nodes(owner):
            domain = _domain(node.domain)
            known = (node.domain, node.op_type) in functions
            if known or (not domain and node.op_type not in ROUNDED):
                continue
            raise UsageError(
                f"{_described(node)} cannot run in float64: there is no float64 kernel for it; "
                "compare with ONNX Runtime in float32 instead"
            )


def _all_nodes(owner: GraphProto | FunctionProto) -> Iterable[NodeProto]:
    """Every node of a graph or function and of the graphs inside its nodes."""
    for node in owner.node:
        yield node
        for attribute in node.attribute:
            for graph in _subgraphs(attribute):
                yield from _all_nodes(graph)


def _described(node: NodeProto) -> str:
    name = node.name or next(iter(node.output), "")
    return f"operator {node.op_type} (domain {_domain(node.domain) or 'ai.onnx'!r}, node {name!r})"


def _place(error: Exception) -> str:
    """The innermost node that the evaluator was at, read off the frames of its loops."""
    found = "the ONNX model"
    for frame, _ in traceback.walk_tb(error.__traceback__):
        node = frame.f_locals.get("node")
        node = node.onnx_node if isinstance(node, OpRun) else node
        if isinstance(frame.f_locals.get("self"), ReferenceEvaluator) and node is not None:
            found = _described(node)
    return found


def _first_line(error: BaseException) -> str:
    """What went wrong first: the evaluator wraps some errors in one that says less."""
    while error.__cause__ is not None:
        error = error.__cause__
    return kind_and_line(error)


def _check_names(what: str, given: Iterable[str], known: Sequence[str]) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        raise UsageError(
            f"the ONNX model has no {what} {unknown[0]!r}; its {what}s are {', '.join(known)}"
        )


def _wide(value: Array) -> Array:
    """`value` in float64 where it is of a smaller float; bfloat16 of ml_dtypes included."""
    small = value.dtype.kind == "f" or value.dtype.name == "bfloat16"
    return value.astype(np.float64) if small else value
