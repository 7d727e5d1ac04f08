"""One case of the kit: a tiny model, the inputs to run it on, and its answers with their bounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
import torch
from torch import fx

from ...verify.bounds import rounding_bound
from ...verify.yardstick import underflow
from .as_onnx import onnx_model
from .as_torch import NotInTorch, torch_model
from .known import Array, Known
from .program import Program
from .sketch import DEFAULT_OPSET, Sketch

Feeds = Mapping[str, Array]
Draw = Callable[[Sketch], None]


@dataclass(frozen=True)
class Answer:
    """What an output is in float64, and by how much a result in `dtype` may differ from it."""

    name: str
    value: Array
    bound: Array
    dtype: str

    @classmethod
    def of(cls, name: str, known: Known) -> Answer:
        """The bound is that of `verify/bounds.py`; whole numbers have none."""
        if not np.issubdtype(np.dtype(known.dtype), np.floating):
            return cls(name, known.value, np.zeros_like(known.value), known.dtype)
        dtype = getattr(torch, known.dtype)
        bound = rounding_bound(torch.from_numpy(known.magnitude), known.terms, dtype).numpy()
        return cls(name, known.value, bound + underflow(dtype), known.dtype)


@dataclass(frozen=True)
class Case:
    """A model of one kind; `draw` writes it down."""

    kind: str
    variant: str
    draw: Draw
    opset: int = DEFAULT_OPSET
    dtype: str = "float32"

    @property
    def name(self) -> str:
        """`kind/variant`, one of its own in the kit."""
        return f"{self.kind}/{self.variant}"

    @cached_property
    def program(self) -> Program:
        """The model as a list of steps."""
        sketch = Sketch(self.name, opset=self.opset, dtype=self.dtype)
        self.draw(sketch)
        return sketch.program()

    @property
    def feeds(self) -> tuple[Feeds, ...]:
        """The inputs to run it on, set by set."""
        return self.program.feeds

    @cached_property
    def answers(self) -> tuple[tuple[Answer, ...], ...]:
        """What each output is, for each set of inputs."""
        names = self.program.outputs
        return tuple(
            tuple(Answer.of(*pair) for pair in zip(names, self.program.answers(feeds), strict=True))
            for feeds in self.program.feeds
        )

    @cached_property
    def onnx(self) -> onnx.ModelProto:
        """The model as an ONNX file. Do not change it: `CopyFrom` makes another."""
        return onnx_model(self.program)

    def torch(self) -> fx.GraphModule | None:
        """A new torch model in eval mode, or None for what torch has no such thing for.

        It takes the inputs in order, and returns a tuple.
        """
        try:
            return torch_model(self.program)
        except NotInTorch:
            return None
