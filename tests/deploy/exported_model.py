"""What the tests of exporting know of an ONNX file, with nothing of groupfx: runs, nodes, bytes."""

import copy
import getpass
import math
import socket
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn

LEVELS = {
    "off": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "on": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
CONVS = ("Conv", "ConvTranspose")
# A sum of n products has an error of u sqrt(n) if it is added up one by one, u sqrt(n / 16) in 16
# partial sums, as torch's vector kernels do on the widest registers: a factor of 4. Folding a
# BatchNorm rounds each weight once more, which at most doubles that.
ORDER, FOLDED = 4, 2


@dataclass(frozen=True)
class ConvOfFile:
    """A convolution of a file: its operator, groups, and position in its site."""

    op_type: str
    groups: int
    position: int | None
    bias: bool


def run_onnx(path: Path, *values: Tensor, optimised: str = "off") -> list[np.ndarray[Any, Any]]:
    """The outputs of a file in onnxruntime; `values` in the order of its inputs."""
    options = ort.SessionOptions()
    options.graph_optimization_level = LEVELS[optimised]
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    assert len(names) == len(values)
    feeds = {name: value.numpy() for name, value in zip(names, values, strict=True)}
    found = session.run(None, feeds)
    return [np.asarray(value) for value in found]


def run_torch(model: nn.Module, *args: Any, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Every tensor that a copy of `model` returns in eval mode and in `dtype`."""
    own = copy.deepcopy(model).to(dtype).eval()
    given = [a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
    with torch.no_grad():
        return list(leaves(own(*given)))


def leaves(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from leaves(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from leaves(part)


def assert_computes(path: Path, model: nn.Module, *args: Tensor) -> None:
    """The file computes what `model` does: float64 against onnxruntime, optimised and not.

    Its root-mean-square error may be that of the model's own dtype times ORDER and FOLDED, with
    one rounding of the largest value as a floor.
    """
    dtype = args[0].dtype if args[0].is_floating_point() else torch.float32
    wide = [value.double().numpy() for value in run_torch(model, *args)]
    own = [value.double().numpy() for value in run_torch(model, *args, dtype=dtype)]
    unit = torch.finfo(dtype).eps / 2
    for level in LEVELS:
        found = run_onnx(path, *args, optimised=level)
        assert len(found) == len(wide) > 0
        for expected, rounded, value in zip(wide, own, found, strict=True):
            assert value.shape == expected.shape
            limit = ORDER * FOLDED * rms(rounded - expected) + unit * np.abs(expected).max()
            assert rms(value - expected) <= limit, f"optimisations {level}"


def rms(values: np.ndarray[Any, Any]) -> float:
    """Root mean square."""
    return math.sqrt(float(np.mean(np.square(values.astype(np.float64)))))


def convs_of(path: Path) -> dict[str, list[ConvOfFile]]:
    """The convolutions of a file by the site in their metadata."""
    found: dict[str, list[ConvOfFile]] = defaultdict(list)
    for node in onnx.load(path).graph.node:
        if node.op_type not in CONVS:
            continue
        props = {entry.key: entry.value for entry in node.metadata_props}
        attributes = {entry.name: entry.i for entry in node.attribute}
        position = props.get("groupfx.group")
        found[props["groupfx.site"]].append(
            ConvOfFile(
                node.op_type,
                attributes.get("group", 1),
                None if position is None else int(position),
                len(node.input) > 2,
            )
        )
    return dict(found)


def operators(path: Path) -> list[str]:
    """The operator of each node, in order."""
    return [node.op_type for node in onnx.load(path).graph.node]


def assert_clean(path: Path, *others: Path) -> None:
    """The checker takes the file, and it tells nothing of the machine that it was made on."""
    onnx.checker.check_model(str(path), full_check=True)
    proto = onnx.load(path, load_external_data=False)
    assert not proto.functions
    assert not list(_doc_strings(proto))
    keys = {entry.key for entry in _metadata(proto)}
    assert all(key.startswith("groupfx.") for key in keys), keys
    data = b"".join(file.read_bytes() for file in (path, *others))
    found = [secret for secret in secrets() if secret.encode() in data]
    assert not found, found


def secrets() -> list[str]:
    """What must not be in a file: places, people, hosts, and texts of stack traces."""
    here = Path(__file__).resolve()
    places = [str(here.parent), str(here.parents[2]), str(Path.home()), str(Path.cwd())]
    people = [name for name in (getpass.getuser(), socket.gethostname()) if len(name) > 3]
    traces = [".py", 'File "', "torch.nn.modules", "aten::", "aten.", "stack_trace", "pkg.torch"]
    return [text for text in (*places, *people, *traces, "site-packages") if len(text) > 2]


def _doc_strings(message: Any) -> Iterator[str]:
    for field, value in message.ListFields():
        if field.name == "doc_string" and value:
            yield value
        for part in _messages(field, value):
            yield from _doc_strings(part)


def _metadata(message: Any) -> Iterator[Any]:
    for field, value in message.ListFields():
        if field.name == "metadata_props":
            yield from value
        else:
            for part in _messages(field, value):
                yield from _metadata(part)


def _messages(field: Any, value: Any) -> list[Any]:
    if field.message_type is None:
        return []
    return [value] if hasattr(value, "ListFields") else list(value)
