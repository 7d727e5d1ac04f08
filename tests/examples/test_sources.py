"""What the sources of this project state, number by number, with plain torch and with groupfx.

1. grouped 1x1 convolutions and the channel shuffle;
2. a page on what `groups` does: the identity behind the split;
3. ShuffleNet v1, in `examples/shufflenet_v1.py`;
5. small grouped models that were split by hand, in `examples/plinio_convs.py`.

(The fourth, on groups that are learned, has tests of its own.) Tests named `test_groupfx_...` do
with `groupfx.rewrite` what the source does by hand.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.models import zoo

shufflenet = zoo.load_example("shufflenet_v1")
plinio = zoo.load_example("plinio_convs")


def conv(in_channels: int, out_channels: int, groups: int, weight: Tensor) -> nn.Conv2d:
    """A 1x1 Conv2d with this weight and a bias of 0."""
    made = nn.Conv2d(in_channels, out_channels, 1, groups=groups)
    with torch.no_grad():
        made.weight.copy_(weight.reshape(made.weight.shape))
        nn.init.zeros_(made.bias)
    return made


def counting(stop: int) -> Tensor:
    return torch.arange(1.0, stop + 1)


def split(model: nn.Module, x: Tensor) -> nn.Module:
    """`model` as groupfx splits it; it has no grouped convolution left."""
    import groupfx

    made = groupfx.rewrite(model, (x,)).model
    assert zoo.grouped_modules(made) == {}
    assert zoo.count_grouped_calls(made, (x,)).total() == 0
    return made


# Source 1

SMALL = {
    "groups-1": (1, counting(8), [5.0, 11.0, 17.0, 23.0]),
    "groups-2": (2, counting(4), [1.0, 2.0, 6.0, 8.0]),
}
PAIR = torch.tensor([1.0, 2.0]).reshape(1, 2, 1, 1)


@pytest.mark.parametrize(("groups", "weight", "expected"), SMALL.values(), ids=SMALL)
def test_weights_counted_row_by_row(groups: int, weight: Tensor, expected: list[float]) -> None:
    layer = conv(2, 4, groups, weight)
    assert layer.weight.shape == (4, 2 // groups, 1, 1)
    assert layer(PAIR).flatten().tolist() == expected


@pytest.mark.parametrize(("groups", "weight", "expected"), SMALL.values(), ids=SMALL)
def test_groupfx_keeps_weights_counted_row_by_row(
    groups: int, weight: Tensor, expected: list[float]
) -> None:
    made = split(nn.Sequential(conv(2, 4, groups, weight)), PAIR)
    assert made(PAIR).flatten().tolist() == expected
    shapes = [tuple(m.weight.shape) for m in made.modules() if isinstance(m, nn.Conv2d)]
    assert shapes == [(4 // groups, 2 // groups, 1, 1)] * groups


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        (1, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
        (2, [0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11]),
        (3, [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]),
        (4, [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]),
    ],
)
def test_channel_shuffle_order(groups: int, expected: list[int]) -> None:
    x = torch.arange(12.0).reshape(1, 12, 1, 1).expand(2, 12, 3, 5)
    shuffled = shufflenet.ChannelShuffle(groups)(x)
    assert shuffled.shape == x.shape
    assert shuffled[1, :, 2, 4].tolist() == expected


def test_channel_shuffle_asserts_that_groups_divide_channels() -> None:
    with pytest.raises(AssertionError):
        shufflenet.ChannelShuffle(3)(torch.zeros(2, 7, 1, 1))


def test_channel_shuffle_of_the_size_that_was_timed() -> None:
    shuffle = shufflenet.ChannelShuffle(10)
    assert shuffle(torch.empty(1000, 600, 50, 50, device="meta")).shape == (1000, 600, 50, 50)
    order = shuffle(torch.arange(600).reshape(1, 600, 1, 1)).flatten()
    assert order.tolist() == [60 * g + n for n in range(60) for g in range(10)]


# 6.36, 3.56, 0.91 and 0.81 seconds in the source. Here it is counted what the layers compute; the
# seconds of this machine are a benchmark: `python -m tests.benchmarks source1-groups`.
@pytest.mark.parametrize(("groups", "columns"), [(1, 10_000), (2, 5_000), (5, 2_000), (10, 1_000)])
def test_layer_of_the_size_that_was_timed(groups: int, columns: int) -> None:
    layer = nn.Conv2d(10_000, 2_000, 1, groups=groups, device="meta")
    assert layer.weight.shape == (2_000, columns, 1, 1)
    with FlopCounterMode(display=False) as counted:
        y = layer(torch.empty(2_000, 10_000, 1, 1, device="meta"))
    assert y.shape == (2_000, 2_000, 1, 1)
    assert counted.get_total_flops() == 2 * y.numel() * columns


# Source 2: an input whose value is its channel, counted from 1

CHANNELS = counting(16).reshape(1, 16, 1, 1).expand(2, 16, 10, 10)
CONSTANT = {
    "groups-1": (1, 1.0, [136.0, 136.0, 136.0, 136.0], 136.0),
    "groups-2": (2, 2.0, [72.0, 72.0, 200.0, 200.0], 136.0),
    "groups-4": (4, 3.0, [30.0, 78.0, 126.0, 174.0], 102.0),
}


@pytest.mark.parametrize(("groups", "value", "channels", "mean"), CONSTANT.values(), ids=CONSTANT)
def test_constant_weights(groups: int, value: float, channels: list[float], mean: float) -> None:
    layer = conv(16, 4, groups, torch.full((4, 16 // groups), value))
    assert layer.weight.shape == (4, 16 // groups, 1, 1)
    y = layer(CHANNELS)
    assert y.shape == (2, 4, 10, 10)
    assert y.mean().item() == mean
    assert torch.equal(y, torch.tensor(channels).reshape(1, 4, 1, 1).expand_as(y))


@pytest.mark.parametrize(("groups", "value", "channels", "mean"), CONSTANT.values(), ids=CONSTANT)
def test_groupfx_keeps_constant_weights(
    groups: int, value: float, channels: list[float], mean: float
) -> None:
    layer = conv(16, 4, groups, torch.full((4, 16 // groups), value))
    y = split(nn.Sequential(layer), CHANNELS)(CHANNELS)
    assert y.mean().item() == mean
    assert torch.equal(y, torch.tensor(channels).reshape(1, 4, 1, 1).expand_as(y))


def side_by_side(grouped: nn.Conv2d) -> nn.ModuleList:
    """The source's identity, by hand: one ordinary conv for each group."""
    rows = grouped.weight.chunk(grouped.groups)
    return nn.ModuleList(conv(rows[0].shape[1], len(part), 1, part) for part in rows)


def test_two_groups_are_two_convolutions_side_by_side() -> None:
    grouped = conv(16, 4, 2, torch.randn(4, 8)).double()
    x = torch.randn(2, 16, 10, 10, dtype=torch.float64)
    low, high = side_by_side(grouped).double()
    assert torch.equal(grouped(x), torch.cat([low(x[:, :8]), high(x[:, 8:])], dim=1))
    # Not so with the halves exchanged: the identity is about order, too.
    assert not torch.allclose(grouped(x), torch.cat([high(x[:, :8]), low(x[:, 8:])], dim=1))


def test_groupfx_makes_the_two_convolutions_side_by_side() -> None:
    grouped = conv(16, 4, 2, torch.randn(4, 8)).double()
    x = torch.randn(2, 16, 10, 10, dtype=torch.float64)
    made = split(nn.Sequential(grouped), x)
    assert torch.equal(made(x), grouped(x))
    by_hand = {f"0.{name}": tensor for name, tensor in side_by_side(grouped).state_dict().items()}
    assert made.state_dict().keys() == by_hand.keys()
    for name, tensor in made.state_dict().items():
        assert torch.equal(tensor, by_hand[name]), name


# Source 3


@pytest.mark.parametrize(
    ("groups", "widths", "parameters"),
    [(2, (200, 400, 800), 887_582), (3, (240, 480, 960), 862_768)],
)
def test_shufflenet_is_the_network_of_its_note(
    groups: int, widths: tuple[int, ...], parameters: int
) -> None:
    model = shufflenet.shufflenet_v1(groups).eval()
    stages = (model.stage1, model.stage2, model.stage3)
    x = torch.relu(model.bn1(model.conv1(torch.randn(2, 3, 32, 32))))
    assert x.shape == (2, 24, 32, 32)
    size, entering = 32, 24
    for stage, width, blocks in zip(stages, widths, (4, 8, 4), strict=True):
        x = stage(x)
        size //= 2
        assert x.shape == (2, width, size, size)
        assert len(stage) == blocks
        made = [block.conv3.out_channels for block in stage]
        assert made == [width - entering] + [width] * (blocks - 1)
        assert [block.conv2.out_channels for block in stage] == [n // 4 for n in made]
        assert [block.conv2.groups for block in stage] == [n // 4 for n in made]
        first = 1 if entering == 24 else groups
        assert [block.conv1.groups for block in stage] == [first] + [groups] * (blocks - 1)
        assert {block.conv3.groups for block in stage} == {groups}
        entering = width
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_shufflenet_factories() -> None:
    assert shufflenet.shufflenet_v1_g2().linear.in_features == 800
    assert shufflenet.shufflenet_v1_g3().linear.in_features == 960
    assert shufflenet.shufflenet_v1(num_classes=7).linear.weight.shape == (7, 960)
    with pytest.raises(ValueError, match="groups is 5; widths are known for \\[2, 3\\]"):
        shufflenet.shufflenet_v1(5)


def test_shufflenet_block_is_what_its_note_says() -> None:
    """Both kinds of block against their description, written out once more with plain functions."""
    case = zoo.CASES["shufflenet-g3"]
    model = case.build().double()
    (images,) = case.inputs()
    x = torch.relu(model.bn1(model.conv1(images.double())))
    for block in (*model.stage1, model.stage2[0]):
        expected = written_out(block, x)
        x = block(x)
        torch.testing.assert_close(x, expected, rtol=1e-12, atol=1e-12)


def written_out(block: nn.Module, x: Tensor) -> Tensor:
    y = F.relu(normed(block.bn1, F.conv2d(x, block.conv1.weight, groups=block.conv1.groups)))
    g = block.conv1.groups
    order = [g_i * (y.shape[1] // g) + n for n in range(y.shape[1] // g) for g_i in range(g)]
    y = y[:, order]
    middle = y.shape[1]
    stride = block.conv2.stride[0]
    y = normed(block.bn2, F.conv2d(y, block.conv2.weight, None, stride, 1, 1, middle))
    y = normed(block.bn3, F.conv2d(y, block.conv3.weight, groups=block.conv3.groups))
    if stride == 1:
        return F.relu(y + x)
    return F.relu(torch.cat([y, F.avg_pool2d(x, 3, 2, 1)], 1))


def normed(bn: nn.BatchNorm2d, x: Tensor) -> Tensor:
    mean, var, weight, bias = (
        tensor.reshape(1, -1, 1, 1)
        for tensor in (bn.running_mean, bn.running_var, bn.weight, bn.bias)
    )
    return (x - mean) / torch.sqrt(var + bn.eps) * weight + bias


@pytest.mark.parametrize("name", ["shufflenet-g2", "shufflenet-g3"])
def test_groupfx_splits_shufflenet(name: str) -> None:
    import groupfx

    case = zoo.CASES[name]
    model, (x,) = case.build().double(), case.inputs()
    result = groupfx.rewrite(model, (x.double(),))
    left = zoo.count_grouped_calls(result.model, (x.double(),))
    assert left == {"depthwise": 16}
    with torch.no_grad():
        torch.testing.assert_close(
            result.model(x.double()), model(x.double()), rtol=1e-12, atol=1e-12
        )


# Source 5: the grouped originals, and the twins that were split by hand

TWINS = {
    "chain": (plinio.chain1d, plinio.chain1d_split_by_hand, (3, 16, 2), False),
    "pair": (plinio.pair2d, plinio.pair2d_split_by_hand, (3, 16, 8, 8), True),
    **{
        f"groups-{groups}": (
            lambda groups=groups: plinio.chain1d_groups(groups),
            lambda groups=groups: plinio.chain1d_groups_by_hand(groups),
            (3, 16, 2),
            False,
        )
        for groups in (2, 4, 8)
    },
}
each_twin = pytest.mark.parametrize(
    ("original", "twin", "shape", "right"), TWINS.values(), ids=TWINS
)


def pair_of(original: object, twin: object, shape: tuple[int, ...]) -> tuple:
    """An original, its twin with the same weights, and an input, in float64."""
    first, second = original().double(), twin().double()
    plinio.copy_weights(first, second)
    return first, second, torch.randn(shape, dtype=torch.float64)


def test_originals_have_the_shapes_of_the_source() -> None:
    chain, pair = plinio.chain1d(), plinio.pair2d()
    assert [m.weight.shape for m in (chain.conv0, chain.conv1, chain.conv2)] == [
        (16, 16, 5),
        (8, 8, 3),
        (16, 8, 3),
    ]
    assert chain(torch.randn(1, 16, 2)).shape == (1, 16, 2)
    assert pair(torch.randn(1, 16, 8, 8)).shape == (1, 8, 8, 8)
    assert pair.conv.weight.shape[:2] == (8, 8)
    assert (chain.conv1.groups, pair.conv.groups) == (2, 2)


@each_twin
def test_hand_split_twins_are_another_function(
    original: object, twin: object, shape: tuple[int, ...], right: bool
) -> None:
    model, by_hand, x = pair_of(original, twin, shape)
    expected, found = model(x), by_hand(x)
    assert found.shape == expected.shape
    assert sum(p.numel() for p in by_hand.parameters()) == sum(
        p.numel() for p in model.parameters()
    )
    assert torch.equal(found, expected) == right
    # Not a matter of rounding: the wrong ones are off by a good part of the output itself.
    assert ((found - expected).abs().max() < 0.1 * expected.abs().max()) == right


def test_the_first_twin_lost_the_last_relu() -> None:
    model, by_hand, x = pair_of(*TWINS["chain"][:3])
    assert by_hand(x).min() < 0 <= model(x).min()
    assert torch.equal(F.relu(by_hand(x)), model(x))


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_the_twin_for_many_groups_lost_the_relu_after_its_branches(groups: int) -> None:
    model, by_hand, x = pair_of(*TWINS[f"groups-{groups}"][:3])
    by_hand.conv2.register_forward_pre_hook(lambda _, args: (F.relu(args[0]),))
    assert torch.equal(by_hand(x), model(x))


@each_twin
def test_groupfx_splits_the_originals_into_the_same_function(
    original: object, twin: object, shape: tuple[int, ...], right: bool
) -> None:
    model, by_hand, x = pair_of(original, twin, shape)
    made = split(model, x)
    assert torch.equal(made(x), model(x))
    # The very parameters of the twin, under the same names: what differs is the function.
    assert made.state_dict().keys() == by_hand.state_dict().keys()
    for name, tensor in by_hand.state_dict().items():
        assert torch.equal(made.state_dict()[name], tensor), name
