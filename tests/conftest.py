"""What holds for every test: no network, one thread a process, the same random numbers."""

import os

# Before torch is imported. Tests run side by side, so more threads than one would fight for the
# cores; a test that is about threads sets its own number. Values that the caller set stay.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Models are built from their configuration, never downloaded.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import random

import hypothesis
import numpy as np
import pytest
import torch

# Derandomized, so that a failure on one machine is a failure on every machine; no deadline,
# because the first call of an operator is slow and cores are shared.
hypothesis.settings.register_profile("groupfx", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.load_profile("groupfx")

SEED = 20011


def start_random_numbers() -> None:
    """Start every generator anew."""
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)


def pytest_collectstart() -> None:
    """A module that draws when it is imported draws the same, whatever was imported before it."""
    start_random_numbers()


def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object]) -> None:
    """So does a fixture of many tests, whichever of them is the first and whatever ran before."""
    if fixturedef.scope != "function":
        start_random_numbers()


@pytest.fixture(autouse=True)
def seed() -> int:
    """Start every test from the same random state, whatever ran before it in this process."""
    start_random_numbers()
    return SEED
