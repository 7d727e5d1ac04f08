"""Eager PyTorch: no graph of a runtime, so that its own interpreter is the profiler."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from ...errors import ModelError, first_line
from ...running.inputs import ExampleInputs
from ..ratios import lower_half
from .backend import NodeTime, Profile, Program, WithoutSessions

_LEAST_RUNS = 4
_MOST_RUNS = 60


@dataclass(frozen=True)
class EagerBackend(WithoutSessions):
    """In inference mode, on the device on which the model lies."""

    name: str = "torch"

    def require(self) -> None:
        """It always is there."""

    def version(self) -> str:
        return str(torch.__version__)

    def clock(self, threads: int) -> Callable[[], float]:
        """One thread is the caller's own: its time leaves other processes out."""
        return time.thread_time if threads == 1 else time.perf_counter

    def packed(self, model: nn.Module) -> nn.Module:
        """Itself."""
        return model

    def load(self, model: nn.Module, feeds: ExampleInputs, threads: int) -> Program:
        """`model` itself, its tensors at new places in memory."""
        move_tensors(model)
        return lambda: run(model, feeds, threads)

    def profile(
        self, model: nn.Module, feeds: ExampleInputs, threads: int, seconds: float
    ) -> Profile | None:
        """By running node for node; None for a model that is no graph."""
        if not isinstance(model, fx.GraphModule) or feeds.kwargs:
            return None
        clock = self.clock(threads if on_host(feeds) else 0)
        timed = _Timed(model, clock)
        with _guarded(threads):
            _runs(lambda: timed.run(*feeds.args), clock, seconds / 2)
        program = self.load(model, feeds, threads)
        total = lower_half(_runs(program, clock, seconds / 2)) * 1e6
        return Profile(tuple(timed.nodes()), total)


class _Timed(fx.Interpreter):
    """Runs a graph and notes what each node takes, in seconds."""

    def __init__(self, model: fx.GraphModule, clock: Callable[[], float]) -> None:
        super().__init__(model)
        self._clock = clock
        self._times: dict[fx.Node, list[float]] = {}

    def run_node(self, n: fx.Node) -> Any:
        start = self._clock()
        found = super().run_node(n)
        if isinstance(found, Tensor) and found.device.type != "cpu":
            torch.accelerator.synchronize()
        self._times.setdefault(n, []).append(self._clock() - start)
        return found

    def nodes(self) -> Iterator[NodeTime]:
        for node, times in self._times.items():
            if node.op.startswith("call_"):
                # The first run allocates.
                own = lower_half(times[1:]) * 1e6
                inputs = tuple(source.name for source in node.all_input_nodes)
                yield NodeTime(node.name, str(node.target), inputs, (node.name,), own)


def run(model: nn.Module, feeds: ExampleInputs, threads: int) -> Sequence[np.ndarray[Any, Any]]:
    """The outputs as arrays on the host, which waits for any device. Raises ModelError."""
    with _guarded(threads):
        found = feeds.call(model)
        return [_array(leaf) for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]


def on_host(feeds: ExampleInputs) -> bool:
    """Whether the CPU computes."""
    return all(tensor.device.type == "cpu" for tensor in feeds.tensors())


def device_name(feeds: ExampleInputs) -> str | None:
    """What the accelerator is called on which the inputs lie, None for a CPU."""
    for tensor in feeds.tensors():
        if tensor.device.type == "cuda":
            return torch.cuda.get_device_name(tensor.device)
        if tensor.device.type != "cpu":
            return str(tensor.device)
    return None


def move_tensors(model: nn.Module) -> None:
    """Copy every tensor, so that each heat of a race meets another layout of the memory."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    host = tensor.detach().cpu()
    found: np.ndarray[Any, Any] = (host.float() if host.dtype is torch.bfloat16 else host).numpy()
    return found


@contextlib.contextmanager
def _guarded(threads: int) -> Iterator[None]:
    """So many threads, no gradients, and errors of ours."""
    before = torch.get_num_threads()
    if before != threads:
        torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            yield
    except Exception as error:
        raise ModelError(f"torch cannot run it: {first_line(error)}") from error
    finally:
        if before != threads:
            torch.set_num_threads(before)


def _runs(work: Callable[[], object], clock: Callable[[], float], seconds: float) -> list[float]:
    """What several runs took, for about so long on the wall."""
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < _LEAST_RUNS or (
        len(times) < _MOST_RUNS and time.perf_counter() - started < seconds
    ):
        start = clock()
        work()
        times.append(clock() - start)
    return times


BACKEND = EagerBackend()
