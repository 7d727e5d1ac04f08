"""Sizes that a graph computes are constants in the file where they can be, and mean the same."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import groupfx
from examples.shufflenet_v1 import shufflenet_v1_g3
from groupfx.deploy.export.constant_sizes import write_sizes
from tests.thinning import one_in

Body = Callable[[Tensor], Tensor]


class Behind(nn.Module):
    """A grouped convolution, and what is done with its result."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, padding=1, groups=2)
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.conv(x))


class WithToken(Behind):
    """A token is put in front of each sequence."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        tokens = y.flatten(2).transpose(1, 2)
        return torch.cat([self.token.expand(y.shape[0], -1, -1), tokens], 1)


def shuffle(y: Tensor) -> Tensor:
    batch, channels, height, width = y.shape
    y = y.view(batch, 2, channels // 2, height, width).transpose(1, 2)
    return y.reshape(batch, channels, height, width)


def heads(y: Tensor) -> Tensor:
    tokens = y.flatten(2).transpose(1, 2)
    split = tokens.reshape(y.shape[0], -1, 2, 3).permute(0, 2, 1, 3)
    return split.reshape(-1, tokens.shape[1], 3)


def gate(y: Tensor) -> Tensor:
    return y * y.mean((2, 3))[:, :, None, None].expand(y.shape[0], 6, 5, 5).sigmoid()


def smaller(y: Tensor) -> Tensor:
    return F.interpolate(y, size=(7, 3), mode="bilinear", align_corners=True)


def larger(y: Tensor) -> Tensor:
    return F.interpolate(y, size=(10, 5), mode="bilinear")


def to_the_end(y: Tensor) -> Tensor:
    return y[: y.shape[0]] + 1


def exported(model: nn.Module, x: Tensor, folder: Path, **options: bool) -> onnx.ModelProto:
    path = folder / "m.onnx"
    groupfx.export(model, (x,), path, overwrite=True, **options)
    return onnx.load(path)


def agree(proto: onnx.ModelProto, model: nn.Module, x: Tensor) -> None:
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, model(x).numpy(), rtol=1e-4, atol=1e-5)


class Normalised(Behind):
    """The exporter writes a GroupNorm as a function of its own, which tells no shapes."""

    def __init__(self, body: Body) -> None:
        super().__init__(body)
        self.norm = nn.GroupNorm(3, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.norm(self.conv(x)))


def unshuffled(y: Tensor) -> Tensor:
    return F.pixel_unshuffle(F.pixel_shuffle(y.repeat(1, 2, 1, 1), 2), 2)


def rolled(y: Tensor) -> Tensor:
    return torch.roll(y, (1, 2), (2, 3))


def zeros(y: Tensor) -> Tensor:
    return y + torch.zeros_like(y)


def ones(y: Tensor) -> Tensor:
    return y * torch.full((y.shape[0], 1, 1, 1), 3.0)


def repeated(y: Tensor) -> Tensor:
    return y + torch.linspace(0, 1, 30).view(1, 6, 1, 5).repeat(y.shape[0], 1, 5, 1)


_MORE = [unshuffled, rolled, zeros, ones, repeated]


@pytest.mark.parametrize(
    "body", one_in(3, [shuffle, heads, gate, smaller, larger, to_the_end, None, *_MORE])
)
def test_no_size_is_computed_where_the_batch_alone_is_open(
    body: Body | None, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = (WithToken(shuffle) if body is None else Behind(body)).eval()
    x = torch.randn(2, 4, 5, 5)
    proto = exported(model, x, tmp_path)
    kinds = Counter(node.op_type for node in proto.graph.node)
    # A token is repeated as often as there are samples: that has no spelling without the number.
    assert kinds["Shape"] == (body is None)
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    for batch in (1, 2, 5):
        agree(proto, model, torch.randn(batch, 4, 5, 5))


def test_the_functions_of_the_exporter_compute_no_size_either(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Normalised(shuffle).eval()
    proto = exported(model, torch.randn(2, 4, 5, 5), tmp_path)
    assert not [node for node in proto.graph.node if node.op_type == "Shape"]
    for batch in (1, 3):
        agree(proto, model, torch.randn(batch, 4, 5, 5))


def stretched(y: Tensor) -> Tensor:
    """What is repeated gives the sum its shape, so that it must be."""
    return y.mean(0, keepdim=True) + torch.ones(y.shape[0], 1, 1, 1)


def joined(y: Tensor) -> Tensor:
    return torch.cat([y, y.new_zeros(y.shape[0], 2, 5, 5)], 1)


@pytest.mark.parametrize("body", [stretched, joined])
def test_what_must_be_repeated_is(body: Body, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Behind(body).eval()
    proto = exported(model, torch.randn(2, 4, 5, 5), tmp_path)
    assert [node for node in proto.graph.node if node.op_type == "Shape"]
    for batch in (1, 2, 5):
        agree(proto, model, torch.randn(batch, 4, 5, 5))


@pytest.mark.parametrize("body", [shuffle, heads])
def test_sizes_that_are_open_too_stay_open(body: Body, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Behind(body).eval()
    proto = exported(model, torch.randn(2, 4, 5, 6), tmp_path, dynamic_sizes=True)
    for shape in ((1, 4, 5, 6), (3, 4, 8, 7)):
        agree(proto, model, torch.randn(shape))


def test_a_shufflenet_has_no_computed_size_left(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = shufflenet_v1_g3().eval()
    proto = exported(model, torch.randn(2, 3, 32, 32), tmp_path)
    kinds = Counter(node.op_type for node in proto.graph.node)
    # Three units concatenate; all others are shuffles and the classifier.
    assert (kinds["Shape"], kinds["Concat"], kinds["Reshape"]) == (0, 3, 33)
    agree(proto, model, torch.randn(5, 3, 32, 32))


@pytest.mark.parametrize(
    ("opset", "after", "number", "expected"),
    [
        (18, (10, 15), 2, [1, 1, 2, 3]),
        (13, (10, 5), 2, [1, 1, 2, 1]),
        (18, (10, 7), 3, [10, 7]),
        (18, (4, 5), 3, [4, 5]),
    ],
)
def test_what_is_enlarged_by_whole_factors_knows_them(
    opset: int, after: tuple[int, int], number: int, expected: list[int]
) -> None:
    """Behind sizes ONNX Runtime leaves its blocked layout where it does not know the batch: a U-Net
    of 1x1 kernels took 1.4 times as long as with the batch fixed.
    """
    x, like = (ir.val(name, ir.DataType.FLOAT, ["batch", 6, 5, 5]) for name in ("x", "like"))
    read = ir.node("Shape", [like])
    made = ir.node("Resize", [x, None, None, read.outputs[0]], {"mode": "linear"})
    made.outputs[0].shape = ir.Shape(["batch", 6, *after])
    graph = ir.Graph([x, like], made.outputs, nodes=[read, made], opset_imports={"": opset})
    write_sizes(ir.Model(graph, ir_version=8))
    given = [value for value in made.inputs[1:] if value is not None]
    (numbers,) = (value.const_value for value in given)
    assert made.inputs.index(given[0]) == number
    assert numbers is not None
    assert numbers.numpy().tolist() == expected
