"""`groupfx groups`: one model, a series of checkpoints, pictures, and what cannot be shown."""

import importlib
import json
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from groupfx.cli.commands.groups import SCHEMA
from groupfx.learned.groups import INPUT_SCORES, OUTPUT_SCORES
from groupfx.nn import Flgc2d
from tests.cli.runs import Cli, Run, check_json

FOREIGN = "flgc_of_somebody_else"
# The form of the public code, in a file that is gone when its checkpoints are read.
SOURCE = """
import torch
from torch import nn

class Flgc2d(nn.Module):
    def __init__(self, i, o, k, groups):
        super().__init__()
        self.in_channels_in_group_assignment_map = nn.Parameter(torch.randn(i, groups))
        self.out_channels_in_group_assignment_map = nn.Parameter(torch.randn(o, groups))
        self.conv = nn.Conv2d(i, o, k, bias=False)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 7, 1)
        self.one = Flgc2d(7, 11, 3, 3)
        self.two = Flgc2d(11, 5, 1, 4)
"""


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, tmp_path, monkeypatch)


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[nn.Module]]:
    folder = tmp_path / "script"
    folder.mkdir()
    (folder / f"{FOREIGN}.py").write_text(SOURCE)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(folder)
        module = importlib.import_module(FOREIGN)
    yield module.Net
    sys.modules.pop(FOREIGN, None)


def scores(*groups: int, of: int) -> Tensor:
    """Scores that put channel after channel into the given groups."""
    return 2 * torch.eye(of)[list(groups)] + torch.rand(len(groups), of)


def net() -> nn.Sequential:
    """Two learned layers: one with everything that may happen to groups, and a plain one."""
    model = nn.Sequential(
        OrderedDict(
            first=Flgc2d(5, 7, 3, padding=1, group_num=4),
            norm=nn.BatchNorm2d(7),
            act=nn.ReLU6(),
            last=Flgc2d(7, 4, 1, stride=2, group_num=2, bias=False),
        )
    )
    with torch.no_grad():
        # Inputs 0, 1, 4 in group 0, 2 in 1 (without filters), 3 in 2; group 3 has a filter only.
        model.first.get_parameter(INPUT_SCORES).copy_(scores(0, 0, 1, 2, 0, of=4))
        model.first.get_parameter(OUTPUT_SCORES).copy_(scores(0, 2, 0, 3, 2, 0, 0, of=4))
        model.last.get_parameter(INPUT_SCORES).copy_(scores(0, 1, 0, 1, 0, 1, 0, of=2))
        model.last.get_parameter(OUTPUT_SCORES).copy_(scores(1, 0, 1, 0, of=2))
    return model


FIRST_ROW = ["first", "3x3 5->7", "3/4 1/0 1/2 0/1", "2", "1", "1", "40.0%", "68.6%"]
LAST_ROW = ["last", "1x1 7->4", "4/2 3/2", "-", "-", "-", "50.0%", "57.1%"]


def rows(done: Run) -> list[list[str]]:
    assert done.code == 0, done.err
    return [done.row("first"), done.row("last")]


def as_archive(path: Path) -> None:
    import groupfx

    groupfx.rewrite(net(), torch.randn(2, 5, 8, 8), passes=["split-grouped-conv"]).save(path)


FILES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "module": ("net.pt", lambda path: torch.save(net(), path)),
    "in-a-dict": ("net.pt", lambda path: torch.save({"net": net()}, path)),
    "state-dict": ("net.pt", lambda path: torch.save(net().state_dict(), path)),
    "training": (
        "net.pt",
        lambda path: torch.save({"state_dict": net().state_dict(), "last_epoch": 3}, path),
    ),
    "safetensors": ("net.safetensors", lambda path: save_file(net().state_dict(), path)),
    "ours": ("net.pt", as_archive),
}


@pytest.mark.parametrize(("name", "write"), FILES.values(), ids=FILES)
def test_the_groups_of_a_model_from_any_file(
    cli: Cli, tmp_path: Path, name: str, write: Callable[[Path], object]
) -> None:
    write(tmp_path / name)
    assert rows(cli("groups", name)) == [FIRST_ROW, LAST_ROW]


def test_weights_with_their_model(cli: Cli, tmp_path: Path) -> None:
    torch.save(net().state_dict(), "net.pt")
    done = cli("groups", "net.pt", "--arch", f"{__file__}:net", "--input-shape", "2,5,8,8")
    assert rows(done) == [FIRST_ROW, LAST_ROW]
    # By hand, for one sample: taps x filters x inputs x positions; then BatchNorm and ReLU6.
    elementwise = 3 * 7 * 64
    dense = 9 * 7 * 5 * 64 + 4 * 7 * 16
    exact = 9 * (3 * 4 + 1 * 2) * 64 + (4 * 2 + 3 * 2) * 16
    assert done.row("as trained: dense, under masks")[1:] == [
        f"{dense:,}",
        f"{dense + elementwise:,}",
    ]
    for name in ("sum over learned groups", "frozen"):
        assert done.row(name)[1:] == [f"{exact:,}", f"{exact + elementwise:,}"]
    share = 100 * exact / dense
    assert f"2 layers with learned groups: the groups need {share:.1f}% of their MACs" in done.out
    padded = 9 * 2 * 3 * 4 * 64 + 2 * 4 * 2 * 16
    assert f"{100 * padded / dense:.1f}% where each block of a layer is padded" in done.out


def test_a_foreign_module_is_read_as_data(
    cli: Cli, tmp_path: Path, foreign: type[nn.Module]
) -> None:
    model: Any = foreign()
    torch.save({"net": model}, "net_epoch_4.pth")
    sys.modules.pop(FOREIGN)
    done = cli("groups", "net_epoch_4.pth", "--json", "groups.json")
    assert done.code == 0, done.err
    assert f"net_epoch_4.pth: a pickled {FOREIGN}.Net, read as data" in done.out
    assert "FLOPs not counted: the model itself cannot be run: give --arch" in done.out
    assert FOREIGN not in sys.modules
    document = check_json(Path("groups.json").read_text(), SCHEMA)
    for layer, name in zip(document["layers"], ("one", "two"), strict=True):
        module = getattr(model, name)
        assert layer["name"] == name
        for side, key in (("inputs", INPUT_SCORES), ("filters", OUTPUT_SCORES)):
            owners = getattr(module, key).argmax(1).tolist()
            for number, group in enumerate(layer["groups"]):
                assert group[side] == [c for c, owner in enumerate(owners) if owner == number]


def test_json_of_a_model(cli: Cli, tmp_path: Path) -> None:
    torch.save(net(), "net.pt")
    done = cli("groups", "net.pt", "--input-shape", "3,5,8,8", "--json", "-")
    document = check_json(done.out, SCHEMA)
    assert document["files"] == [{"read": "net.pt", "kind": "module", "notes": [], "epoch": None}]
    first = document["layers"][0]
    assert first["groups"][0] == {"inputs": [0, 1, 4], "filters": [0, 2, 5, 6]}
    assert (first["empty_groups"], first["dead_inputs"]) == ([1, 3], [2])
    assert (first["bias_only_filters"], first["blocks"]) == ([3], 2)
    assert first["macs_per_tap"] == {"dense": 35, "exact": 14, "padded": 24}
    operations = document["operations"]
    assert operations["positions"] == {"first": 64, "last": 16}
    assert operations["dense"]["batch_norm"] == 2 * 7 * 64
    assert operations["exact"] == operations["frozen"]
    assert document["series"] is None


def test_ties_and_nan_are_told(cli: Cli, tmp_path: Path) -> None:
    model = net()
    with torch.no_grad():
        model.first.get_parameter(INPUT_SCORES)[3] = torch.tensor([1.0, 0, 1, 0])
        model.last.get_parameter(OUTPUT_SCORES)[2, 1] = torch.nan
    torch.save(model, "net.pt")
    done = cli("groups", "net.pt", "--json", "groups.json")
    assert done.code == 0, done.err
    assert "first: 1 input in several groups, whose scores tie: 3" in done.out
    assert "last: the scores of 1 filter are NaN after softmax" in done.out
    assert "1 tied" in done.row("first")
    assert "1 NaN" in done.row("last")
    first, last = json.loads(Path("groups.json").read_text())["layers"]
    assert first["tied"] == {"inputs": [3], "filters": []}
    assert (last["nan"]["filters"], last["bias_only_filters"]) == ([2], [2])


def test_a_layer_is_picked_by_its_name(cli: Cli, tmp_path: Path) -> None:
    torch.save(net(), "net.pt")
    done = cli("groups", "net.pt", "--layer", "la*")
    assert done.row("last") == LAST_ROW
    assert not [row for row in done.rows if row[:1] == ["first"]]
    done = cli("groups", "net.pt", "--layer", "middle")
    assert done.code == 2
    assert "no layer fits --layer middle; there are first, last" in done.err


def test_a_model_without_learned_layers_is_done(cli: Cli, tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 1)), "net.pt")
    done = cli("groups", "net.pt", "--plot", "groups.png", "--json", "groups.json")
    assert (done.code, done.err) == (0, "")
    assert "No layer learned groups: there is nothing to show." in done.out
    assert not Path("groups.png").exists()
    assert check_json(Path("groups.json").read_text(), SCHEMA)["layers"] == []


# A series


def write_series(folder: Path) -> list[nn.Sequential]:
    """Three checkpoints, in three forms, in which some channels move."""
    folder.mkdir(exist_ok=True)
    models = [net() for _ in range(3)]
    states = [models[0].state_dict()]
    for model in models[1:]:
        model.load_state_dict(states[0])
    with torch.no_grad():
        # first: input 0 leaves group 0 for 1; last: filters 0 and 1 exchange their groups.
        for model in models[1:]:
            model.first.get_parameter(INPUT_SCORES)[0] = torch.tensor([0.0, 9, 0, 0])
        models[2].last.get_parameter(OUTPUT_SCORES)[[0, 1]] = torch.eye(2)
    torch.save({"net": models[0]}, folder / "net_epoch_9.pth")
    torch.save(models[1].state_dict(), folder / "net_epoch_10.pth")
    torch.save({"state_dict": models[2].state_dict()}, folder / "net_epoch_100.pth")
    torch.save({"state_dict": models[2].state_dict()}, folder / "best.pth")
    return models


def test_a_series_follows_input_channels(cli: Cli, tmp_path: Path) -> None:
    write_series(tmp_path / "run")
    done = cli("groups", "run", "--json", "groups.json")
    assert done.code == 0, done.err
    assert "left out, for they have no epoch of their own: best.pth" in done.out
    tables = done.out.split("first, 5 input channels")[1].split("last, 7 input channels")
    assert [line.split() for line in tables[0].splitlines()[2:5]] == [
        ["epoch", "9", "0/0/3", "0/0/1", "0/0/1", "0/0/0", "0"],
        ["epoch", "10", "-1/0/2", "0/+1/2", "0/0/1", "0/0/0", "2"],
        ["epoch", "100", "0/0/2", "0/0/2", "0/0/1", "0/0/0", "0"],
    ]
    rows = [row for row in done.rows if row and row[0].startswith("epoch")]
    assert rows[-2:] == [["epoch 10", "2", "1", "8.33%"], ["epoch 100", "0", "0", "0.00%"]]
    document = check_json(Path("groups.json").read_text(), SCHEMA)
    assert [file["epoch"] for file in document["files"]] == [9, 10, 100]
    change = document["series"]["steps"][0]["layers"][0]
    assert change["groups"][:2] == [
        {"removed": [0], "added": [], "held": 2},
        {"removed": [], "added": [0], "held": 2},
    ]


def test_a_series_follows_filters(cli: Cli, tmp_path: Path) -> None:
    write_series(tmp_path / "run")
    paths = sorted((tmp_path / "run").glob("net_epoch_*"))
    done = cli("groups", *paths, "--filters", "--verbose")
    assert done.code == 0, done.err
    rows = [row for row in done.rows if row and row[0].startswith("epoch")]
    assert rows[-2:] == [["epoch 10", "0", "0", "0.00%"], ["epoch 100", "4", "2", "18.18%"]]
    assert "epoch 100, group 0: removed filters 1" in done.out
    assert "epoch 100, group 0: added filters 0" in done.out


def test_a_series_in_which_nothing_moves_says_so_in_one_line(cli: Cli, tmp_path: Path) -> None:
    state = net().state_dict()
    for epoch in (1, 2, 30):
        torch.save(state, tmp_path / f"net_epoch_{epoch}.pth")
    done = cli("groups", tmp_path, "--json", "groups.json")
    assert done.out == (
        "nothing moved in 3 checkpoints, epoch 1 to epoch 30: 12 input channels of 2 layers with "
        "learned groups are in the same groups in all of them\n"
    )
    steps = check_json(Path("groups.json").read_text(), SCHEMA)["series"]["steps"]
    assert [step["total"] for step in steps] == [0, 0]
    assert "nothing moved in 3 checkpoints" in cli("groups", tmp_path, "--filters").out


def test_a_folder_with_one_checkpoint_is_one_model(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    torch.save(net(), tmp_path / "run" / "net_epoch_1.pth")
    assert rows(cli("groups", "run")) == [FIRST_ROW, LAST_ROW]


def test_a_narrow_terminal_turns_the_tables(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path / "run")
    wide = cli("groups", "run")
    assert ["epoch 10", "-1/0/2", "0/+1/2", "0/0/1", "0/0/0", "2"] in wide.rows
    monkeypatch.setattr("groupfx.cli.text.screen.Screen.terminal", True)
    monkeypatch.setattr("groupfx.cli.text.screen.Screen.width", 44)
    narrow = cli("groups", "run")
    assert ["group 0", "0/0/3", "-1/0/2", "0/0/2"] in narrow.rows
    tables = narrow.out.split("first, 5 input channels")[1].split("all layers")[0]
    assert max(len(line) for line in tables.splitlines()) <= 44


# Bad input


def badly_shaped(path: Path) -> None:
    state = net().state_dict()
    state[f"last.{INPUT_SCORES}"] = torch.randn(6, 2)
    torch.save(state, path)


def without_a_map(path: Path) -> None:
    state = net().state_dict()
    del state[f"last.{OUTPUT_SCORES}"]
    torch.save(state, path)


def without_a_conv(path: Path) -> None:
    state = net().state_dict()
    del state["last.conv.weight"]
    torch.save(state, path)


def of_integers(path: Path) -> None:
    state = net().state_dict()
    state[f"last.{INPUT_SCORES}"] = torch.ones(7, 2, dtype=torch.int64)
    torch.save(state, path)


def bad_module(path: Path) -> None:
    model = net()
    setattr(model.last, INPUT_SCORES, nn.Parameter(torch.randn(6, 2)))
    torch.save(model, path)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "shape": (badly_shaped, f"net.pt: last: {INPUT_SCORES} has the shape [6, 2]"),
    "shape-in-module": (bad_module, f"last: {INPUT_SCORES} has the shape [6, 2]"),
    "one-map": (without_a_map, f"last has only one of its two maps: no last.{OUTPUT_SCORES}"),
    "no-conv": (without_a_conv, "last: its maps belong to a convolution called last.conv"),
    "integers": (of_integers, "holds int64, and scores are floating-point numbers"),
    "no-network": (lambda path: torch.save({"epoch": 3}, path), "holds no network"),
    "missing": (lambda path: None, "there is no file net.pt"),
}


@pytest.mark.parametrize(("write", "words"), BAD.values(), ids=BAD)
def test_bad_files(cli: Cli, tmp_path: Path, write: Callable[[Path], object], words: str) -> None:
    write(tmp_path / "net.pt")
    done = cli("groups", "net.pt")
    assert (done.code, done.out) == (2, "")
    assert words in done.err


def test_a_folder_without_checkpoints(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    done = cli("groups", "run")
    assert (done.code, done.out) == (2, "")
    assert "run has no checkpoints" in done.err


def test_checkpoints_of_different_networks(cli: Cli, tmp_path: Path) -> None:
    write_series(tmp_path)
    other = net()
    other.last = Flgc2d(7, 4, 1, group_num=3)
    torch.save(other, "net_epoch_11.pth")
    done = cli("groups", *sorted(tmp_path.glob("net_epoch_*")))
    assert (done.code, done.out) == (2, "")
    assert "net_epoch_11.pth are of different networks: the learned layer last is of" in done.err
    other = net()
    other.norm = nn.Linear(2, 3)
    torch.save(other, "net_epoch_11.pth")
    done = cli("groups", *sorted(tmp_path.glob("net_epoch_*")))
    assert done.code == 2
    assert "norm.weight is [7] in one and [3, 2] in the other" in done.err


USAGE = {
    "filters-of-one": (["net.pt", "--filters"], "--filters is for a series"),
    "arch-of-series": (["net.pt", "net.pt", "--arch", "a:b"], "--arch is for one model"),
    "two-folders": ([".", "."], ". is a folder: give one folder, or files"),
    "picture": (["net.pt", "--plot", "a.pdf"], "must end in .png or .svg"),
    "no-folder": (["net.pt", "--plot", "no/a.png"], "there is no folder no"),
    "itself": (["net.pt", "--json", "net.pt"], "both name net.pt"),
    "shape": (["net.pt", "--input-shape", "2,3,8,8"], "cannot be run on the inputs"),
}


@pytest.mark.parametrize(("argv", "words"), USAGE.values(), ids=USAGE)
def test_usage(cli: Cli, tmp_path: Path, argv: list[str], words: str) -> None:
    torch.save(net(), "net.pt")
    done = cli("groups", *argv)
    assert (done.code, done.out) == (2, "")
    assert words in done.err


def test_matplotlib_is_missing(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(net(), "net.pt")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = cli("groups", "net.pt", "--plot", "groups.png")
    assert (done.code, done.out) == (3, "")
    assert (
        "pictures need matplotlib, which is not installed: pip install 'groupfx[plot]'" in done.err
    )
    assert "in a checkout pip install -c constraints.txt -e '.[plot]'" in done.err
    assert cli("groups", "net.pt").code == 0
