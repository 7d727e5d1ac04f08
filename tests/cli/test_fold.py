"""fold-permutations on the command line: its options, what it names, and what it refuses."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import groupfx
from groupfx.errors import RewriteError
from groupfx.nn import ChannelGather

from .runs import Cli, contents, save

ORDER = (3, 0, 5, 1, 4, 2)
FREE = (
    "m (float[2,3,4,5] x) => (float[2,4,4,5] y) { a = Conv(x, v)"
    " b = Gather<axis=1>(a, p) c = Relu(b) d = Conv(c, u) e = Gather<axis=1>(d, p) y = Conv(e, w) }"
)
HELD = "m (float[2,6,4,5] x) => (float[2,6,4,5] y) { a = Relu(x) y = Gather<axis=1>(a, p) }"
COMPUTED = (
    "m (float[2,3,4,5] x, int64[6] q) => (float[2,4,4,5] y)"
    " { a = Conv(x, v) b = Gather<axis=1>(a, q) y = Conv(b, w) }"
)
SHORT = (
    "m (float[2,3,4,5] x) => (float[2,4,4,5] y)"
    " { a = Conv(x, v) b = Gather<axis=1>(a, s) y = Conv(b, t) }"
)


def write(path: Path, text: str, p: tuple[int, ...] = ORDER) -> Path:
    """A model in onnx's text form, with whichever of the weights it names, and the order `p`."""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    rng = np.random.default_rng(3)
    shapes = {"v": (6, 3, 1, 1), "u": (6, 6, 1, 1), "w": (4, 6, 1, 1), "t": (4, 3, 1, 1)}
    held = {name: rng.integers(-3, 4, shape).astype(np.float32) for name, shape in shapes.items()}
    held |= {"p": np.array(p, dtype=np.int64), "s": np.array([4, 0, 5], dtype=np.int64)}
    read = {name for node in model.graph.node for name in node.input}
    for name, array in held.items():
        if name in read:
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for node in model.graph.node:
        node.name = node.output[0]
    onnx.save(model, path)
    return path


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, tmp_path, monkeypatch)


@pytest.mark.parametrize("option", ["only=b", "skip=e", "only=b,skip=e"])
def test_only_and_skip_name_permutations(cli: Cli, tmp_path: Path, option: str) -> None:
    write(tmp_path / "net.onnx", FREE)
    done = cli("rewrite", "net.onnx", "-p", f"fold-permutations:{option}", "-o", "out.onnx")
    assert done.code == 0
    assert "permutations: 2 -> 1" in done.out
    assert "kept at `e`" in done.out
    kinds = [node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node]
    assert kinds == ["Conv", "Relu", "Conv", "Gather", "Conv"]


REFUSED = {
    "named and held": (HELD, ORDER, "only=y", "y cannot be rewritten: an input of the model and y"),
    "computed": (COMPUTED, ORDER, "only=b", "b cannot be rewritten: its indices are computed"),
    "beyond": (FREE, (0, 1, 2, 3, 4, 6), "only=b", "there is no channel 6 among 6"),
    "not there": (FREE, ORDER, "only=f", "only=f names no site; the sites are b, e"),
    "none at all": (SHORT.replace("s)", "z)"), ORDER, "skip=b", "there is none in this model"),
}


@pytest.mark.parametrize(("text", "p", "option", "told"), REFUSED.values(), ids=REFUSED)
def test_what_is_named_and_refused_writes_nothing(
    cli: Cli, tmp_path: Path, text: str, p: tuple[int, ...], option: str, told: str
) -> None:
    if "z)" in text:
        text = "m (float[2,3,4,5] x) => (float[2,6,4,5] y) { y = Conv(x, v) }"
    write(tmp_path / "net.onnx", text, p)
    before = contents(tmp_path)
    run = cli("rewrite", "net.onnx", "-p", f"fold-permutations:{option}", "-o", "out.onnx")
    assert run.code == 1
    assert told in " ".join(run.err.split())
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("text", "told"),
    [(COMPUTED, "kept at `b` (a gather, 0.5 kB) because its indices are computed"),
     (SHORT, "permutations: 1 -> 0")],
    ids=["computed", "another length"],
)  # fmt: skip
def test_what_is_not_named_is_told(cli: Cli, tmp_path: Path, text: str, told: str) -> None:
    write(tmp_path / "net.onnx", text)
    run = cli("rewrite", "net.onnx", "-p", "fold-permutations", "--dry-run")
    assert run.code == 0
    assert told in " ".join(run.out.split())


class TiedAround(nn.Module):
    """A permutation between convolutions, one of which something holds on to."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.first, self.order = nn.Conv2d(3, 6, 1), ChannelGather(ORDER)
        self.last = nn.Conv2d(6, 6, 1)
        if how == "tied":
            self.spare, self.other = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1)
            self.spare.weight, self.other.weight = self.first.weight, self.last.weight
        else:
            nn.utils.parametrizations.weight_norm(self.first)
            nn.utils.parametrizations.weight_norm(self.last)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.order(self.first(x)))


REASONS = {
    "parametrised": "first is parametrised and last is parametrised",
    "tied": "a parameter is tied to spare.weight, which is not called and a parameter is tied to",
}


@pytest.mark.parametrize("how", REASONS)
def test_a_tensor_that_must_stay_is_named(how: str) -> None:
    x = torch.randn(2, 3, 5, 5)
    passes = ["fold-permutations:only=order"]
    with pytest.raises(RewriteError, match=f"order cannot be rewritten: .*{REASONS[how]}"):
        groupfx.rewrite(TiedAround(how), x, passes=passes)


def test_a_model_opened_by_its_modules_is_refused_by_name(cli: Cli, tmp_path: Path) -> None:
    save(tmp_path / "net.pt", nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1, groups=2)))
    run = cli(
        "rewrite", "net.pt", "-p", "fold-permutations:only=0", "--input-shape", "2,3,5,5",
        "--way", "modules", "-o", "out.pt",
    )  # fmt: skip
    assert run.code == 1
    assert "0 cannot be rewritten: fold-permutations looks at the whole graph" in run.err
    assert not (tmp_path / "out.pt").exists()
