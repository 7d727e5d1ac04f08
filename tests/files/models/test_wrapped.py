"""Checkpoints as people have them: wrapped, profiled, old, and saved in other protocols.

The right answer is torch's own: the weights that were saved, whatever the names they were under.
"""

from __future__ import annotations

import argparse
import collections
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import groupfx
from groupfx.errors import FileError, UsageError
from groupfx.files.checkpoints import read_checkpoint
from groupfx.files.models import read_model
from groupfx.state.wrapping import unwrapped, without_wrappers

State = dict[str, Tensor]
CODE = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8), nn.Sequential(nn.Conv2d(8, 6, 1, groups=2))
    )
"""
X = torch.randn(2, 4, 7, 7)


def network() -> nn.Module:
    space: dict[str, Callable[[], nn.Module]] = {}
    exec(CODE, space)  # type: ignore[arg-type]
    return space["build"]().eval()


def under(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + key: value for key, value in state.items()}


def profiled(state: State) -> State:
    counts = {
        f"{k}total_{what}": torch.zeros(1) for k in ("", "0.", "2.0.") for what in ("ops", "params")
    }
    return state | counts


READ: dict[str, tuple[Callable[[State], State], str | None]] = {
    "plain": (dict, None),
    "data parallel": (under("module."), "module.0.weight as 0.weight"),
    "compiled": (under("_orig_mod."), "_orig_mod.0.weight as 0.weight"),
    "both": (under("module._orig_mod."), "module._orig_mod.0.weight as 0.weight"),
    "a part compiled": (
        lambda s: {k.replace("2.0.", "2._orig_mod.0."): v for k, v in s.items()},
        "2._orig_mod.0.weight as 2.0.weight",
    ),
    "a part parallel": (
        lambda s: {k.replace("2.0.", "2.module.0."): v for k, v in s.items()},
        "2.module.0.weight as 2.0.weight",
    ),
    "lightning": (
        lambda s: under("model.")(s) | {"criterion.weight": torch.ones(6)},
        "1 tensors that are not under model. were left out",
    ),
    "lightning with a copy": (
        lambda s: {f"ema.{k}": v + 1 for k, v in s.items()} | under("net._orig_mod.")(s),
        "not under net. were left out",
    ),
    "profiler": (profiled, "6 tensors of a profiler were left out, such as total_ops"),
    "profiler, parallel": (lambda s: under("module.")(profiled(s)), "6 tensors of a profiler"),
    "old": (
        lambda s: {k: v for k, v in s.items() if "num_batches" not in k},
        "1 counters of batches are missing, such as 1.num_batches_tracked",
    ),
}
WRONG: dict[str, tuple[Callable[[State], State], str]] = {
    "half in a wrapper": (
        lambda s: {f"module.{k}" if k[0] == "0" else k: v for k, v in s.items()},
        "2 missing: 0.weight, 0.bias",
    ),
    "one missing": (lambda s: {k: v for k, v in s.items() if k != "0.bias"}, "1 missing: 0.bias"),
    "one missing in a wrapper": (
        lambda s: under("module.")({k: v for k, v in s.items() if k != "0.bias"}),
        "1 missing: 0.bias",
    ),
    "one more": (lambda s: s | {"3.weight": torch.ones(2)}, "1 unexpected: 3.weight"),
    "two alike": (lambda s: under("student.")(s) | under("teacher.")(s), "missing: 0.weight"),
}


@pytest.fixture
def arch(tmp_path: Path) -> str:
    (tmp_path / "arch.py").write_text(CODE)
    return f"{tmp_path / 'arch.py'}:build"


def saved(folder: Path, found: object, **options: object) -> Path:
    torch.save(found, folder / "c.pth", **options)  # type: ignore[arg-type]
    return folder / "c.pth"


@pytest.mark.parametrize(("change", "told"), READ.values(), ids=READ)
def test_weights_under_other_names_are_read(
    change: Callable[[State], State], told: str | None, arch: str, tmp_path: Path
) -> None:
    model = network()
    state = change(model.state_dict())
    found = read_model(saved(tmp_path, {"state_dict": state}), arch=arch)
    assert torch.equal(found.model.eval()(X), model(X))
    assert any(told in note for note in found.notes) if told else not found.notes
    result = groupfx.rewrite(network(), (X,), verify=False)
    result.state_dict_map.load_original(state)
    assert torch.allclose(result.model.eval()(X), model(X), atol=1e-6)


@pytest.mark.parametrize(("change", "told"), WRONG.values(), ids=WRONG)
def test_a_part_of_the_weights_is_refused(
    change: Callable[[State], State], told: str, arch: str, tmp_path: Path
) -> None:
    state = change(network().state_dict())
    with pytest.raises(FileError, match=told):
        read_model(saved(tmp_path, {"state_dict": state}), arch=arch)
    with pytest.raises(UsageError, match="not a checkpoint of the original model"):
        groupfx.rewrite(network(), (X,), verify=False).state_dict_map.load_original(state)


def test_a_model_whose_own_names_look_wrapped_keeps_them() -> None:
    own = ["module.weight", "module.bias"]
    assert unwrapped(own, own).names == {name: name for name in own}
    assert unwrapped(["weight", "bias"], own).names == {
        "module.weight": "weight",
        "module.bias": "bias",
    }
    assert without_wrappers(["module.weight", "bias"]) == {
        "module.weight": "module.weight",
        "bias": "bias",
    }


def test_a_checkpoint_read_as_data_has_the_names_of_the_network(tmp_path: Path) -> None:
    model = network()
    path = saved(tmp_path, under("module._orig_mod.")(model.state_dict()))
    assert read_checkpoint(path).shapes.keys() == model.state_dict().keys()


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_protocol_that_torch_reads_with_trust_alone_is_named(
    protocol: int, zipped: bool, arch: str, tmp_path: Path
) -> None:
    model = network()
    options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": zipped}
    path = saved(tmp_path, model.state_dict(), **options)
    with pytest.raises(FileError, match=f"saved with pickle_protocol={protocol}.*--trust-pickle"):
        read_model(path, arch=arch)
    assert torch.equal(read_model(path, arch=arch, trust_pickle=True).model.eval()(X), model(X))


def test_a_counter_of_a_scheduler_does_no_harm(arch: str, tmp_path: Path) -> None:
    model = network()
    schedule = {"milestones": collections.Counter({30: 1, 60: 2})}
    path = saved(tmp_path, {"state_dict": model.state_dict(), "lr_scheduler": schedule})
    assert torch.equal(read_model(path, arch=arch).model.eval()(X), model(X))
    path = saved(tmp_path, {"state_dict": model.state_dict(), "args": argparse.Namespace(lr=1)})
    with pytest.raises(FileError, match=r"argparse\.Namespace.*--trust-pickle"):
        read_model(path, arch=arch)


WRAPPED: Mapping[str, Callable[[nn.Module], object]] = {
    "parallel": nn.DataParallel,
    "parallel in a dict": lambda m: {"model": nn.DataParallel(m), "epoch": 3},
    "twice": lambda m: nn.DataParallel(nn.DataParallel(m)),
    "once scripted": lambda m: (torch.jit.script(m), m)[1],
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_the_module_inside_is_the_network(
    wrap: Callable[[nn.Module], object], trust: bool, tmp_path: Path
) -> None:
    model = network()
    want = model(X)
    found = read_model(saved(tmp_path, wrap(model)), trust_pickle=trust).model
    assert type(found) is nn.Sequential
    assert torch.equal(found(X), want)
