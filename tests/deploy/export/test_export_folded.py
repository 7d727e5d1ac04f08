"""Export and validation of a torch model whose permutations were folded."""

import copy
from pathlib import Path
from types import SimpleNamespace

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, fx, nn

import groupfx
from groupfx.deploy.graph.channel_order import orders_of, write_orders
from groupfx.deploy.validate.matching import Matching
from groupfx.files.models import read_model
from groupfx.nn import ChannelGather, Flgc2d
from groupfx.nn.marks import ORDER_MARK, fold_of
from groupfx.plan.channel_order import ChannelOrders, fold_note
from groupfx.rewriting import Result
from tests.folding.pruned import PrunedChain, randomised
from tests.thinning import one_in


class Learned(nn.Module):
    """Two layers of learned groups, one between convolutions and one in a residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3)
        self.first = Flgc2d(12, 12, 1, group_num=3)
        self.norm = nn.BatchNorm2d(12)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.second = Flgc2d(12, 12, 1, group_num=3)
        self.last = nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.first(torch.relu(self.stem(x))))
        return self.last(y + self.second(torch.relu(self.depthwise(y))))


def image() -> Tensor:
    return torch.randn(2, 3, 8, 8)


class ShuffledStem(nn.Module):
    """The same with a gather in place of the learned layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3)
        self.order = ChannelGather((5, 3, 0, 11, 1, 10, 2, 4, 9, 7, 8, 6))
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.last = nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.order(self.stem(x))
        return self.last(y + self.depthwise(y))


def folded(model: nn.Module, way: str = "auto") -> Result:
    passes = ["freeze-learned-groups", "fold-permutations"]
    result = groupfx.rewrite(model, image(), passes=passes, way=way)
    (fold,) = result.report.folds
    assert fold.changes
    return result


@pytest.mark.parametrize(("kind", "way"), [(Learned, "trace"), (ShuffledStem, "export")])
def test_the_file_of_a_folded_model_is_the_original(
    tmp_path: Path, kind: type[nn.Module], way: str
) -> None:
    model, path = kind().eval(), tmp_path / "folded.onnx"
    groupfx.export(folded(model, way), image(), path)
    found = groupfx.validate(model, path, image())
    assert found.ok, found.blame
    # Each convolution that is still one is compared, although its channels lie elsewhere.
    checked = {check.name for check in found.sites}
    assert {"stem", "depthwise", "last"} <= checked
    assert any(orders_of(node) != ChannelOrders() for node in ir.load(path).graph)
    # Values whose channels lie elsewhere cannot be paired: no operator is judged by them.
    assert not found.operators
    assert any("a fold has moved channels" in note for note in found.notes)


def test_the_folded_model_itself_is_the_original() -> None:
    model = Learned().eval()
    found = groupfx.validate(model, folded(model).model, image())
    assert found.ok, found.blame
    assert "stem" in {check.name for check in found.sites}


def test_a_wrong_order_in_the_file_is_an_accusation(tmp_path: Path) -> None:
    """What the file says of its channels is checked, not believed."""
    model, path = Learned().eval(), tmp_path / "folded.onnx"
    groupfx.export(folded(model), image(), path)
    file = ir.load(path)
    stem = next(n for n in file.graph if n.metadata_props.get("groupfx.site") == "stem")
    order = orders_of(stem).output
    assert order is not None
    write_orders(stem, ChannelOrders(None, (order[1], order[0], *order[2:])))
    ir.save(file, path)
    assert not groupfx.validate(model, path, image()).ok


def test_the_note_travels_and_folds_compose(tmp_path: Path) -> None:
    result = folded(Learned().eval())
    known = fold_note(result.model.meta)
    assert known is not None
    assert known.orders["stem"].output is not None
    result.save(tmp_path / "folded.pt")
    loaded = groupfx.load(tmp_path / "folded.pt").model
    assert fold_note(loaded.meta) == known
    again = groupfx.rewrite(loaded, image(), passes=["fold-permutations"])
    assert fold_note(again.model.meta) == known


@pytest.mark.parametrize("kind", one_in(2, [Learned, PrunedChain]))
@pytest.mark.parametrize("how", ["traced anew", "saved", "as .pt2"])
def test_the_note_is_there_however_the_model_comes_back(
    kind: type[nn.Module], how: str, tmp_path: Path
) -> None:
    """It once was lost, and a right model accused."""
    model = randomised(kind())
    result = folded(model)
    again: nn.Module
    if how == "traced anew":
        again = copy.deepcopy(fx.symbolic_trace(result.model))
    elif how == "saved":
        result.save(tmp_path / "folded.pt")
        again = groupfx.load(tmp_path / "folded.pt").model
        assert {vars(m).get(ORDER_MARK) for m in again.modules()} != {None}
    else:
        result.save_exported(tmp_path / "folded.pt2")
        again = read_model(tmp_path / "folded.pt2", trust_pickle=True).model
    found = groupfx.validate(model, again, image())
    assert found.ok, found.blame
    groupfx.export(again, image(), tmp_path / "folded.onnx")
    found = groupfx.validate(model, tmp_path / "folded.onnx", image())
    assert found.ok, found.blame


def test_a_second_fold_goes_on_from_the_marks() -> None:
    model = Learned().eval()
    traced = fx.symbolic_trace(folded(model).model)
    again = groupfx.rewrite(traced, image(), passes=["fold-permutations"])
    found = groupfx.validate(model, again.model, image())
    assert found.ok, found.blame


def test_a_mark_without_sense_counts_for_nothing() -> None:
    conv = nn.Sequential(nn.Conv2d(3, 3, 1))
    for mark in (((0, 0, 1), None), (1,), "abc"):
        setattr(conv[0], ORDER_MARK, mark)
        known = fold_of(conv)
        assert known is None or known.orders == {"0": ChannelOrders()}


def test_a_note_without_sense_counts_for_nothing() -> None:
    meta = {"groupfx": {"folded": {"a": ((0, 0), None), "b": 3, "c": ((1, 0), ("x",))}}}
    found = fold_note(meta)
    assert found is not None
    assert found.orders == {
        "a": ChannelOrders(), "b": ChannelOrders(), "c": ChannelOrders((1, 0), None),
    }  # fmt: skip


def test_paths_through_a_residual_network_are_not_counted() -> None:
    """Of 60 blocks there are 2 ** 60 of them: it once walked each."""
    blocks = 60
    consumers = {
        f"x{k}": (
            SimpleNamespace(outputs=(f"x{k + 1}",)),
            SimpleNamespace(outputs=(f"branch{k}",)),
        )
        for k in range(blocks)
    }
    consumers |= {f"branch{k}": (SimpleNamespace(outputs=(f"x{k + 1}",)),) for k in range(blocks)}
    partner = {f"x{blocks}": "y"}
    matching = SimpleNamespace(candidate=SimpleNamespace(consumers=consumers), partner=partner)
    assert list(Matching.paired_behind(matching, "x0")) == [f"x{blocks}"]  # type: ignore[arg-type]
