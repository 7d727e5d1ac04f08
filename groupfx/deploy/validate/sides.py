"""The two sides of a validation: a torch model or an ONNX file, behind one face.

Both take arrays by the names of inputs and give arrays by the names of outputs.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor, nn

from ...errors import GroupfxError, ModelError, UsageError, first_line
from ...learned.groups import deciding_tensors
from ...running.inputs import ExampleInputs, in_order
from ...running.unchanged import evaluate, unchanged
from ...tracing import CannotTrace
from ...tracing.program import copied
from ...verify import Float64Runner
from ..export.exporting import convert
from ..export.io_names import output_names, unique
from ..graph.files import proto_of
from ..running.float64_onnx import Float64Model
from ..running.runtime import Session, declared_inputs
from .onnx_sites import onnx_site_functions
from .onnx_values import OnnxGraph
from .site_functions import SiteFunction, Unchecked, torch_site_functions
from .torch_graph import TorchGraph

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]
Values = dict[str, Array]

_SEED = 0


@dataclass(frozen=True)
class TorchSide:
    """A torch model with example inputs, in the order of its forward."""

    source: str
    model: nn.Module
    example: ExampleInputs

    @classmethod
    def of(cls, model: nn.Module, inputs: ExampleInputs, source: str) -> TorchSide:
        """A side of `model`; UsageError where the inputs do not fit its forward."""
        return cls(source, model, in_order(model, inputs))

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors that go in."""
        bound = inspect.signature(self.model.forward).bind(
            *self.example.args, **self.example.kwargs
        )
        named = [
            (name, leaf)
            for argument, value in bound.arguments.items()
            for name, leaf in output_names({argument: value})
        ]
        return unique([name for name, leaf in named if isinstance(leaf, Tensor)])

    @property
    def feeds(self) -> Values:
        """The example inputs as arrays."""
        tensors = [_array(tensor) for tensor in self.example.tensors()]
        return dict(zip(self.inputs, tensors, strict=True))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first floating parameter or input."""
        tensors = (*self.model.parameters(), *self.model.buffers(), *self.example.tensors())
        floats = (tensor.dtype for tensor in tensors if tensor.is_floating_point())
        return next(floats, torch.float32)

    def wide(self, feeds: Feeds) -> Values:
        """Outputs in float64."""
        with unchanged(self.model), torch.no_grad():
            given = self.given(feeds).map(lambda t: t.double() if t.is_floating_point() else t)
            return _arrays(self._runner.run(given, _SEED))

    def native(self, feeds: Feeds, dtype: torch.dtype) -> Values:
        """Outputs of the model run in `dtype`."""
        model = self._in(dtype)
        given = self.given(feeds).map(lambda t: t.to(dtype) if t.is_floating_point() else t)
        with unchanged(model), torch.no_grad():
            evaluate(model)
            torch.manual_seed(_SEED)
            try:
                return _arrays(given.call(model))
            except Exception as error:
                shapes = ", ".join(f"{name} {list(v.shape)}" for name, v in feeds.items())
                raise ModelError(
                    f"{self.source} does not run on {shapes}: {first_line(error)}"
                ) from error

    def site_functions(self) -> tuple[tuple[SiteFunction, ...], tuple[Unchecked, ...]]:
        """What each convolution computes, and what is left out and why."""
        try:
            return torch_site_functions(self.model, self.example)
        except (CannotTrace, GroupfxError) as error:
            return (), (Unchecked(f"sites are not checked on their own: {error}"),)

    @cached_property
    def values(self) -> TorchGraph:
        """Its operators one by one. Raises CannotTrace where `torch.export` does not take it."""
        return TorchGraph(self.model, self.example, self.inputs)

    @cached_property
    def _runner(self) -> Float64Runner:
        return Float64Runner(self.model, deciding_tensors(self.model))

    @cached_property
    def _models(self) -> dict[torch.dtype, nn.Module]:
        return {}

    def _in(self, dtype: torch.dtype) -> nn.Module:
        tensors = (*self.model.parameters(), *self.model.buffers())
        if all(t.dtype == dtype for t in tensors if t.is_floating_point()):
            return self.model
        if dtype not in self._models:
            twin = copied(self.model, share=False)
            convert(twin, dtype)
            self._models[dtype] = twin
        return self._models[dtype]

    def given(self, feeds: Feeds) -> ExampleInputs:
        """The arguments of forward with these arrays in them."""
        values = iter([torch.from_numpy(np.array(feeds[name])) for name in self.inputs])
        return self.example.map(lambda _: next(values))


def _arrays(output: Any) -> Values:
    named = [(n, v) for n, v in output_names(output) if isinstance(v, Tensor)]
    names = unique([name for name, _ in named])
    return {n: _array(v) for n, (_, v) in zip(names, named, strict=True)}


def _array(tensor: Tensor) -> Array:
    """Numpy has no bfloat16; float32 holds all of its values."""
    plain = tensor.detach().cpu()
    return (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()


@dataclass(frozen=True)
class OnnxSide:
    """An ONNX model; `source` names it in messages."""

    source: str
    model: ir.Model
    notes: list[str] = field(default_factory=list, compare=False)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs."""
        return tuple(name for name, _, _ in declared_inputs(self.model))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return tuple(value.name or "" for value in self.model.graph.outputs)

    @property
    def dtype(self) -> torch.dtype:
        """float16 where a convolution or a floating input has it, else float32."""
        values = [value.dtype for value in self.model.graph.inputs]
        held = self.model.graph.initializers.values()
        values += [v.const_value.dtype for v in held if v.const_value is not None]
        floats = [d for d in values if d is not None and d.is_floating_point()]
        half = ir.DataType.FLOAT16
        return torch.float16 if half in floats else torch.float32

    @cached_property
    def session(self) -> Session:
        """The model in ONNX Runtime as it is written, not optimised."""
        return Session(self.model, "off", source=self.source)

    @cached_property
    def optimised(self) -> Session:
        """The model in ONNX Runtime, optimised."""
        return Session(self.model, "on", source=self.source)

    def wide(self, feeds: Feeds) -> Values:
        """Outputs in float64; in the file's own dtype where an operator has no float64 form."""
        evaluator = self._wide_model
        return self.session.run(feeds) if evaluator is None else evaluator.run(feeds)

    def native(self, feeds: Feeds, dtype: torch.dtype) -> Values:
        """Outputs as ONNX Runtime computes them, not optimised.

        Where the yardstick is that very run, for want of one in float64, the optimised one: how far
        the two are apart is then what is known of rounding.
        """
        session = self.optimised if self._wide_model is None else self.session
        return session.run(feeds)

    def site_functions(self) -> tuple[tuple[SiteFunction, ...], tuple[Unchecked, ...]]:
        """What each convolution computes, and what is left out and why."""
        return onnx_site_functions(self.model)

    @cached_property
    def values(self) -> OnnxGraph:
        """Its operators one by one."""
        return OnnxGraph(self.model)

    @cached_property
    def _wide_model(self) -> Float64Model | None:
        try:
            return Float64Model(proto_of(self.model))
        except UsageError as error:
            self.notes.append(
                f"the yardstick is {self.source} in its own dtype, not in float64: {error}"
            )
            return None


Side = TorchSide | OnnxSide


def open_axes(side: Side) -> Iterator[tuple[str, tuple[bool, ...]]]:
    """For each input, which of its sizes are open; None of a torch model's is fixed by it."""
    if isinstance(side, TorchSide):
        for name, array in side.feeds.items():
            yield name, (True,) * array.ndim
        return
    for name, _, sizes in declared_inputs(side.model):
        yield name, tuple(size is None for size in sizes)


def paired(found: Sequence[str], other: Sequence[str], what: str) -> dict[str, str]:
    """Names of the reference -> names of the candidate: by name, else by position.

    Raises UsageError where they are not as many, or where some names agree and others do not.
    """
    texts = [", ".join(names) or "none" for names in (found, other)]
    if len(found) != len(other):
        raise UsageError(
            f"the reference has {len(found)} {what}s ({texts[0]}), the candidate {len(other)} "
            f"({texts[1]}): they cannot be compared"
        )
    if set(found) == set(other):
        return {name: name for name in found}
    if set(found) & set(other):
        raise UsageError(
            f"the {what}s have different names: {texts[0]} in the reference, {texts[1]} in the "
            "candidate"
        )
    return dict(zip(found, other, strict=True))
