"""Sites that are built alike are proved once, and everything that makes them differ is seen."""

import operator
from collections.abc import Callable

import pytest
import torch
from torch import nn

from groupfx.state import Rows
from groupfx.verify import Proved
from tests.verify.hand_split import Pair, split


def _site(**options: int) -> Pair:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, padding=1, groups=2)
    return split(conv, nn.BatchNorm2d(6, **options))


def _fresh(pair: Pair) -> Pair:
    """Other values in the tensors of both sides."""
    with torch.no_grad():
        for tensor in pair.left.module.parameters():
            tensor.add_(1)
        for name, tensor in pair.right.module.named_parameters():
            assert pair.rows is not None
            entry = pair.rows[name]
            tensor.copy_(entry.of(pair.left.module.get_parameter(entry.key)))
    return pair


def test_a_site_that_is_built_like_a_proved_one_is_not_proved_again() -> None:
    proved = Proved()
    first = _site().compare(proved=proved)
    assert first.ok
    assert first.proof == "whole numbers"
    assert _fresh(_site()).compare(proved=proved) is first
    assert len(proved.built) == 1


def _wrong_value(pair: Pair) -> None:
    with torch.no_grad():
        pair.branch("conv.1").weight[0, 0, 0, 0] += 1


def _wrong_row(pair: Pair) -> None:
    rows = dict(pair.rows or {})
    rows["conv.0.weight"], rows["conv.1.weight"] = rows["conv.1.weight"], rows["conv.0.weight"]
    pair.rows = rows


def _lost_bias(pair: Pair) -> None:
    pair.branch("conv.1").bias = None


def _lost_padding(pair: Pair) -> None:
    for group in range(2):
        pair.branch(f"conv.{group}").padding = (0, 0)


def _other_eps(pair: Pair) -> None:
    pair.branch("bn.1").eps = 1e-3


def _other_momentum(pair: Pair) -> None:
    pair.branch("bn.1").momentum = 0.2


def _other_statistics(pair: Pair) -> None:
    pair.branch("bn.1").track_running_stats = False
    pair.branch("bn.1").running_mean = pair.branch("bn.1").running_var = None


def _other_forward(pair: Pair) -> None:
    forward = pair.branch("conv.1").forward
    pair.branch("conv.1").forward = lambda x: forward(x) * 2


def _hook(pair: Pair) -> None:
    pair.branch("conv.1").register_forward_hook(lambda _, given, found: found * 2)


def _subclass(pair: Pair) -> None:
    class Doubled(nn.Conv2d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input) * 2

    pair.branch("conv.1").__class__ = Doubled


def _swapped_branches(pair: Pair) -> None:
    first, second = pair.node("conv.0"), pair.node("conv.1")
    first.target, second.target = "conv.1", "conv.0"


def _other_slice(pair: Pair) -> None:
    pair.node("getitem_1").args = pair.node("getitem").args


def _added_operator(pair: Pair) -> None:
    end, graph = pair.right.output, pair.right.module.graph
    with graph.inserting_after(end):
        doubled = graph.call_function(operator.mul, (end, 2))
    pair.right = type(pair.right)(pair.right.module, pair.right.inputs, doubled)


def _one_norm_twice(pair: Pair) -> None:
    pair.node("bn.1").target = "bn.0"


def _other_mode(pair: Pair) -> None:
    pair.branch("bn.1").eval()


@pytest.mark.parametrize(
    "spoil",
    [
        *(_wrong_value, _wrong_row, _lost_bias, _lost_padding, _other_eps, _other_momentum),
        *(_other_statistics, _other_forward, _hook, _subclass, _swapped_branches, _other_slice),
        *(_added_operator, _one_norm_twice, _other_mode),
    ],
)
def test_a_wrong_site_behind_proved_ones_is_found(spoil: Callable[[Pair], None]) -> None:
    proved = Proved()
    assert _site().compare(proved=proved).ok
    wrong = _fresh(_site())
    spoil(wrong)
    assert not wrong.compare(proved=proved).ok
    # A wrong one proves nothing.
    assert len(proved.built) == 1


def test_a_counter_is_a_part_of_how_a_site_is_built() -> None:
    """With `momentum=None`, what a step in train mode leaves depends on how many there were."""
    proved = Proved()
    assert _site(momentum=None).compare(proved=proved).ok  # type: ignore[arg-type]
    other = _site(momentum=None)  # type: ignore[arg-type]
    for module in (*other.left.module.modules(), *other.right.module.modules()):
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked.fill_(5)
    assert other.compare(proved=proved).ok
    assert len(proved.built) == 2


def test_what_no_map_describes_is_compared_each_time() -> None:
    proved = Proved()
    pair = _site()
    pair.rows = None
    assert pair.compare(proved=proved).ok
    assert not proved.built


def test_an_unknown_module_is_compared_each_time() -> None:
    class Own(nn.Conv2d):
        pass

    proved = Proved()
    pair = split(Own(4, 6, 3, groups=2))
    assert isinstance((pair.rows or {})["conv.0.weight"], Rows)
    assert pair.compare(proved=proved).ok
    assert not proved.built
