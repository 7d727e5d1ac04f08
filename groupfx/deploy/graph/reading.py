"""Read an ONNX file, and look at it before anything believes it.

Protobuf parses much that is no ONNX file without an error, onnx-ir mends graphs that name values
which nobody makes, and weights in other files are looked for when they are used. Here all of that
is found out at once and said in one sentence.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

from ...convs.names import one_line
from ...errors import FileError, first_line
from ...files.existing import require_file
from .tensors import external_tensors, graphs, nodes, tensors

PRODUCER = "groupfx"
OLDEST_OPSET = 11

_MOST_FILE_BYTES = 2**31 - 1
# Of file systems in use.
_LONGEST_NAME = 255

_KINDS = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"PK\x03\x04", "a zip archive, such as torch.save writes; `groupfx export` makes it an .onnx"),
    (b"\x80\x02", "a pickle, such as old versions of torch wrote"),
    (b"\x80\x04", "a pickle"),
    (b"\x80\x05", "a pickle"),
    (b"\x89HDF", "an HDF5 file, such as Keras writes"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"GGUF", "a GGUF file"),
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file itself with `git lfs pull`"),
    (b"%PDF", "a PDF document"),
    (b"\x7fELF", "a program"),
    (b"<!DOCTYPE", "a web page"),
    (b"<html", "a web page"),
    (b"{", "JSON text"),
)

# Fields of ModelProto (onnx.proto3) and how they are encoded: 0 a number, 2 bytes with a length.
_MODEL_FIELDS = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
_IR_VERSION, _PRODUCER_NAME = 1, 2


def read_onnx(path: Path | str) -> ir.Model:
    """The model in an .onnx file, weights in other files mapped and not read.

    Operators that nobody knows do not hinder reading. Raises FileError where the file is missing,
    no ONNX file, damaged, without a graph, of an opset below 11, or where weights that it keeps in
    other files are missing, too short or outside its folder.
    """
    place = Path(path)
    proto = _parsed(place, _bytes_of(place))
    _check_model(place, proto)
    try:
        ordered = _check_graph(proto.graph, ())
        _check_names(proto)
        model = ir.serde.deserialize_model(proto)
        if not ordered:
            model.graph.sort()
        _check_tensors(model)
        _check_texts(proto, model)
    except FileError as error:
        raise FileError(f"{place} is damaged: {error}") from error
    except Exception as error:
        raise FileError(f"{place} is damaged: {_root_reason(error)}") from error
    _find_external(place, model)
    return model


def is_ours(path: Path) -> bool:
    """Whether groupfx wrote this ONNX file; only its first bytes are read."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        head = file.read(256)
        fields = {number: head[start:stop] for number, start, stop in _fields(head)}
        return _IR_VERSION in fields and fields.get(_PRODUCER_NAME) == PRODUCER.encode()
    return False


def _bytes_of(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise FileError(f"{path} is a folder: name the .onnx file in it")
        require_file(path)
        with path.open("rb") as file:
            head = file.read(64)
            _refuse_others(path, head, path.stat())
            return head + file.read()
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}") from error


def _refuse_others(path: Path, head: bytes, status: os.stat_result) -> None:
    if not head:
        raise FileError(f"{path} is empty: 0 bytes; export it again")
    for magic, kind in _KINDS:
        if head.startswith(magic):
            raise FileError(f"{path} is not an ONNX file: it looks like {kind}")
    if head[4:8] == b"TFL3":
        raise FileError(f"{path} is not an ONNX file: it looks like a TensorFlow Lite model")
    if stat.S_ISREG(status.st_mode) and status.st_size > _MOST_FILE_BYTES:
        raise FileError(
            f"{path} has {status.st_size:,} bytes, and a protobuf message ends at "
            f"{_MOST_FILE_BYTES:,}: save it again with external data"
        )


def _parsed(path: Path, data: bytes) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception as error:
        # DecodeError, of a package that has no types.
        missing = _missing_bytes(data)
        if missing:
            raise FileError(
                f"{path} is cut off: it has {len(data):,} bytes and {missing:,} or more are "
                "missing; copy or export it again"
            ) from error
        raise FileError(f"{path} is not an ONNX file, or it is damaged") from error
    return proto


def _missing_bytes(data: bytes) -> int:
    """How many bytes the last field lacks, where `data` starts as ModelProto does; else 0."""
    last = 0
    for position, (number, _, stop) in enumerate(_fields(data)):
        if position == 0 and number != _IR_VERSION:
            return 0
        last = stop
    return max(0, last - len(data))


def _fields(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Number, first byte and end of each field of a ModelProto, as long as the bytes are one.

    The end of the last field may lie behind the end of `data`.
    """
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        if _MODEL_FIELDS.get(tag >> 3) != tag & 7:
            return
        number, start = _varint(data, place)
        stop = start + number if tag & 7 else start
        yield tag >> 3, start if tag & 7 else place, stop
        place = stop


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A number of 7 bits a byte, least first, and where it ends."""
    result = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            break
        result |= (data[place] & 0x7F) << shift
        place += 1
        if data[place - 1] < 0x80:
            break
    return result, place


def _check_model(path: Path, proto: onnx.ModelProto) -> None:
    if not proto.ir_version or not proto.HasField("graph"):
        lacks = "graph" if proto.ir_version else "ir_version"
        raise FileError(f"{path} is not an ONNX file, or it is damaged: it has no {lacks}")
    if not proto.graph.node:
        raise FileError(f"{path} has a graph of 0 nodes: there is nothing to rewrite")
    if not proto.graph.output:
        raise FileError(f"{path} has a graph of 0 outputs: name them where you export it")
    for entry in proto.opset_import:
        # Two names of one domain; onnx-ir knows the nodes' by the shorter one.
        entry.domain = "" if entry.domain == "ai.onnx" else entry.domain
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    _check_opset(path, versions, any(node.domain in ("", "ai.onnx") for node in proto.graph.node))


def _check_opset(path: Path, versions: dict[str, int], needed: bool) -> None:
    version = versions.get("")
    if not versions or (version is None and needed):
        raise FileError(
            f"{path} does not say which opset it uses: it is cut off; copy or export it again"
        )
    if version is not None and version < OLDEST_OPSET:
        raise FileError(
            f"{path} uses opset {version}, which is too old (the oldest is {OLDEST_OPSET}): "
            "convert it with onnx.version_converter, or export it again"
        )


def _check_names(proto: onnx.ModelProto) -> None:
    """Write out control characters in names of nodes; FileError for those of anything else."""
    pending = [proto.graph, *proto.functions]
    while pending:
        graph = pending.pop()
        for node in graph.node:
            node.name = one_line(node.name)
            _require_line(node.op_type, node.domain, *node.output)
            for attribute in node.attribute:
                pending += [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
                _check_attribute(node, attribute)
                for tensor in (attribute.t, *attribute.tensors):
                    _require_sizes(tensor)
        if isinstance(graph, onnx.GraphProto):
            _require_line(*(v.name for v in (*graph.input, *graph.output, *graph.initializer)))
            for tensor in graph.initializer:
                _require_sizes(tensor)


def _require_sizes(tensor: onnx.TensorProto) -> None:
    """Raise FileError for sizes, or for a place in another file, that are no numbers."""
    if any(size < 0 for size in tensor.dims):
        raise FileError(f"{tensor.name!r} has the shape {list(tensor.dims)}")
    for entry in tensor.external_data:
        digits = entry.value.isdecimal() and len(entry.value) <= _MOST_DIGITS
        if entry.key in ("offset", "length") and not digits:
            raise FileError(f"{tensor.name!r} has the {entry.key} {one_line(entry.value[:40])!r}")


def _require_line(*names: str) -> None:
    for name in names:
        if name != one_line(name):
            raise FileError(f"a name in it holds control characters: {name[:80]!r}")


def _check_attribute(node: onnx.NodeProto, attribute: onnx.AttributeProto) -> None:
    """Refuse numbers that no convolution has, which a runtime may take for others."""
    if node.op_type not in _CONVS:
        return
    numbers = [attribute.i] if attribute.name == "group" else list(attribute.ints)
    least = _LEAST.get(attribute.name)
    if least is not None and any(number < least for number in numbers):
        shown = numbers[0] if attribute.name == "group" else numbers
        raise FileError(f"{node.op_type} {node.name!r} has {attribute.name}={shown}")


_CONVS = ("Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "FusedConv")
# Of a place in a file, with room: a protobuf of these numbers has 64 bits.
_MOST_DIGITS = 20
_LEAST = {"group": 1, "kernel_shape": 1, "strides": 1, "dilations": 1}


def _check_graph(graph: onnx.GraphProto, outer: tuple[set[str], ...]) -> bool:
    """Whether the nodes are in order; FileError where names are unknown or not unique."""
    if graph.sparse_initializer:
        raise FileError(
            f"{len(graph.sparse_initializer)} sparse initializers, which are not supported; "
            "make them dense"
        )
    given = {info.name for info in graph.input} | {t.name for t in graph.initializer}
    made = [name for node in graph.node for name in node.output if name]
    _check_unique("input", [info.name for info in graph.input])
    _check_unique("initializer", [tensor.name for tensor in graph.initializer])
    _check_unique("value", [*made, *given])
    known = given | set(made)
    for info in graph.output:
        if not _is_known(info.name, (*outer, known)):
            raise FileError(f"no node makes the output {info.name!r}")
    ordered = True
    for node in graph.node:
        ordered &= _check_node(node, given, (*outer, known))
        given.update(node.output)
    return ordered


def _check_node(node: onnx.NodeProto, made: set[str], scopes: tuple[set[str], ...]) -> bool:
    """Whether all that the node reads is made before it; FileError where nobody makes it."""
    for name in node.input:
        if name and not _is_known(name, scopes):
            raise FileError(f"node {node.name or node.op_type!r} reads {name!r}, made by no node")
    for attribute in node.attribute:
        graphs = [attribute.g] if attribute.HasField("g") else attribute.graphs
        for graph in graphs:
            _check_graph(graph, scopes)
    return all(not name or _is_known(name, (*scopes[:-1], made)) for name in node.input)


def _is_known(name: str, scopes: tuple[set[str], ...]) -> bool:
    return any(name in scope for scope in scopes)


def _check_unique(kind: str, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if not name:
            raise FileError(f"one {kind} has no name")
        if name in seen:
            raise FileError(f"two of kind {kind} are called {name!r}")
        seen.add(name)


def _find_external(path: Path, model: ir.Model) -> None:
    """Say where weights in other files lie, and refuse those that are not there or not whole."""
    # Absolute: onnx-ir checks no path of a tensor whose folder is "".
    folder = Path(os.path.abspath(path)).parent
    external = list(external_tensors(model))
    for tensor in external:
        tensor.base_dir = str(folder)
        _check_inside(path, folder, tensor)
    missing = [tensor for tensor in external if not Path(tensor.path).is_file()]
    if missing:
        raise FileError(
            f"{path} keeps weights in {missing[0].location}, which is not beside it "
            f"({len(missing)} of {len(external)} tensors are missing): copy that file too"
        )
    for tensor in external:
        _check_whole(path, tensor)


def _check_inside(path: Path, folder: Path, tensor: ir.ExternalTensor) -> None:
    text = str(tensor.location)
    location = Path(text.replace("\\", "/"))
    if "\0" in text or any(len(os.fsencode(part)) > _LONGEST_NAME for part in location.parts):
        raise FileError(
            f"{path} keeps the tensor {tensor.name!r} in {text[:80]!r}, which is no name of a file"
        )
    if location.is_absolute() or ".." in location.parts or not location.parts:
        raise FileError(
            f"{path} keeps the tensor {tensor.name!r} in {str(tensor.location)!r}, which leads "
            "outside its folder, and is not read: save it again with a plain file name"
        )
    target = Path(os.path.realpath(tensor.path))
    if not target.is_relative_to(os.path.realpath(folder)):
        raise FileError(
            f"{path} keeps weights in {tensor.location}, a link that leads outside its folder to "
            f"{target}, and is not read: copy the file in place of the link"
        )


def _check_whole(path: Path, tensor: ir.ExternalTensor) -> None:
    status = Path(tensor.path).stat()
    start, length = tensor.offset or 0, tensor.length
    stop = start + (tensor.nbytes if length is None else length)
    if start < 0 or stop < start or stop > status.st_size:
        raise FileError(
            f"{tensor.location}, where {path} keeps weights, is too short: it has "
            f"{status.st_size:,} bytes and {tensor.name!r} ends at {stop:,}; copy it again"
        )
    if stop - start != tensor.nbytes:
        raise FileError(
            f"{path} is damaged: {tensor.name!r} takes {tensor.nbytes:,} bytes and has "
            f"{stop - start:,} in {tensor.location}"
        )
    if status.st_nlink > 1:
        # onnx-ir refuses to read such a file, as another name of one that is none of ours.
        raise FileError(
            f"{tensor.location}, where {path} keeps weights, has {status.st_nlink} hard links and "
            "is not read: make it a copy"
        )


def _check_tensors(model: ir.Model) -> None:
    """Refuse tensors that hold another number of bytes than their shape says."""
    for tensor in tensors(model):
        if isinstance(tensor, ir.TensorProtoTensor):
            _check_tensor(tensor)
        elif isinstance(tensor, ir.ExternalTensor) and tensor.nbytes < 0:
            raise FileError(f"{tensor.name!r} takes {tensor.nbytes:,} bytes")


def _check_tensor(tensor: ir.TensorProtoTensor) -> None:
    proto = tensor.raw
    if not proto.HasField("raw_data"):
        try:
            tensor.numpy()
        except Exception as error:
            # Numpy has no one error for numbers that do not fit a shape.
            raise FileError(f"{tensor.name!r}: {first_line(error)}") from error
        return
    if len(proto.raw_data) != tensor.nbytes:
        raise FileError(
            f"{tensor.name!r} takes {tensor.nbytes:,} bytes and has {len(proto.raw_data):,}"
        )


def _check_texts(proto: onnx.ModelProto, model: ir.Model) -> None:
    """Fail where a text is no UTF-8 or an attribute has no type: protobuf reads both.

    Such a model cannot be written again, which would come out at the end of the work.
    """
    texts = [proto.producer_name, proto.producer_version, proto.domain, proto.doc_string]
    texts.extend(text for entry in proto.metadata_props for text in (entry.key, entry.value))
    texts.extend(graph.name or "" for graph in graphs(model))
    onnx.NodeProto(input=texts)
    for graph in graphs(model):
        _write_values(*graph.inputs, *graph.outputs, *graph.initializers.values())
    for node in nodes(model):
        ir.to_proto(node)
        _write_values(*node.outputs)


def _write_values(*values: ir.Value) -> None:
    for value in values:
        ir.to_proto(value)


def _root_reason(error: BaseException) -> str:
    """What the innermost error says: onnx-ir wraps it in one for each level of the graph."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
