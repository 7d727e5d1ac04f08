"""Equal groups: against all assignments of small sizes, and against groups that were planted."""

import itertools

import numpy as np
import numpy.typing as npt
import pytest

from groupfx.errors import UsageError
from groupfx.plan.balancing import balance, best_equal_groups, equal_group_num
from groupfx.plan.blocks import find_blocks

Floats = npt.NDArray[np.float64]


def equal_homes(channels: int, groups: int) -> list[tuple[int, ...]]:
    """Every way to share `channels` equally among `groups`, each once."""
    homes = [group for group in range(groups) for _ in range(channels // groups)]
    return sorted(set(itertools.permutations(homes)))


@pytest.mark.parametrize(("channels", "groups"), [(4, 2), (6, 2), (6, 3), (6, 6), (3, 1)])
def test_equal_groups_have_the_largest_sum_of_all(channels: int, groups: int) -> None:
    rng = np.random.default_rng(channels * groups)
    rows = np.arange(channels)
    every = [np.array(homes) for homes in equal_homes(channels, groups)]
    for _ in range(20):
        worth = rng.standard_normal((channels, groups))
        found = best_equal_groups(worth)
        assert (np.bincount(found, minlength=groups) == channels // groups).all()
        best = max(worth[rows, homes].sum() for homes in every)
        assert worth[rows, found].sum() == pytest.approx(best, abs=1e-12)


def test_what_is_no_number_counts_as_nothing() -> None:
    worth = np.array([[np.nan, 1.0], [2.0, -1.0], [0.5, 0.0], [np.nan, np.nan]])
    assert best_equal_groups(worth).tolist() == [1, 0, 0, 1]


def test_channels_that_cannot_be_shared_equally_are_refused() -> None:
    with pytest.raises(UsageError, match=r"10 channels .* among 4 groups"):
        best_equal_groups(np.zeros((10, 4)))


@pytest.mark.parametrize(
    ("most", "multiple", "channels", "found"),
    [
        (8, 1, (96, 24), 8),
        (8, 1, (96, 20), 4),
        (8, 16, (96, 64), 2),
        (8, 16, (128, 256), 8),
        (8, 16, (96, 24), 1),
        (8, 1, (7, 11), 1),
    ],
)
def test_as_many_groups_as_fit(
    most: int, multiple: int, channels: tuple[int, ...], found: int
) -> None:
    assert equal_group_num(most, multiple, *channels) == found


def test_equal_groups_that_are_there_lose_nothing() -> None:
    rng = np.random.default_rng(5)
    for _ in range(200):
        groups = int(rng.integers(2, 9))
        filters, inputs = (groups * int(rng.integers(1, 8)) for _ in range(2))
        homes = [rng.permutation(np.arange(count) % groups) for count in (filters, inputs)]
        mask = homes[0][:, None] == homes[1][None, :]
        found = balance(mask * rng.uniform(0.1, 1, mask.shape), groups)
        assert found.kept == pytest.approx(1, abs=1e-12)
        planted = {
            tuple(tuple(np.flatnonzero(side == group).tolist()) for side in homes)
            for group in range(groups)
        }
        assert {(block.outputs, block.inputs) for block in found.structure.blocks} == planted


def unequal(rng: np.random.Generator, filters: int, inputs: int, groups: int) -> Floats:
    """Energies of a weight in random, unequal groups."""
    homes = [rng.integers(0, groups, count) for count in (filters, inputs)]
    mask = homes[0][:, None] == homes[1][None, :]
    found: Floats = mask * rng.uniform(0.1, 1, mask.shape)
    return found


def test_the_share_kept_is_that_of_the_blocks_and_near_the_best() -> None:
    """The best of all equal groups, by trying them, is missed by little and seldom."""
    rng = np.random.default_rng(11)
    pairs = [
        np.array(outputs)[:, None] == np.array(inputs)[None, :]
        for outputs in equal_homes(6, 3)
        if outputs[0] == 0
        for inputs in equal_homes(6, 3)
    ]
    masks = np.stack(pairs).reshape(len(pairs), -1).astype(np.float64)
    shares = []
    for _ in range(100):
        energy = unequal(rng, 6, 6, 3)
        found = balance(energy, 3)
        kept = sum(
            energy[np.ix_(block.outputs, block.inputs)].sum() for block in found.structure.blocks
        )
        assert found.kept == pytest.approx(kept / energy.sum() if energy.sum() else 1)
        best = float((masks @ energy.ravel()).max())
        shares.append(kept / best if best else 1.0)
    assert max(shares) <= 1 + 1e-12
    assert min(shares) > 0.75
    assert np.mean(shares) > 0.97
    assert np.mean(np.array(shares) > 1 - 1e-9) > 0.75


def test_every_planted_mask_of_unequal_groups_is_recovered() -> None:
    """1,000 masks as pruning leaves them, permuted: each planted group comes back whole."""
    rng = np.random.default_rng(23)
    for _ in range(1000):
        groups = int(rng.integers(2, 9))
        sizes = [rng.integers(1, 9, groups) for _ in range(2)]
        homes = [rng.permutation(np.repeat(np.arange(groups), size)) for size in sizes]
        mask = homes[0][:, None] == homes[1][None, :]
        found = find_blocks(mask, min_saving=0)
        planted = {
            tuple(tuple(np.flatnonzero(side == group).tolist()) for side in homes)
            for group in range(groups)
        }
        assert {(block.outputs, block.inputs) for block in found.blocks} == planted
        assert not found.dead_inputs
        assert not found.bias_only
