"""What a convolution of an ONNX file is called: by its module, wherever an exporter left it."""

import warnings
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

import groupfx
from groupfx.deploy.graph.node_names import module_of, site_name, told_name

SCOPES = "pkg.torch.onnx.name_scopes"
HIERARCHY = "pkg.torch.onnx.class_hierarchy"


def conv(name: str, weight: str = "onnx::Conv_7", **metadata: str) -> ir.Node:
    """A convolution with these names, as a file would have it."""
    held = ir.Value(name=weight, const_value=ir.tensor([[[1.0]]], name=weight))
    ir.Graph([], [], nodes=[], initializers=[held])
    node = ir.node("Conv", [ir.val("x"), held], name=name or None)
    node.metadata_props.update(metadata)
    return node


def scoped(*scopes: str) -> dict[str, str]:
    return {SCOPES: str(list(scopes))}


NAMED: dict[str, tuple[ir.Node, str]] = {
    "scopes": (conv("node_Conv_494", **scoped("", "a", "a.conv2", "conv2d_3")), "a.conv2"),
    "scopes and weight": (
        conv("node_Conv_4", "a.conv2.weight", **scoped("", "a", "a.conv2", "conv2d")),
        "a.conv2",
    ),
    "a function": (conv("node_Conv_4", "a.kernel", **scoped("", "a", "conv2d")), "a.kernel"),
    "at the root": (conv("node_Conv_4", "kernel", **scoped("", "conv2d")), "kernel"),
    "computed at the root": (conv("node_Conv_4", **scoped("", "conv2d")), "node_Conv_4"),
    "another's equal weight": (
        conv("node_Conv_4", "b.conv.weight", **scoped("", "a", "a.conv", "conv2d")),
        "a.conv",
    ),
    "namespace": (
        conv("node_conv2d", namespace=": net.Net/a: net.Block/a.conv2: torch.nn.Conv2d/c: aten.c"),
        "a.conv2",
    ),
    "older": (conv("/a/a.0/conv2/Conv"), "a.0.conv2"),
    "older, nested": (conv("/features/features.0/features.0.3/Conv"), "features.0.3"),
    "older, second call": (conv("/a/conv2_1/Conv", "a.conv2.weight"), "a.conv2"),
    "older, in a dict": (conv("/left/Conv", "branches.left.weight"), "branches.left"),
    "older, a function": (conv("/a/Conv", "a.kernel"), "a.kernel"),
    "older, a name with a number": (conv("/a/conv_1/Conv_2"), "a.conv_1"),
    "oldest": (conv("Conv_12", "a.conv2.weight"), "a.conv2"),
    "without a name": (conv("", "a.conv2.weight"), "a.conv2"),
    "simplified": (conv("node_Conv_494", "a.conv2.weight"), "a.conv2"),
    "no more than a number": (conv("Conv_12"), "Conv_12"),
    "of tensorflow": (conv("model/conv1/Conv2D", "model/conv1/kernel"), "model/conv1/Conv2D"),
    "a user's own": (conv("first", "other.weight"), "first"),
    "a path that is none": (conv("/home/x", "w"), "/home/x"),
    "not a list": (conv("here", **{SCOPES: "{'a': 1}"}), "here"),
    "no Python": (conv("here", **{SCOPES: "['a', "}), "here"),
    "code": (conv("here", **{SCOPES: "__import__('os').abort()"}), "here"),
    "numbers": (conv("here", **{SCOPES: "[1, 2, 3]"}), "here"),
    "deep": (conv("here", **{SCOPES: "[" * 9000}), "here"),
    "huge": (conv("here", **{SCOPES: str(["x" * 10**6] * 3)}), "here"),
    "empty": (conv("here", **{SCOPES: "", "namespace": ""}), "here"),
    "a line end": (conv("n", **scoped("", "a\nok: same", "c")), "a\\nok: same"),
    "ours": (conv("n", **{"groupfx.site": "a.b", **scoped("", "c", "c")}), "a.b"),
}


@pytest.mark.parametrize(("node", "name"), NAMED.values(), ids=NAMED.keys())
def test_a_convolution_is_called_by_its_module(node: ir.Node, name: str) -> None:
    assert site_name(node) == name


def test_an_operator_is_told_with_the_module_that_it_comes_from() -> None:
    assert told_name(conv("node_add_1", **scoped("", "a.b", "add"))) == "node_add_1 of a.b"
    assert told_name(conv("node_add_1", **scoped("", "add"))) == "node_add_1"
    assert told_name(conv("/a/Add")) == "/a/Add"
    assert module_of(conv("Add_3")) is None


class NamedBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, groups=2)
        self.bn, self.act = nn.BatchNorm2d(channels), nn.ReLU()
        self.kernel = nn.Parameter(torch.randn(channels, channels // 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn(self.conv1(x)))
        return x + self.conv1(nn.functional.conv2d(y, self.kernel, groups=4))


class NamedNet(nn.Module):
    """Sequences in sequences, lists, dicts, functions, second calls and a computed weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.layer1 = nn.Sequential(
            nn.Sequential(nn.Conv2d(8, 8, 1, groups=2), nn.ReLU()), NamedBlock(8)
        )
        self.blocks = nn.ModuleList([NamedBlock(8), NamedBlock(8)])
        self.up = nn.ModuleDict({"a": nn.ConvTranspose2d(8, 8, 2, 2, groups=2)})
        self.w = nn.Parameter(torch.randn(8, 4, 1, 1))
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1, groups=4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.normed(nn.functional.conv2d(self.up["a"](x), self.w, groups=2))


EXPORTERS: dict[str, dict[str, Any]] = {
    "dynamo": {"dynamo": True},
    "dynamo, as it came": {"dynamo": True, "optimize": False},
    "torchscript": {"dynamo": False},
    "torchscript, not folded": {
        "dynamo": False,
        "training": torch.onnx.TrainingMode.PRESERVE,
        "do_constant_folding": False,
    },
}


def exported(folder: Path, **how: Any) -> tuple[nn.Module, Tensor, Path]:
    torch.manual_seed(3)
    model, x, path = NamedNet().eval(), torch.randn(2, 3, 6, 6), folder / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), path, **how)
    return model, x, path


@pytest.mark.parametrize("how", EXPORTERS.values(), ids=EXPORTERS.keys())
def test_torchs_exporters_name_sites_as_find_does(how: dict[str, Any], tmp_path: Path) -> None:
    model, x, path = exported(tmp_path, **how)
    names = [site.name for site in groupfx.find(model, (x,))]
    assert len(names) == 13
    assert [site.name for site in groupfx.find_onnx(path)] == names
    only = groupfx.rewrite_onnx(path, None, passes=["split-grouped-conv:only=blocks.0.kernel"])
    assert [site.name for site in only.rewrite.sites] == ["blocks.0.kernel"]


def test_a_wrong_file_of_torchs_is_told_by_modules(tmp_path: Path) -> None:
    model, x, path = exported(tmp_path, dynamo=True)
    right = groupfx.validate(model, path, (x,))
    assert right.ok
    assert any("by the names of their modules" in note for note in right.notes)
    proto = onnx.load(path)
    (kernel,) = [one for one in proto.graph.initializer if one.name == "blocks.1.kernel"]
    array = onnx.numpy_helper.to_array(kernel).copy()
    array[3] *= 1.5
    kernel.CopyFrom(onnx.numpy_helper.from_array(array, kernel.name))
    onnx.save(proto, tmp_path / "wrong.onnx")
    assert "the site blocks.1.kernel: " in (
        groupfx.validate(model, tmp_path / "wrong.onnx", (x,)).blame or ""
    )
    proto = onnx.load(path)
    add = [node for node in proto.graph.node if node.op_type == "Add"][1]
    add.op_type = "Sub"
    onnx.save(proto, tmp_path / "wrong.onnx")
    blame = groupfx.validate(model, tmp_path / "wrong.onnx", (x,)).blame or ""
    assert f"the operator Sub {add.name} of blocks.0: " in blame
