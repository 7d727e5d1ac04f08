"""No permutation is left in front of a depthwise convolution: PLiNIO would export it wrongly."""

from pathlib import Path

import torch
from torch import Tensor, nn

import groupfx
from groupfx.nn import ChannelGather, Flgc2d


class LearnedProjection(nn.Module):
    """An inverted bottleneck whose projection learned its groups, and what reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.project, self.last = Flgc2d(12, 10, 1, group_num=3), nn.Conv2d(10, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(torch.relu(self.norm(self.stem(x))))
        return self.last(torch.relu(self.project(torch.relu(y))))


def test_no_permutation_is_left_in_front_of_a_depthwise_convolution(tmp_path: Path) -> None:
    torch.manual_seed(4)
    x = torch.randn(2, 3, 9, 11)
    model = LearnedProjection().eval()
    with_gathers = groupfx.rewrite(
        model, x, passes=["freeze-learned-groups", "split-grouped-conv"]
    ).model
    assert any(isinstance(module, ChannelGather) for module in with_gathers.modules())
    result = groupfx.rewrite(model, x, target="plinio")
    (fold,) = result.report.folds
    assert fold.before.count > fold.after.count == 0
    assert not any(isinstance(module, ChannelGather) for module in result.model.modules())
    targets = {node.target for node in result.model.graph.nodes if node.op == "call_function"}
    assert torch.narrow not in targets
    assert result.report.ok
    groupfx.export(result, x, tmp_path / "folded.onnx")
    found = groupfx.validate(model, tmp_path / "folded.onnx", x)
    assert found.ok, found.blame


def test_a_program_with_a_number_among_its_arguments_is_folded() -> None:
    """`torch.export` keeps a placeholder for it, which a run of the graph has to fill."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twice, self.thrice = nn.Conv2d(6, 6, 3, groups=2), nn.Conv2d(6, 9, 3, groups=3)

        def forward(self, x: Tensor, scale: int = 2) -> Tensor:
            return self.twice(x) if scale == 2 else self.thrice(x)

    model, inputs = Scaled().eval(), (torch.randn(2, 6, 8, 8), 3)
    result = groupfx.rewrite(model, inputs, way="export", passes=["fold-permutations"])
    assert result.report.ok
    assert torch.equal(result.model(*inputs), model(*inputs))
