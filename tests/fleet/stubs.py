"""Factories that cost nothing, or too much: models that a fleet has to live with."""

import ctypes
import os
import signal
import time

import torch
from torch import Tensor, nn

from groupfx.nn import Flgc2d

SHAPE = "2,6,5,7"


def net(groups: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(6, 9, 3, groups=groups), nn.ReLU())


def learned() -> nn.Module:
    return nn.Sequential(Flgc2d(6, 8, 3, group_num=2), nn.ReLU())


def plain() -> nn.Module:
    """No convolution at all: nothing to do but to open it."""
    return nn.Flatten()


def hangs() -> nn.Module:
    while True:
        time.sleep(1)


def eats() -> nn.Module:
    held = []
    while True:
        held.append(bytearray(64 << 20))


def eats_in_a_child() -> nn.Module:
    """A process that it starts takes the memory, and nobody waits for it."""
    if not os.fork():
        eats()
    return hangs()


def crashes() -> nn.Module:
    ctypes.string_at(0)
    raise AssertionError


def leaves() -> nn.Module:
    os._exit(3)


def exits() -> nn.Module:
    raise SystemExit(4)


def killed() -> nn.Module:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def no_package() -> nn.Module:
    import a_package_that_is_not_here  # noqa: F401

    raise AssertionError


class FailingForward(nn.Module):
    """A forward that cannot be run."""

    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("not today")


def odd() -> nn.Module:
    return FailingForward()
