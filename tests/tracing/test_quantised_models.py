"""Models that torch.ao or torchao quantised: refused by name, with the way that works."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.ao.quantization.fx._decomposed  # the operators of a graph after convert_pt2e
from torch import Tensor, nn
from torch.ao import quantization

import groupfx
from groupfx.errors import ModelError
from groupfx.tracing.quantised import quantised_layers
from tests.cli.runs import Cli

X = torch.randn(2, 4, 7, 5)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 6, 1)).eval()


def quiet(call: Callable[..., Any], *arguments: Any) -> Any:
    """The quantisers of torch.ao warn that they will move elsewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call(*arguments)


def eager() -> nn.Module:
    stubs = quantization.QuantStub(), quantization.DeQuantStub()
    model = nn.Sequential(stubs[0], network(), stubs[1]).eval()
    model.qconfig = quantization.get_default_qconfig("x86")
    prepared = quiet(quantization.prepare, model)
    prepared(X)
    return quiet(quantization.convert, prepared)


def by_fx(name: str = "convert_fx") -> nn.Module:
    from torch.ao.quantization import quantize_fx

    mapping = quantization.get_default_qconfig_mapping("x86")
    prepared = quiet(quantize_fx.prepare_fx, network(), mapping, (X,))
    prepared(X)
    return quiet(getattr(quantize_fx, name), prepared)


class Decomposed(nn.Module):
    """What a graph computes after convert_pt2e: pairs around values, a dequantised weight."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randint(-127, 127, (8, 2, 3, 3), dtype=torch.int8))
        self.register_buffer("scales", torch.rand(8) / 100 + 0.01)
        self.register_buffer("zeros", torch.zeros(8, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        pair = torch.ops.quantized_decomposed
        steps = 0.05, 0, -128, 127, torch.int8
        x = pair.dequantize_per_tensor(pair.quantize_per_tensor(x, *steps), *steps)
        of_weight = self.scales, self.zeros, 0, -127, 127, torch.int8
        weight = pair.dequantize_per_channel(self.weight, *of_weight)
        return torch.conv2d(x, weight, None, groups=2)


def pt2e() -> nn.Module:
    return torch.export.export(Decomposed(), (X,)).module()


def torchao_module() -> nn.Module:
    """Torchao is no dependency: its modules are known by where their class is defined."""
    kind = type("QuantizedConv2d", (nn.Conv2d,), {"__module__": "torchao.quantization.layers"})
    return nn.Sequential(kind(4, 8, 3, groups=2)).eval()


class AffineQuantizedTensor(Tensor):
    """As torchao's weights are."""


AffineQuantizedTensor.__module__ = "torchao.dtypes.affine_quantized_tensor"


def torchao_weight() -> nn.Module:
    model = network()
    held = model[0].weight.detach().as_subclass(AffineQuantizedTensor)
    model[0]._parameters["weight"] = nn.Parameter(held, requires_grad=False)
    return model


CASES: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "eager": (eager, "1.0 (torch.ao.nn.quantized.modules.conv.Conv2d), 1.2 (", "dynamo=False"),
    "fx": (by_fx, "0 (torch.ao.nn.intrinsic.quantized.modules.conv_relu.Conv", "dynamo=False"),
    "reference": (
        lambda: by_fx("convert_to_reference_fx"),
        "0.0 (torch.ao.nn.quantized.reference.modules.conv.Conv2d), 2 (",
        "Convert it by convert_fx, not to reference modules",
    ),
    "pt2e": (pt2e, "conv2d (aten.conv2d.default of a dequantised weight) runs", "dynamo=True"),
    "torchao-module": (torchao_module, "0 (torchao.quantization.layers.Quant", "dynamo=False"),
    "torchao-weight": (
        torchao_weight,
        "0 (Conv2d with a weight of AffineQuantizedTensor) runs on whole numbers",
        "dynamo=False",
    ),
}


LONG = {"fx", "reference"}
"""The quantiser of graphs takes seconds to be imported."""


@pytest.mark.parametrize(
    ("make", "names", "way"),
    [
        pytest.param(*case, id=name, marks=[pytest.mark.long] if name in LONG else [])
        for name, case in CASES.items()
    ],
)
def test_a_quantised_model_is_refused_by_name(
    make: Callable[[], nn.Module], names: str, way: str, tmp_path: Path
) -> None:
    model = make()
    for call in (groupfx.find, groupfx.rewrite):
        with pytest.raises(ModelError) as raised:
            call(model, X)
        message = str(raised.value)
        assert message.startswith(names)
        assert "quantised convolutions are not rewritten in torch" in message
        assert way in message
        assert "groupfx rewrite model.onnx" in message
    with pytest.raises(ModelError, match="groupfx rewrite model"):
        groupfx.export(model, (X,), tmp_path / "model.onnx", passes=["split-grouped-conv"])


EITHER = [eager, pytest.param(by_fx, marks=pytest.mark.long)]


@pytest.mark.parametrize("make", EITHER)
def test_packed_weights_are_not_exported(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"torch\.export takes no packed weights of whole numbers"):
        groupfx.export(make(), (X,), tmp_path / "model.onnx")


@pytest.mark.parametrize("make", EITHER)
def test_the_way_that_works_for_packed_weights(
    make: Callable[[], nn.Module], tmp_path: Path
) -> None:
    model, path = make(), tmp_path / "model.onnx"
    quiet(lambda: torch.onnx.export(model, (X,), str(path), dynamo=False))
    result = groupfx.rewrite_onnx(path, tmp_path / "split.onnx")
    assert [site.branches for site in result.rewrite.sites] == [2]
    assert result.validation is not None
    assert result.validation.ok


@pytest.mark.long
def test_the_file_is_the_float_network_to_the_noise_of_its_steps(tmp_path: Path) -> None:
    model, path = eager(), tmp_path / "model.onnx"
    quiet(lambda: torch.onnx.export(model, (X,), str(path), dynamo=False))
    exact = nn.Sequential(nn.Identity(), network(), nn.Identity()).eval()
    found = groupfx.validate(exact, path, (X,))
    assert found.ok, found.blame
    assert {site.name for site in found.noise} == {"1.0", "1.2"}
    assert found.yardstick == "quantisation noise"


@pytest.mark.long
def test_the_way_that_works_for_a_graph(tmp_path: Path) -> None:
    model, path = pt2e(), tmp_path / "model.onnx"
    groupfx.export(model, (X,), path)
    result = groupfx.rewrite_onnx(path, tmp_path / "split.onnx")
    assert [site.branches for site in result.rewrite.sites] == [2]
    assert result.validation is not None
    assert result.validation.ok


def test_what_is_left_in_floats_is_rewritten() -> None:
    """A quantised linear layer is no convolution, and observers quantise nothing yet."""
    model = nn.Sequential(network(), nn.Flatten(), nn.Linear(6 * 15, 3)).eval()
    mixed = quiet(quantization.quantize_dynamic, model, {nn.Linear})
    assert [layer.path for layer in quantised_layers(mixed)] == ["2"]
    assert [site.name for site in groupfx.rewrite(mixed, X).report.sites] == ["0.0"]
    aware = quiet(
        quantization.prepare_qat, nn.Sequential(network()).train(), {nn.Linear: nn.Linear}
    )
    assert not list(quantised_layers(aware))


def test_the_command_line_says_it_too(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli = Cli(capsys, tmp_path, monkeypatch)
    for command in ("inspect", "rewrite", "export"):
        more = ["-o", "m.onnx"] if command == "export" else []
        torch.save(Quantised().state_dict(), "state.pt")
        arch = f"{__name__}:Quantised"
        run = cli(command, "state.pt", "--arch", arch, "--input-shape", "2,4,7,5", *more)
        assert run.code == 2
        said = " ".join(run.err.split())
        assert "layer (torchao.quantization.layers.Quant" in said
        assert "rewrite the file: groupfx rewrite model.onnx" in said


class Quantised(nn.Module):
    """A model whose convolution is torchao's."""

    def __init__(self) -> None:
        super().__init__()
        (self.layer,) = torchao_module()


def test_a_pickle_that_torch_does_not_restore(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli = Cli(capsys, tmp_path, monkeypatch)
    torch.save(eager(), "int8.pt")
    run = cli("inspect", "int8.pt", "--trust-pickle", "--input-shape", "2,4,7,5")
    assert run.code == 2
    said = " ".join(run.err.split())
    assert "holds a torch.ao.nn.quantized.modules.conv.Conv2d, which torch does not rest" in said
    assert "the file is rewritten: groupfx rewrite model.onnx" in said
