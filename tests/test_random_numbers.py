"""What a module, a fixture and a test draw does not depend on what ran before them."""

import random

import numpy as np
import pytest
import torch

Draw = tuple[float, float, float]


def draw() -> Draw:
    return random.random(), float(np.random.rand()), torch.rand(()).item()


IMPORTED = draw()


@pytest.fixture(scope="module")
def one() -> Draw:
    return draw()


@pytest.fixture(scope="module")
def another() -> Draw:
    return draw()


@pytest.mark.parametrize("name", ["one", "another"])
def test_everything_starts_from_one_seed(
    name: str, seed: int, request: pytest.FixtureRequest
) -> None:
    drawn = draw()
    assert request.getfixturevalue(name) == IMPORTED == drawn
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    assert draw() == drawn


def test_fixtures_of_one_test_start_alike(one: Draw, another: Draw) -> None:
    assert one == another == draw()
