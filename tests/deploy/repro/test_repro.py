"""What shows a difference runs without groupfx: 1 while there is one, 0 once it is mended."""

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import groupfx
from groupfx.deploy.repro.judging import difference
from groupfx.errors import FileError
from tests.deploy.validate.small_files import conv_file


class DownAndUp(nn.Module):
    """A grouped convolution with its norm, a transposed one, and an activation between."""

    def __init__(self, act: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.down = nn.Conv2d(4, 6, 3, groups=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.up = nn.ConvTranspose2d(6, 4, 3, 2, padding=1, output_padding=1, groups=2)
        self.act = act
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.up(torch.relu(self.norm(self.down(x)))))


def inputs() -> tuple[Tensor]:
    return (torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(3)),)


def wrong(net: nn.Module, name: str) -> nn.Module:
    """`net` with one filter of one layer a little off."""
    twin = copy.deepcopy(net)
    with torch.no_grad():
        twin.get_submodule(name).weight[1] *= 1.01  # type: ignore[operator, index]
    return twin


def run(script: Path) -> subprocess.CompletedProcess[str]:
    """In a Python that has no groupfx in sight."""
    code = (
        "import sys, runpy; sys.modules['groupfx'] = None; "
        f"sys.argv = ['show.py']; runpy.run_path({str(script)!r}, run_name='__main__')"
    )
    command = [sys.executable, "-I", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)


def test_of_two_files_it_is_the_wrong_site_alone(tmp_path: Path) -> None:
    right, off = conv_file(tmp_path / "a.onnx", 1.0), conv_file(tmp_path / "b.onnx", 1.01)
    script = groupfx.validate(right, off).save_repro(tmp_path / "repro")
    assert script == tmp_path / "repro" / "show.py"
    done = run(script)
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    assert "reference (optimised): as expected" in done.stdout
    # The wrong filter is the fourth.
    assert "candidate (optimised): differs: " in done.stdout
    assert "at [0, 4, " in done.stdout
    import onnx

    kept = onnx.load(script.with_name("candidate.onnx"))
    assert [node.name for node in kept.graph.node] == ["first"]
    assert {t.name for t in kept.graph.initializer} == {"w", "b"}
    with np.load(script.with_name("inputs.npz")) as held:
        assert [held[name].shape[0] for name in held.files] == [1]
    # Mended: the candidate is what it should be.
    script.with_name("candidate.onnx").write_bytes(script.with_name("reference.onnx").read_bytes())
    mended = run(script)
    assert mended.returncode == 0, mended.stdout


@pytest.mark.long
def test_of_two_files_it_is_the_wrong_operator_alone(tmp_path: Path) -> None:
    right = conv_file(tmp_path / "a.onnx", 1.0)
    off = conv_file(tmp_path / "b.onnx", 1.0, between="Softplus")
    script = groupfx.validate(right, off).save_repro(tmp_path / "repro")
    assert script is not None
    import onnx

    kept = onnx.load(script.with_name("candidate.onnx"))
    assert [node.op_type for node in kept.graph.node] == ["Softplus"]
    assert run(script).returncode == 1
    script.with_name("candidate.onnx").write_bytes(script.with_name("reference.onnx").read_bytes())
    assert run(script).returncode == 0


@pytest.mark.long
@pytest.mark.parametrize("layer", ["down", "up"])
@pytest.mark.parametrize("sides", ["torch-torch", "torch-onnx", "onnx-torch"])
def test_torch_sides_are_code_and_numbers(tmp_path: Path, layer: str, sides: str) -> None:
    net, x = DownAndUp(), inputs()
    off = wrong(net, layer)
    file = tmp_path / "net.onnx"
    groupfx.export(net, x, file)
    first, second = {
        "torch-torch": (net, off),
        "torch-onnx": (off, file),
        "onnx-torch": (file, off),
    }[sides]
    script = groupfx.validate(first, second, x).save_repro(tmp_path / "repro")
    assert script is not None
    done = run(script)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "reference" in done.stdout.splitlines()[0]
    assert "as expected" in done.stdout.splitlines()[0]
    if sides == "torch-torch":
        held = dict(np.load(script.with_name("candidate.npz")))
        (name,) = (n for n, a in held.items() if a.shape == getattr(net, layer).weight.shape)
        held[name] = getattr(net, layer).weight.detach().numpy()
        np.savez(script.with_name("candidate.npz"), **held)
        assert run(script).returncode == 0


@pytest.mark.long
@pytest.mark.parametrize("target", ["torch", "onnx"])
def test_a_wrong_operator_of_a_torch_reference(tmp_path: Path, target: str) -> None:
    x = inputs()
    candidate: nn.Module | Path = DownAndUp()
    if target == "onnx":
        groupfx.export(candidate, x, tmp_path / "net.onnx")
        candidate = tmp_path / "net.onnx"
    found = groupfx.validate(DownAndUp(nn.functional.silu), candidate, x)
    script = found.save_repro(tmp_path / "repro")
    assert script is not None
    assert "sigmoid" in script.read_text()
    assert script.with_name("inputs.npz").stat().st_size < 3000
    assert run(script).returncode == 1


@pytest.mark.long
def test_what_no_smaller_part_shows_is_shown_as_a_whole(tmp_path: Path) -> None:
    """The same convolution with another output: nothing but the output is known to be wrong."""
    right, off = conv_file(tmp_path / "a.onnx", 1.0), conv_file(tmp_path / "b.onnx", 1.01)
    found = groupfx.validate(right, off)
    assert found.difference is not None
    blind = replace(found, difference=replace(found.difference, site=None, apart=None))
    script = blind.save_repro(tmp_path / "repro")
    assert script is not None
    assert "the output y" in script.read_text()
    assert run(script).returncode == 1


def test_the_same_difference_gives_the_same_bytes(tmp_path: Path) -> None:
    right, off = conv_file(tmp_path / "a.onnx", 1.0), conv_file(tmp_path / "b.onnx", 1.01)
    for name in ("one", "two"):
        groupfx.validate(right, off).save_repro(tmp_path / name)
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("one", "two")
    )
    assert one == two
    assert sorted(one) == [
        "candidate.onnx",
        "expected.npz",
        "inputs.npz",
        "reference.onnx",
        "show.py",
    ]
    assert not [name for name, data in one.items() if str(tmp_path).encode() in data]


def test_two_that_are_the_same_leave_nothing(tmp_path: Path) -> None:
    file = conv_file(tmp_path / "a.onnx", 1.0)
    found = groupfx.validate(file, file)
    assert found.difference is None
    assert found.save_repro(tmp_path / "repro") is None
    assert not (tmp_path / "repro").exists()


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    right, off = conv_file(tmp_path / "a.onnx", 1.0), conv_file(tmp_path / "b.onnx", 1.01)
    found = groupfx.validate(right, off)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("kept")
    (tmp_path / "empty").mkdir()
    for name, said in (
        ("full", "is not empty"),
        ("a.onnx", "is a file"),
        ("no/repro", "there is no folder"),
    ):
        with pytest.raises(FileError, match=said):
            found.save_repro(tmp_path / name)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]
    assert found.save_repro(tmp_path / "empty") is not None
    assert not list(tmp_path.glob(".*.part"))


def test_a_verdict_that_travels_leaves_its_models_behind(tmp_path: Path) -> None:
    right, off = conv_file(tmp_path / "a.onnx", 1.0), conv_file(tmp_path / "b.onnx", 1.01)
    found = groupfx.validate(right, off)
    there = pickle.loads(pickle.dumps(found))
    assert (there.verdict, there.difference) == ("different", None)
    assert "difference" not in found.to_dict()


@pytest.mark.parametrize(
    ("found", "allowed", "rms", "ok"),
    [
        ([[1.0, 2.0]], 0.0, np.inf, True),
        ([[1.0, 2.5]], 0.4, np.inf, False),
        ([[1.0, 2.5]], 0.5, np.inf, True),
        ([[1.0, 2.5]], np.inf, 0.3, False),
        ([[1.0, 2.5]], np.inf, 0.4, True),
        ([[1.0, 2.5]], np.inf, np.array([0.1, 0.4]), False),
        ([[1.0, 2.5]], np.inf, np.array([0.1, 0.6]), True),
        ([[1.0, np.nan]], np.inf, np.inf, False),
        ([[1.0, np.inf]], 1e9, np.inf, False),
        ([[1.0]], np.inf, np.inf, False),
    ],
)
def test_the_judge_of_the_script(
    found: list[list[float]], allowed: float, rms: object, ok: bool
) -> None:
    expected = np.array([[1.0, 2.0]])
    assert (difference(np.array(found), expected, allowed, rms) is None) == ok


def with_weight(file: Path, to: Path, shape: tuple[int, ...], place: int) -> Path:
    """A copy of an ONNX file in which one of its weights of a shape is a little off."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(file)
    weights = [t for t in model.graph.initializer if tuple(t.dims) == shape]
    weight = weights[place % len(weights)]
    array = numpy_helper.to_array(weight).copy()
    array[0] *= np.asarray(1.02, dtype=array.dtype)
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    onnx.save(model, to)
    return to


def test_of_a_split_site_it_is_the_wrong_branch_alone(tmp_path: Path) -> None:
    right = conv_file(tmp_path / "a.onnx", 1.0)
    split = tmp_path / "split.onnx"
    groupfx.rewrite_onnx(right, split, verify=False)
    off = with_weight(split, tmp_path / "off.onnx", (3, 2, 3, 3), 1)
    script = groupfx.validate(right, off).save_repro(tmp_path / "repro")
    assert script is not None
    import onnx

    kept = onnx.load(script.with_name("candidate.onnx"))
    assert [n.op_type for n in kept.graph.node].count("Conv") == 1
    assert "Concat" not in {n.op_type for n in kept.graph.node}
    assert "gives its channels 3 to 5" in script.read_text()
    done = run(script)
    assert done.returncode == 1, done.stderr
    assert "reference (optimised): as expected" in done.stdout


class MovedByAFold(nn.Module):
    """Channels in another order, which a fold moves into the convolutions around it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.first, self.last = nn.Conv2d(4, 6, 1, groups=2), nn.Conv2d(6, 3, 1)
        self.deep = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y = y.unflatten(1, (2, 3)).transpose(1, 2).flatten(1, 2)
        return self.last(torch.relu(self.deep(y)))


@pytest.mark.long
def test_channels_that_a_fold_has_moved_are_judged_where_they_lie(tmp_path: Path) -> None:
    net, x = MovedByAFold(), inputs()
    folded = groupfx.rewrite(net, x, passes=["fold-permutations"])
    groupfx.export(folded, x, tmp_path / "fold.onnx")
    off = with_weight(tmp_path / "fold.onnx", tmp_path / "off.onnx", (6, 1, 3, 3), 0)
    found = groupfx.validate(net, off, x)
    assert found.difference is not None
    assert found.difference.site is not None
    assert found.difference.site[2].orders.output is not None
    script = found.save_repro(tmp_path / "repro")
    assert script is not None
    assert "the site deep" in script.read_text()
    done = run(script)
    assert done.returncode == 1, done.stderr
    assert "at [0, 0, " in done.stdout
    # As the right file has it, channel by channel.
    right = groupfx.validate(off, tmp_path / "fold.onnx").save_repro(tmp_path / "back")
    assert right is not None
    script.with_name("candidate.onnx").write_bytes(right.with_name("candidate.onnx").read_bytes())
    assert run(script).returncode == 0


@pytest.mark.long
def test_an_output_of_another_shape(tmp_path: Path) -> None:
    net, x = DownAndUp(), inputs()
    short = DownAndUp(lambda y: torch.relu(y)[:, :, :-1])
    script = groupfx.validate(short, net, x).save_repro(tmp_path / "repro")
    assert script is not None
    done = run(script)
    assert done.returncode == 1, done.stdout
    assert "reference: as expected" in done.stdout
    assert "has the shape" in done.stdout
