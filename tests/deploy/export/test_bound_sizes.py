"""Attributes of ONNX that a forward computes from open sizes: those sizes are fixed, and told."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import groupfx
from groupfx.deploy import Dynamic, ExportOptions, prepare_export
from groupfx.running.inputs import ExampleInputs
from tests.thinning import one_in


class Computed(nn.Module):
    """A grouped convolution, and behind it a function that reads the sizes of what comes."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.pre = nn.Conv2d(6, 8, 3, padding=1, groups=2)
        self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.pre(x), self.kernel)


def a_kernel_each(x: Tensor, kernel: Tensor) -> Tensor:
    rows, scale = x.shape[0], x.mean((1, 2, 3)).view(-1, 1, 1, 1, 1)
    kernels = (kernel * scale).reshape(rows * 4, 3, 3, 3)
    image = x[:, :3].reshape(1, rows * 3, *x.shape[2:])
    return F.conv2d(image, kernels, padding=1, groups=rows).view(rows, 4, *x.shape[2:])


def transposed(x: Tensor, kernel: Tensor) -> Tensor:
    rows = x.shape[0]
    image = x[:, :4].reshape(1, rows * 4, *x.shape[2:])
    wide = F.conv_transpose2d(image, kernel.repeat(rows, 1, 1, 1), padding=1, groups=rows)
    return wide.view(rows, 3, *x.shape[2:])


def one_dimension(x: Tensor, kernel: Tensor) -> Tensor:
    rows = x.shape[0]
    line = x[:, :3].flatten(2).reshape(1, rows * 3, -1)
    return F.conv1d(line, kernel[:, :, 0].repeat(rows, 1, 1), groups=rows).view(rows, 4, -1)


def correlated(x: Tensor, kernel: Tensor) -> Tensor:
    rows, channels = x.shape[:2]
    templates = x[:, :, 2:5, 2:5].reshape(rows * channels, 1, 3, 3)
    image = x.reshape(1, rows * channels, *x.shape[2:])
    return F.conv2d(image, templates, groups=rows * channels).view(rows, channels, -1)


BY_BATCH = [a_kernel_each, transposed, one_dimension, correlated]


@pytest.mark.parametrize("function", one_in(2, BY_BATCH))
def test_a_batch_that_decides_the_groups_is_fixed_and_told(
    function: Callable[[Tensor, Tensor], Tensor], tmp_path: Path
) -> None:
    torch.manual_seed(7)
    model, x = Computed(function).eval(), torch.randn(3, 6, 7, 9)
    made = groupfx.export(model, (x,), tmp_path / "net.onnx")
    assert made.inputs[0].shape == (3, 6, 7, 9)
    (note,) = [note for note in made.notes if "batch" in note]
    assert note.endswith(
        "takes its groups from the batch, and in an ONNX file they are a constant: the batch is "
        "fixed to 3"
    )
    assert groupfx.validate(model, tmp_path / "net.onnx", (x,)).ok
    with torch.no_grad():
        model.kernel += 1
    assert groupfx.validate(model, tmp_path / "net.onnx", (x,)).ok is (function is correlated)


BY_SIZE: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "stride": ("stride", lambda x, k: F.conv2d(x[:, :3], k, stride=x.shape[-1] // 3)),
    "padding": ("padding", lambda x, k: F.conv2d(x[:, :3], k, padding=x.shape[-1] // 3)),
}


@pytest.mark.parametrize(("argument", "function"), BY_SIZE.values(), ids=BY_SIZE.keys())
def test_spatial_sizes_that_decide_a_window_are_fixed_and_the_batch_is_not(
    argument: str, function: Callable[[Tensor, Tensor], Tensor]
) -> None:
    torch.manual_seed(7)
    inputs = ExampleInputs.of(torch.randn(3, 6, 9, 9))
    options = ExportOptions(dynamic=Dynamic(sizes=True))
    made = prepare_export(Computed(function).eval(), inputs, options)
    shape = made.model.graph.inputs[0].shape
    assert shape is not None
    assert [size if isinstance(size, int) else None for size in shape] == [None, 6, 9, 9]
    (note,) = [note for note in made.notes if "spatial" in note]
    assert f"takes its {argument} from the spatial sizes" in note
    assert "they are fixed" in note
