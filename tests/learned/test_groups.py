"""A learned assignment as integers: read from any layer of the form, refused for any other."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from groupfx.errors import UsageError
from groupfx.learned.groups import (
    INPUT_SCORES,
    OUTPUT_SCORES,
    LearnedGroups,
    groups_of,
    has_learned_groups,
)
from groupfx.nn import Flgc1d, Flgc2d, Flgc3d

# Five input channels, seven filters, four groups; a letter for each row's greatest scores.
INPUTS = ("b", "a", "ab", "c", "b")
OUTPUTS = ("a", "d", "ab", "b", "d", "b", "a")
EXPECTED = LearnedGroups(
    in_channels=5,
    out_channels=7,
    inputs=((1, 2), (0, 2, 4), (3,), ()),
    outputs=((0, 2, 6), (2, 3, 5), (), (1, 4)),
)
EXPECTED_MASK = [
    [0, 1, 1, 0, 0],
    [0, 0, 0, 0, 0],
    [1, 1, 2, 0, 1],
    [1, 0, 1, 0, 1],
    [0, 0, 0, 0, 0],
    [1, 0, 1, 0, 1],
    [0, 1, 1, 0, 0],
]


def scores(rows: tuple[str, ...]) -> Tensor:
    """Scores whose maxima are the named groups; the rest differs from row to row."""
    table = -1 - torch.rand(len(rows), 4)
    for row, groups in zip(table, rows, strict=True):
        row[["abcd".index(group) for group in groups]] = 0.75
    return table


class Elsewhere(nn.Module):
    """A layer of the public code's form, that groupfx has never seen."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(5, 7, 3, padding=1)
        self.in_channels_in_group_assignment_map = nn.Parameter(scores(INPUTS))
        self.out_channels_in_group_assignment_map = nn.Parameter(scores(OUTPUTS))


class ElsewhereWithScale(Elsewhere):
    """The same with more in it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))


def ours(kind: Callable[..., nn.Module]) -> nn.Module:
    layer = kind(5, 7, 3, group_num=4)
    with torch.no_grad():
        layer.get_parameter(INPUT_SCORES).copy_(scores(INPUTS))
        layer.get_parameter(OUTPUT_SCORES).copy_(scores(OUTPUTS))
    return layer


class MapsAreBuffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(5, 7, 3)
        self.register_buffer(INPUT_SCORES, scores(INPUTS))
        self.register_buffer(OUTPUT_SCORES, scores(OUTPUTS))


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "Flgc1d": lambda: ours(Flgc1d),
    "Flgc2d": lambda: ours(Flgc2d),
    "Flgc3d": lambda: ours(Flgc3d),
    "elsewhere": Elsewhere,
    "subclass": ElsewhereWithScale,
    "buffers": MapsAreBuffers,
    "half": lambda: ours(Flgc2d).half(),
    "float64": lambda: ours(Flgc2d).double(),
    "frozen": lambda: ours(Flgc2d).requires_grad_(False),
}


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_groups_are_read_from_any_layer_of_the_form(make: Callable[[], nn.Module]) -> None:
    layer = make()
    before = copy.deepcopy(layer.state_dict())
    assert has_learned_groups(layer)
    assert groups_of(layer) == EXPECTED
    assert all(torch.equal(tensor, before[key]) for key, tensor in layer.state_dict().items())
    assert all(parameter.grad is None for parameter in layer.parameters())


def test_what_follows_from_the_groups() -> None:
    assert EXPECTED.sizes == ((2, 3), (3, 3), (1, 0), (0, 2))
    assert EXPECTED.empty_groups == (2, 3)
    assert EXPECTED.dead_inputs == (3,)
    assert EXPECTED.bias_only_filters == (1, 4)
    assert EXPECTED.nan_inputs == EXPECTED.nan_outputs == ()
    assert EXPECTED.mask().dtype == torch.int32
    assert EXPECTED.mask().tolist() == EXPECTED_MASK


def test_the_mask_is_the_one_that_the_layer_applies() -> None:
    layer = Flgc2d(5, 7, 1, group_num=4, bias=False)
    layer.load_state_dict({**layer.state_dict(), **maps_of(ours(Flgc2d))})
    nn.init.ones_(layer.conv.weight)
    one_at_a_time = torch.eye(5)[:, :, None, None]
    assert layer(one_at_a_time).squeeze().T.tolist() == EXPECTED_MASK


def maps_of(layer: nn.Module) -> dict[str, Tensor]:
    return {name: layer.get_parameter(name).detach() for name in (INPUT_SCORES, OUTPUT_SCORES)}


def test_rows_with_nan_are_recorded() -> None:
    layer = ours(Flgc2d)
    with torch.no_grad():
        layer.get_parameter(INPUT_SCORES)[2, 3] = torch.nan
        layer.get_parameter(OUTPUT_SCORES)[6] = torch.nan
        layer.get_parameter(OUTPUT_SCORES)[0, 1] = torch.inf  # the softmax makes a NaN of it
    groups = groups_of(layer)
    assert groups.inputs == ((1,), (0, 4), (3,), ())
    assert groups.outputs == ((2,), (2, 3, 5), (), (1, 4))
    assert (groups.nan_inputs, groups.nan_outputs) == ((2,), (0, 6))
    assert groups.dead_inputs == (2, 3)
    assert groups.bias_only_filters == (0, 1, 4, 6)


members = st.integers(1, 6).flatmap(
    lambda groups: st.tuples(
        st.lists(st.sets(st.integers(0, 4)), min_size=groups, max_size=groups),
        st.lists(st.sets(st.integers(0, 6)), min_size=groups, max_size=groups),
    )
)


@given(members)
def test_mask_dead_and_bias_only_agree(found: tuple[list[set[int]], list[set[int]]]) -> None:
    inputs, outputs = found
    groups = LearnedGroups(
        in_channels=5,
        out_channels=7,
        inputs=tuple(tuple(sorted(group)) for group in inputs),
        outputs=tuple(tuple(sorted(group)) for group in outputs),
    )
    mask = [[0] * 5 for _ in range(7)]
    for one, other in zip(inputs, outputs, strict=True):
        for i, o in itertools.product(one, other):
            mask[o][i] += 1
    assert groups.mask().tolist() == mask
    assert groups.dead_inputs == tuple(i for i in range(5) if not any(row[i] for row in mask))
    assert groups.bias_only_filters == tuple(o for o in range(7) if not any(mask[o]))
    assert all(not inputs[g] or not outputs[g] for g in groups.empty_groups)


def test_many_groups_and_channels() -> None:
    layer = Flgc1d(1009, 503, 1, group_num=257)
    groups = groups_of(layer)
    assert len(groups.inputs) == len(groups.outputs) == 257
    assert sorted(itertools.chain(*groups.inputs)) == list(range(1009))
    assert sorted(itertools.chain(*groups.outputs)) == list(range(503))
    shared = (
        layer.get_parameter(INPUT_SCORES).argmax(1)
        == (layer.get_parameter(OUTPUT_SCORES).argmax(1)[:, None])
    )
    assert torch.equal(groups.mask().bool(), shared)


# Refusals


def with_map(name: str, *shape: int) -> nn.Module:
    layer = ours(Flgc2d)
    setattr(layer, name, nn.Parameter(torch.randn(shape)))
    return layer


def with_groups() -> nn.Module:
    layer: Any = Elsewhere()
    layer.conv = nn.Conv2d(5, 7, 3, groups=1)
    layer.conv.groups = 5
    return layer


def without(name: str) -> nn.Module:
    layer = ours(Flgc2d)
    delattr(layer, name)
    return layer


def transposed() -> nn.Module:
    layer = ours(Flgc2d)
    layer.conv = nn.ConvTranspose2d(5, 7, 3)
    return layer


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "too-few-rows": (
        lambda: with_map(INPUT_SCORES, 3, 4),
        rf"mid\.1: {INPUT_SCORES} has the shape \[3, 4\].* in_channels=5; .* be \[5, groups\]",
    ),
    "maps-exchanged": (
        lambda: with_map(OUTPUT_SCORES, 5, 4),
        rf"mid\.1: {OUTPUT_SCORES} has the shape \[5, 4\].* out_channels=7; .* be \[7, groups\]",
    ),
    "three-dimensions": (lambda: with_map(INPUT_SCORES, 5, 4, 1), r"shape \[5, 4, 1\]"),
    "no-groups": (lambda: with_map(INPUT_SCORES, 5, 0), r"shape \[5, 0\]"),
    "unequal-numbers-of-groups": (
        lambda: with_map(OUTPUT_SCORES, 7, 3),
        r"mid\.1: .* has 4 groups \(columns\) and .* has 3; give both the same number",
    ),
    "grouped": (with_groups, r"mid\.1: its conv has groups=5; .* build it with groups=1"),
    "no-values": (lambda: ours(Flgc2d).to("meta"), r"has no values \(device meta\); load"),
}
OF_ANOTHER_FORM: dict[str, Callable[[], nn.Module]] = {
    "plain-conv": lambda: nn.Conv2d(5, 7, 3),
    "no-conv": lambda: without("conv"),
    "no-input-map": lambda: without(INPUT_SCORES),
    "no-output-map": lambda: without(OUTPUT_SCORES),
    "transposed": transposed,
}


@pytest.mark.parametrize(("make", "words"), REFUSED.values(), ids=REFUSED)
def test_maps_that_do_not_fit_are_refused(make: Callable[[], nn.Module], words: str) -> None:
    layer = make()
    assert has_learned_groups(layer)
    with pytest.raises(UsageError, match=words):
        groups_of(layer, "mid.1")


@pytest.mark.parametrize("make", OF_ANOTHER_FORM.values(), ids=OF_ANOTHER_FORM)
def test_layers_of_another_form_are_refused(make: Callable[[], nn.Module]) -> None:
    layer = make()
    assert not has_learned_groups(layer)
    with pytest.raises(UsageError, match=f"{type(layer).__name__} is no layer with learned groups"):
        groups_of(layer)
