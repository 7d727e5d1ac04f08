"""Files of what is large or comes from elsewhere: masks, orders of channels, exported programs."""

import copy
import re
import types
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import groupfx
from groupfx.emit import emit_python
from groupfx.errors import RewriteError
from groupfx.nn import Flgc2d
from tests.emit.emitted import changed, differences, loaded
from tests.models import zoo_models as zm


def learned(form: str, *widths: int) -> tuple[str, nn.Module, groupfx.Result, Tensor]:
    """The file of layers with learned groups, and what it was made of."""
    torch.manual_seed(3)
    layers = [Flgc2d(n, m, 1, group_num=4) for n, m in pairwise(widths)]
    model = nn.Sequential(*layers).double().eval()
    x = torch.randn(2, widths[0], 2, 2, dtype=torch.float64)
    passes = [f"freeze-learned-groups:form={form}"]
    result = groupfx.rewrite(model, (x,), passes=passes, verify=False)
    return emit_python(result), model, result, x


def test_a_mask_of_many_numbers_is_written() -> None:
    source, model, result, x = learned("dense", 96, 64)
    assert source.count("\n") < 180
    assert differences(changed(source, model), result, (x,)) == []


def test_a_wrong_mask_is_seen() -> None:
    source, model, result, x = learned("dense", 96, 64)
    spoiled = re.sub(r"0x[0-9a-f]+", "0x1", source, count=1)
    assert differences(changed(spoiled, model), result, (x,)) != []


def test_each_gather_has_an_order_of_its_own() -> None:
    source, model, result, x = learned("bucketed", 32, 40, 32)
    assert "NUMBERS[" in source
    assert differences(changed(source, model), result, (x,)) == []


def test_what_a_mask_hides_stays_in_a_checkpoint() -> None:
    """`changed` compares the way back with the original to the bit; here it is trained as well."""
    source, model, _, x = learned("dense", 8, 12)
    space: dict[str, Any] = {}
    exec(source, space)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    made = space["rewrite"](model)
    made(x).sum().backward()
    torch.optim.SGD(made.parameters(), 0.1).step()
    after = space["from_branches"](made.state_dict(), before)
    old, new = before["0.conv.weight"], after["0.conv.weight"]
    hidden = made[0].mask.logical_not().expand_as(old)
    assert hidden.any()
    assert torch.equal(old[hidden], new[hidden])
    assert (old != new)[~hidden].all()


@pytest.mark.filterwarnings("ignore")
def test_an_exported_program_has_a_class_for_each_kind_of_block() -> None:
    blocks = [zm.ResNeXtBlock(6, 12, 3), zm.ResNeXtBlock(6, 12, 3), zm.ResNeXtBlock(6, 16, 4)]
    model, x = nn.Sequential(*blocks).eval(), torch.randn(2, 6, 5, 5)
    exported = torch.export.export(model, (x,)).module()
    result = groupfx.rewrite(exported, (x,), verify=False)
    source = emit_python(result)
    assert source.count("class ResNeXtBlock") == 1
    assert differences(loaded(source, result), result, (x,)) == []


class Padded(nn.Module):
    """Pads by the parity of the size, which a trace cannot follow and a script can."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, groups=2)
        self.norm = norm
        self.again = nn.Sequential(self.conv, self.norm)  # other names of both

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] % 2 == 1:
            x = F.pad(x, [0, 1, 0, 1])
        return self.norm(self.conv(x))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("norm", [nn.BatchNorm2d(6), nn.ReLU()], ids=["norm", "relu"])
@pytest.mark.parametrize("make", [Padded, lambda norm: Padded(norm).again], ids=["swap", "trace"])
def test_a_changed_model_can_be_scripted(
    make: Callable[[nn.Module], nn.Module], norm: nn.Module, tmp_path: Path
) -> None:
    model, x = make(norm).eval(), torch.randn(2, 4, 7, 7)
    result = groupfx.rewrite(model, (x,), verify=False)
    (tmp_path / "scripted.py").write_text(emit_python(result))
    made = changed(emit_python(result), copy.deepcopy(model))
    assert torch.equal(made(x), result.model(x))
    # A script reads the source of what it scripts.
    file = types.ModuleType("scripted")
    SourceFileLoader("scripted", str(tmp_path / "scripted.py")).exec_module(file)
    scripted = torch.jit.script(file.rewrite(model))
    assert torch.equal(scripted(x), made(x))


def test_each_tensor_is_cut_once_for_all_branches() -> None:
    model = nn.Sequential(nn.Conv2d(64, 64, 1, groups=32), nn.BatchNorm2d(64))
    result = groupfx.rewrite(model, (torch.randn(2, 64, 3, 3),), verify=False)
    space: dict[str, Any] = {}
    exec(emit_python(result), space)
    cut, calls = space["cut"], []
    space["cut"] = lambda tensor, groups: calls.append(tensor) or cut(tensor, groups)
    space["rewrite"](model)
    assert len(calls) == 2 + 5  # weight and bias, and what a BatchNorm holds


@pytest.mark.parametrize("way", ["trace", "modules"])
def test_a_file_that_does_not_run_is_not_given_out(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("model", "graph"):
        monkeypatch.setattr(f"groupfx.emit.{kind}_file", lambda *_: "import torch\n\nnothing()\n")
    model = nn.Sequential(nn.Conv2d(4, 4, 1, groups=2))
    result = groupfx.rewrite(model, (torch.randn(2, 4, 3, 3),), way=way, verify=False)
    with pytest.raises(RewriteError, match=r"does not run \(NameError: name 'nothing'"):
        emit_python(result)


def test_defaults_that_a_trace_recorded_are_not_told() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1, groups=2)

        def forward(self, x: Tensor) -> Tensor:
            return F.leaky_relu(F.relu(self.conv(x)), 0.5)[..., :2]

    x = torch.randn(2, 4, 3, 3)
    result = groupfx.rewrite(fx.symbolic_trace(Net()), (x,), verify=False)
    source = emit_python(result)
    assert "x = F.relu(x)\n" in source
    assert "F.leaky_relu(x, negative_slope=0.5)" in source
    assert "x[..., :2]" in source
    assert differences(loaded(source, result), result, (x,)) == []
