"""Models that a function makes, as any command takes them; what has no values is refused."""

from pathlib import Path

import pytest

from tests.cli.runs import Cli

MADE = """
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)).eval()

def other():
    made = net()
    made[0].weight.data[1] *= 2
    return made

def meta():
    return net().to("meta")

def half_meta():
    made = net()
    made[1].running_mean = made[1].running_mean.to("meta")
    return made

def fake():
    with FakeTensorMode():
        return nn.Sequential(nn.Conv2d(4, 6, 3, groups=2))
"""


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    (tmp_path / "made.py").write_text(MADE)
    return Cli(capsys, tmp_path, monkeypatch)


def test_two_made_models_are_compared(cli: Cli) -> None:
    shape = ("--input-shape", "2,4,5,7")
    same = cli("validate", "made.py:net", "made.py:net", *shape)
    assert same.code == 0, same.err
    different = cli("validate", "made.py:net", "made.py:other", *shape)
    assert different.code == 1
    assert "the site 0: " in different.err


EMPTY = {
    "meta": "0.weight lies on the device meta",
    "half_meta": "1.running_mean lies on the device meta",
    "fake": "0.weight is a FakeTensor",
}
COMMANDS = {
    "rewrite": ("rewrite", "{}"),
    "inspect": ("inspect", "{}"),
    "export": ("export", "{}", "-o", "net.onnx"),
    "tune": ("tune", "{}", "-o", "net.onnx"),
    "reference": ("validate", "{}", "made.py:net"),
    "candidate": ("validate", "made.py:net", "{}"),
}


@pytest.mark.parametrize("name", EMPTY)
@pytest.mark.parametrize("argv", COMMANDS.values(), ids=COMMANDS.keys())
def test_a_model_without_values_is_refused(cli: Cli, name: str, argv: tuple[str, ...]) -> None:
    done = cli(*(part.format(f"made.py:{name}") for part in argv))
    assert done.code == 2
    assert f"what made.py:{name} returned has no values: {EMPTY[name]}; make it on" in done.err


@pytest.mark.parametrize("command", ["rewrite", "inspect", "groups"])
def test_links_that_lead_nowhere_are_no_misspelt_names(cli: Cli, command: str) -> None:
    Path("a.pt").symlink_to("b.pt")
    Path("b.pt").symlink_to("a.pt")
    done = cli(command, "a.pt")
    assert done.code == 2
    assert "a.pt is a link that leads to no file" in done.err
