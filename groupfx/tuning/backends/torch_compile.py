"""`torch.compile` with its default compiler. A model is compiled once; nobody tells of nodes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ...running.inputs import ExampleInputs
from .backend import Program
from .torch_eager import EagerBackend, move_tensors, run


@dataclass(frozen=True)
class CompileBackend(EagerBackend):
    """For the sizes of the inputs, as a user would have it compiled."""

    name: str = "torch.compile"

    def load(self, model: nn.Module, feeds: ExampleInputs, threads: int) -> Program:
        """`model` itself: compiled code takes its tensors as they are, wherever they lie."""
        move_tensors(model)
        if model._compiled_call_impl is None:
            model.compile(dynamic=False)
            # What cannot be compiled fails here, not in a race.
            run(model, feeds, threads)
        return lambda: run(model, feeds, threads)

    def profile(self, model: nn.Module, feeds: ExampleInputs, threads: int, seconds: float) -> None:
        return None


BACKEND = CompileBackend()
