"""Bins whose channels the layers around bring in order: exact, wherever the outputs may stay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groupfx.errors import UsageError
from groupfx.plan.absorbed import Absorbed
from groupfx.plan.around import Around, Neighbour, absorbed_bins
from groupfx.plan.blocks import BlockStructure
from groupfx.plan.channel_order import PADDING
from groupfx.plan.cost import OnnxRuntime, Work
from groupfx.plan.recipes import recipe_plan
from tests.plan.alone import chosen
from tests.plan.block_execution import problem_with_plan
from tests.plan.test_cost import structure_of
from tests.plan.test_forms import cover, masks

Ints = npt.NDArray[np.int64]


@given(masks(), st.sampled_from([1, 4, 16]))
def test_every_recipe_is_exact_and_read_again(mask: Ints, width: int) -> None:
    structure = cover(mask)
    for absorbed in absorbed_bins(structure, width):
        for own in (absorbed, replace(absorbed, by_product=True)):
            assert Absorbed.read(str(own)) == own
            assert problem_with_plan(recipe_plan(str(own), structure), mask) is None


def placed(order: tuple[int, ...], size: int) -> Ints:
    """A matrix that puts channels into an order, with zeros for padding."""
    made = np.zeros((len(order), size), dtype=np.int64)
    for at, channel in enumerate(order):
        if channel != PADDING:
            made[at, channel] = 1
    return made


@given(masks(), st.sampled_from([1, 4]), st.booleans())
def test_what_is_brought_in_order_needs_no_gather(mask: Ints, width: int, stays: bool) -> None:
    structure = cover(mask)
    weight = mask * np.random.default_rng(0).integers(1, 9, mask.shape)
    for absorbed in absorbed_bins(structure, width):
        layout = absorbed.layout(structure)
        outputs = layout.outputs if stays else None
        inputs = placed(layout.inputs, structure.in_channels)
        rows = placed(layout.outputs, structure.out_channels)
        # As the layers around have made it: a dense weight with its rows and columns moved.
        dense = (rows if stays else np.eye(len(mask), dtype=np.int64)) @ weight @ inputs.T
        found = layout.in_order(outputs)
        assert found.input_gather.kind == "identity"
        assert (found.output_gather.kind == "identity") >= stays
        (conv,) = found.convs
        assert conv.groups == len(absorbed.bins)
        assert problem_with_plan(found, (dense != 0).astype(np.int64)) is None
        x = np.arange(1, structure.in_channels + 1)
        assert ((dense @ (inputs @ x)) == (rows @ weight @ x if stays else weight @ x)).all()


def test_a_block_that_is_in_no_bin_is_refused() -> None:
    structure = BlockStructure.of_groups(6, 6, 3)
    with pytest.raises(UsageError, match="each of the 3 blocks, from 0 on, must be in one bin"):
        Absorbed(4, ((0,), (2,))).layout(structure)
    with pytest.raises(UsageError, match="some inputs are in several blocks"):
        Absorbed(1, ((0,), (1,))).layout(cover(np.array([[1, 1, 0, 0], [0, 1, 1, 1]])))


def around(inputs: int, outputs: int, work: Work) -> Around:
    """A 1x1 convolution and a depthwise one in front, a 1x1 convolution behind."""
    pointwise = replace(work, taps=1)
    beside = (Neighbour(inputs, None, pointwise), Neighbour(None, None, replace(work, taps=9)))
    return Around(beside, (Neighbour(None, outputs, pointwise),))


def test_a_prime_number_of_groups_is_merged_with_one_of_zeros() -> None:
    structure = BlockStructure.of_groups(104, 104, 13)
    work = Work(9, 784)
    assert chosen(structure, work, learned=False).recipe == "grouped"
    found = chosen(structure, work, around=around(48, 104, work), learned=False)
    assert found.recipe == "absorbed 16: 0+1 2+3 4+5 6+7 8+9 10+11 12"
    assert found.ratio < 0.8


def test_a_projection_takes_its_channels_as_they_are_made() -> None:
    structure = structure_of(576, 96, 8, equal=True)
    work = Work(1, 64)
    one = chosen(structure, work)
    found = chosen(structure, work, around=around(96, 576, work))
    assert found.recipe.startswith("absorbed")
    assert found.time < one.time
    assert found.untouched == one.untouched


def test_channels_of_padding_cost_what_is_computed_for_them() -> None:
    structure = BlockStructure.of_groups(24, 24, 3)
    work, price = Work(9, 196), OnnxRuntime(Work(9, 196))
    alone = Around(()).cost(price, structure, Absorbed(16, ((0,), (1,), (2,))))
    beside = around(2048, 2048, work).cost(price, structure, Absorbed(16, ((0,), (1,), (2,))))
    one, more = (price.conv(2048, n, 1) for n in (24, 48))
    assert beside - alone > 0.05 * (more - one) > 0


def test_channels_of_padding_are_waited_for_where_they_lie_in_no_cache() -> None:
    structure = BlockStructure.of_groups(384, 64, 8)
    layout = Absorbed(64, tuple((place,) for place in range(8))).layout(structure)
    # What the layers around have to do is known of one sample.
    one = Around(around(64, 384, Work(1, 576)).inputs)
    near, far = (OnnxRuntime(Work(1, 576, batch=16, model_values=n << 20)) for n in (1, 42))
    assert one.beside(far, structure, layout) > 1.5 * one.beside(near, structure, layout) > 0


# Channels of a residual stream, its side, the batch, and whether a 1x1 convolution that brings them
# in order took less than to leave the layout for a gather: 19 against 24 us, 374 against 787, 18
# against 10, 512 against 133, 2.4 against 2.0, 101 against 39.
IN_ORDER = [
    (32, 48, 1, True),
    (32, 48, 16, True),
    (64, 24, 1, False),
    (160, 12, 16, False),
    (64, 8, 1, False),
    (128, 28, 1, False),
]


@pytest.mark.parametrize(("channels", "side", "batch", "product"), IN_ORDER)
def test_a_narrow_stream_of_large_maps_is_brought_in_order_by_a_product(
    channels: int, side: int, batch: int, product: bool
) -> None:
    structure = BlockStructure.of_groups(4 * channels, channels, 2)
    # So that the order is no shuffle.
    rows = np.random.default_rng(0).permutation(channels).reshape(2, -1)
    blocks = zip(structure.blocks, rows.tolist(), strict=True)
    mixed = replace(structure, blocks=tuple(replace(b, outputs=tuple(r)) for b, r in blocks))
    price = OnnxRuntime(Work(1, side**2, batch=batch))
    bins = Absorbed(16, ((0,), (1,)))
    gathers, picks = (
        Around(()).cost(price, mixed, b) for b in (bins, replace(bins, by_product=True))
    )
    assert (picks < gathers) == product
