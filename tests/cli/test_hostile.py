"""Files and places that are made to do harm, or that a host has by accident: an error, never 70."""

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from tests.cli.runs import SHAPE, Cli, grouped_model, save

FORGED = "conv\nSame function, to rounding."


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, tmp_path, monkeypatch)


def file(name: str = "conv", **attributes: object) -> onnx.ModelProto:
    weight = helper.make_tensor("w", TensorProto.FLOAT, (4, 2, 1, 1), [1.0] * 8)
    node = helper.make_node("Conv", ["x", "w"], ["y"], name=name, **{"group": 2, **attributes})
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, 4, 3, 3)) for n in "xy")
    graph = helper.make_graph([node], "g", [x], [y], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def external(location: str) -> onnx.ModelProto:
    model = file()
    tensor = model.graph.initializer[0]
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return model


def renamed(name: str) -> onnx.ModelProto:
    model = file()
    model.graph.node[0].output[0] = model.graph.output[0].name = name
    return model


def negative() -> onnx.ModelProto:
    model = file()
    model.graph.initializer[0].dims[0] = -4
    return model


REFUSED: dict[str, tuple[onnx.ModelProto, str]] = {
    "no group": (file(group=0), "Conv 'conv' has group=0"),
    "negative groups": (file(group=-2), "Conv 'conv' has group=-2"),
    "no stride": (file(strides=[0, 1]), "Conv 'conv' has strides=[0, 1]"),
    "negative dilation": (file(dilations=[1, -1]), "has dilations=[1, -1]"),
    "negative size": (negative(), "has the shape [-4, 2, 1, 1]"),
    "long location": (external("d" * 5000), "which is no name of a file"),
    "a zero in a location": (external("a\0b"), "which is no name of a file"),
    "a line end in an output": (renamed(FORGED), "a name in it holds control characters"),
}


@pytest.mark.parametrize(("model", "told"), REFUSED.values(), ids=REFUSED)
def test_a_file_that_is_none_is_refused_by_every_command(
    model: onnx.ModelProto, told: str, cli: Cli
) -> None:
    Path("m.onnx").write_bytes(model.SerializeToString())
    Path("good.onnx").write_bytes(file().SerializeToString())
    for argv in (["inspect", "m.onnx"], ["rewrite", "m.onnx"], ["validate", "good.onnx", "m.onnx"]):
        done = cli(*argv)
        assert done.code == 2, done.err
        assert told in done.err
        assert "Same function" not in done.out + done.err.replace("\\nSame", "")


def test_a_name_is_one_line(cli: Cli) -> None:
    Path("m.onnx").write_bytes(file(FORGED).SerializeToString())
    for argv in (["inspect", "m.onnx"], ["rewrite", "m.onnx", "--no-verify"]):
        done = cli(*argv)
        assert done.code == 0, done.err
        assert "conv\\nSame function" in done.out
        assert not any(line.startswith("Same function") for line in done.out.splitlines())
    model = nn.Sequential()
    model.add_module("a\nb", nn.Conv2d(6, 6, 3, groups=2))
    torch.save(model, "m.pt")
    done = cli("inspect", "m.pt", "--trust-pickle", "--input-shape", SHAPE)
    assert "a\\nb" in done.out
    assert not any(line.startswith("b") for line in done.out.splitlines())


@pytest.mark.parametrize("name", ["m.pt", "m.onnx", "m.safetensors"])
@pytest.mark.parametrize("command", ["inspect", "rewrite", "export", "groups"])
def test_what_never_ends_is_no_model(name: str, command: str, cli: Cli) -> None:
    os.mkfifo(name)
    for path in (name, "/dev/zero"):
        done = cli(command, path)
        assert done.code == 2
        assert "is not a regular file" in done.err


def test_links(cli: Cli) -> None:
    model = save(Path("m.pt"), grouped_model())
    before = model.read_bytes()
    Path("a.pt").symlink_to("b.pt")
    Path("b.pt").symlink_to("a.pt")
    Path("link.pt").symlink_to("m.pt")
    for place, told in (("a.pt", "cannot be followed"), ("link.pt", "both name link.pt")):
        done = cli("rewrite", model, "--input-shape", SHAPE, "-o", place, "--force")
        assert done.code == 2
        assert told in done.err
    assert model.read_bytes() == before
    assert cli("rewrite", model, "--input-shape", SHAPE, "-o", "m.pt", "--force").code == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_an_output_that_takes_nothing(tmp_path: Path) -> None:
    save(tmp_path / "m.pt", grouped_model())
    argv = [
        sys.executable,
        "-m",
        "groupfx",
        "rewrite",
        "m.pt",
        "--input-shape",
        SHAPE,
        "--no-verify",
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            argv, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, env=environment
        )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("groupfx: error: the output cannot be written")
    assert "Exception ignored" not in done.stderr
