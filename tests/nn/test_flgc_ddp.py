"""Learned groups under DistributedDataParallel: two CPU processes, each with data of its own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from groupfx.learned.groups import LearnedGroups, groups_of, has_learned_groups
from groupfx.nn import Flgc1d, Flgc2d

PROCESSES = 2
STEPS = 4


@dataclass(frozen=True)
class Seen:
    """What one process had at the end, and the groups that it started with."""

    before: list[LearnedGroups]
    after: list[LearnedGroups]
    state: dict[str, Tensor]


class LearningModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = Flgc2d(5, 11, 3, group_num=3)
        self.second = Flgc1d(11, 7, 1, group_num=4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x).relu().flatten(2))
        return y


def layers(model: nn.Module) -> list[LearnedGroups]:
    return [groups_of(module) for module in model.modules() if has_learned_groups(module)]


def train(rank: int, folder: Path, together: bool) -> None:
    """One of the processes. They start with other weights and see other data."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=PROCESSES
    )
    try:
        torch.manual_seed(rank if together else 0)
        model = LearningModel()
        called: nn.Module = DistributedDataParallel(model) if together else model
        torch.manual_seed(100 + rank)
        before = layers(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.3)
        for _ in range(STEPS):
            loss = called(torch.randn(3, 5, 6, 7)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        torch.save(Seen(before, layers(model), model.state_dict()), folder / f"{rank}.pt")
        distributed.barrier()
    finally:
        distributed.destroy_process_group()


def run(folder: Path, *, together: bool) -> list[Seen]:
    spawn: Any = multiprocessing.spawn
    spawn(train, args=(folder, together), nprocs=PROCESSES)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(PROCESSES)]


@pytest.mark.long
def test_all_processes_have_the_same_groups(tmp_path: Path) -> None:
    first, second = run(tmp_path, together=True)
    assert len(first.after) == 2
    assert first.after == second.after
    assert first.after != first.before  # they moved, and together
    assert all(torch.equal(tensor, second.state[key]) for key, tensor in first.state.items())


@pytest.mark.long
def test_processes_that_do_not_talk_drift_apart(tmp_path: Path) -> None:
    first, second = run(tmp_path, together=False)
    assert first.before == second.before
    assert first.after != second.after
