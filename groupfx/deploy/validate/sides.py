"""The two sides of a validation: a torch model or an ONNX file, behind one face.

Both take arrays by the names of inputs and give arrays by the names of outputs.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor, nn

from ...errors import GroupfxError, ModelError, UsageError, first_line
from ...learned.groups import deciding_tensors
from ...running.copies import copied
from ...running.float64 import widen
from ...running.guess import Declared
from ...running.inputs import ExampleInputs, in_order
from ...running.unchanged import evaluate, seed_torch, unchanged
from ...tracing import CannotTrace
from ...verify import Float64Runner
from ..export.exporting import convert
from ..export.io_names import output_names, unique
from ..graph.files import proto_of
from ..quantised.kernels import quantises
from ..running.float64_onnx import Float64Model
from ..running.runtime import Optimised, Session, declared_inputs, give_out
from .onnx_sites import onnx_site_functions
from .onnx_values import OnnxGraph
from .reaching import values_behind
from .runs import perturbed
from .site_functions import SiteFunction, Unchecked, torch_site_functions
from .torch_draws import Draws
from .torch_graph import TorchGraph
from .torch_values import fixed_outputs, value_program

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]
Values = dict[str, Array]

_SEED = 0

_NO_TENSORS = (ir.SequenceType, ir.OptionalType)


@dataclass(frozen=True)
class TorchSide:
    """A torch model with example inputs, in the order of its forward.

    `drawn` are names in the feeds of random numbers that it would draw by itself.
    """

    source: str
    model: nn.Module
    example: ExampleInputs
    notes: list[str] = field(default_factory=list, compare=False)
    drawn: tuple[str, ...] = ()

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
        """Outputs in float64, or in the model's own dtype where it has none there."""
        if not self.has_float64:
            return self._native(feeds, self.dtype)
        with unchanged(self.model), torch.no_grad():
            given = self.given(feeds).map(widen)
            with self.playing(feeds) as draws:
                values = _arrays(self._runner.run(given, _SEED))
            return {**values, **self._probabilities(draws)}

    def native(self, feeds: Feeds, dtype: torch.dtype) -> Values:
        """Outputs of the model run in `dtype`.

        Where the yardstick is that very run, for want of one in float64, on inputs that are one
        rounding away: how far the two are apart is then what is known of rounding.
        """
        moved = feeds if self.has_float64 else next(perturbed(feeds, 1), feeds)
        return self._native(moved, dtype)

    def twice(self, feeds: Feeds, dtype: torch.dtype) -> tuple[Values, Values]:
        """Two runs, with random numbers of their own if it draws any."""
        return self.native(feeds, dtype), self._native(feeds, dtype, _SEED + 1)

    def draws(self, feeds: Feeds) -> Draws:
        """What the model draws in one run, in its own dtype."""
        found = Draws()
        with found:
            self._native(feeds, self.dtype, _SEED + 2)
        return found

    def playing(self, feeds: Feeds) -> Draws:
        """A context in which the draws of the model are those in the feeds."""
        return Draws([torch.from_numpy(np.array(feeds[name])) for name in self.drawn])

    def _probabilities(self, draws: Draws) -> Values:
        """What the draws were made from, where that is computed."""
        if not self.drawn:
            return {}
        pairs = zip(self.drawn, draws.inputs, strict=False)
        return {f"{name}.input": _array(given) for name, given in pairs if given is not None}

    def _native(self, feeds: Feeds, dtype: torch.dtype, seed: int = _SEED) -> Values:
        model = self.in_dtype(dtype)
        given = self.given_in(feeds, dtype)
        with unchanged(model), torch.no_grad():
            evaluate(model)
            # As the run in float64 does.
            random.seed(seed)
            np.random.seed(seed)
            seed_torch(seed)
            try:
                with self.playing(feeds) as draws:
                    values = _arrays(given.call(model))
                return {**values, **self._probabilities(draws)}
            except Exception as error:
                shapes = ", ".join(f"{name} {list(v.shape)}" for name, v in feeds.items())
                raise ModelError(
                    f"{self.source} does not run on {shapes}: {first_line(error)}"
                ) from error

    def moved(self, dtype: torch.dtype, seed: int) -> TorchSide:
        """A copy with each parameter one unit of `dtype` in the last place away."""
        twin = copied(self.model, share=False)
        generator = torch.Generator().manual_seed(seed)
        unit = torch.finfo(dtype).eps
        with torch.no_grad():
            for tensor in twin.parameters():
                if tensor.is_floating_point():
                    signs = torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1
                    tensor.mul_(1 + unit * signs.to(tensor.device))
        side = replace(self, model=twin)
        side.__dict__["has_float64"] = self.has_float64
        return side

    def site_functions(self) -> tuple[tuple[SiteFunction, ...], tuple[Unchecked, ...]]:
        """What each convolution computes, and what is left out and why."""
        try:
            return torch_site_functions(self.model, self.example, lambda: self.program)
        except (CannotTrace, GroupfxError) as error:
            return (), (Unchecked(f"sites are not checked on their own: {error}"),)

    @property
    def program(self) -> torch.export.ExportedProgram:
        """The model as `torch.export` sees it. Raises CannotTrace where it does not take it."""
        found = self._program
        if isinstance(found, CannotTrace):
            raise found
        return found

    @cached_property
    def _program(self) -> torch.export.ExportedProgram | CannotTrace:
        """Once, for it takes as long as many runs of the model: also where it fails."""
        try:
            return value_program(self.model, self.example, sizes=self.has_open_sizes)
        except CannotTrace as error:
            return error

    @cached_property
    def values(self) -> TorchGraph:
        """Its operators one by one. Raises CannotTrace where `torch.export` does not take it."""
        return TorchGraph(self.model, self.program, self.inputs)

    @cached_property
    def has_float64(self) -> bool:
        """Whether the model runs in float64: until `without_float64` is called."""
        return True

    @cached_property
    def has_open_sizes(self) -> bool:
        """Whether it runs in other sizes than the example's: until `with_fixed_sizes` is called."""
        return True

    def with_fixed_sizes(self) -> None:
        """Export with an open batch alone, which takes half the time and less."""
        self.__dict__["has_open_sizes"] = False

    def without_float64(self, reason: str) -> None:
        """Take the model in its own dtype for the yardstick, and note why."""
        self.notes.append(_no_float64(self.source, reason))
        self.__dict__["has_float64"] = False

    def fixed_outputs(self) -> frozenset[str]:
        """Outputs that no value of an input reaches; none where `torch.export` cannot tell."""
        try:
            return fixed_outputs(self.program)
        except CannotTrace:
            return frozenset()

    @cached_property
    def _runner(self) -> Float64Runner:
        return Float64Runner(self.model, deciding_tensors(self.model))

    @cached_property
    def _models(self) -> dict[torch.dtype, nn.Module]:
        return {}

    def in_dtype(self, dtype: torch.dtype) -> nn.Module:
        """The model in `dtype`: a copy, unless that is its own."""
        tensors = (*self.model.parameters(), *self.model.buffers())
        if all(t.dtype == dtype for t in tensors if t.is_floating_point()):
            return self.model
        if dtype not in self._models:
            twin = copied(self.model, share=False)
            convert(twin, dtype)
            self._models[dtype] = twin
        return self._models[dtype]

    def example_in(self, dtype: torch.dtype) -> ExampleInputs:
        """The example inputs with floats of `dtype`."""
        return self.example.map(lambda t: t.to(dtype) if t.is_floating_point() else t)

    def given(self, feeds: Feeds) -> ExampleInputs:
        """The arguments of forward with these arrays in them, integers in the example's dtypes."""
        values = iter([torch.from_numpy(np.array(feeds[name])) for name in self.inputs])

        def placed(tensor: Tensor) -> Tensor:
            value = next(values)
            return value if tensor.is_floating_point() else value.to(tensor.dtype)

        return self.example.map(placed)

    def given_in(self, feeds: Feeds, dtype: torch.dtype) -> ExampleInputs:
        """The same with floats of `dtype`."""
        return self.given(feeds).map(lambda t: t.to(dtype) if t.is_floating_point() else t)


def _plain_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """float32 for a dtype that is none of numpy's own, such as bfloat16."""
    return dtype if dtype.kind in "fbiuc" else np.dtype(np.float32)


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
    """An ONNX model; `source` names it in messages.

    `drawn` are inputs that stand for random numbers which the file drew by itself. `data` are the
    bytes of its file, where they are at hand: they need not be made for each session.
    """

    source: str
    model: ir.Model
    notes: list[str] = field(default_factory=list, compare=False)
    drawn: tuple[str, ...] = ()
    data: bytes | None = field(default=None, compare=False, repr=False)

    @cached_property
    def declared(self) -> tuple[tuple[str, np.dtype[Any], tuple[int | None, ...]], ...]:
        """Name, dtype and sizes of each input; None for an open size."""
        return tuple(declared_inputs(self.model, without=self.drawn))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs."""
        return tuple(name for name, _, _ in self.declared)

    @property
    def for_torch(self) -> tuple[Declared, ...]:
        """The inputs as a torch model of the same network takes them."""
        return tuple(
            Declared(name, torch.from_numpy(np.zeros(1, _plain_dtype(dtype))).dtype, sizes)
            for name, dtype, sizes in self.declared
        )

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs. Raises UsageError where one is no tensor of numbers."""
        for value in self.model.graph.outputs:
            if value.dtype == ir.DataType.STRING or isinstance(value.type, _NO_TENSORS):
                kind = "text" if value.dtype == ir.DataType.STRING else "no tensor"
                raise UsageError(
                    f"{self.source}: output {value.name} is {kind}, which is not compared: leave "
                    "it out of the file, or do not check (--no-verify, verify=False)"
                )
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
    def quantises(self) -> bool:
        """Whether it rounds to whole numbers on its way."""
        return quantises(self.model)

    @cached_property
    def session(self) -> Session:
        """The model in ONNX Runtime as it is written, not optimised."""
        return self.session_of("off")

    @cached_property
    def optimised(self) -> Session:
        """The model in ONNX Runtime, optimised."""
        return self.session_of("on")

    def session_of(self, optimised: Optimised, also: Sequence[str] = ()) -> Session:
        """A session of it which gives inner values `also`."""
        return Session(self.model, optimised, source=self.source, also=also, data=self.data)

    def wide(self, feeds: Feeds) -> Values:
        """Outputs in float64; in the file's own dtype where an operator has no float64 form."""
        evaluator, own = self._wide_model, self.own(feeds)
        return self.session.run(own) if evaluator is None else evaluator.run(own)

    def native(self, feeds: Feeds, dtype: torch.dtype) -> Values:
        """Outputs as ONNX Runtime computes them, not optimised; rounded to a narrower `dtype`.

        Where the yardstick is that very run, for want of one in float64, the optimised one: how far
        the two are apart is then what is known of rounding.
        """
        if self._wide_model is None:
            return self.optimised.run(self.own(feeds))
        if dtype == torch.float16 and self.dtype != dtype:
            return self._half_model.run(self.own(feeds))
        return self.session.run(self.own(feeds))

    def inner(self, names: Sequence[str], feeds: Feeds) -> Values:
        """Inner values in float64, or optimised where there is no float64."""
        proto = proto_of(self.model)
        give_out(proto, names)
        if self._wide_model is not None:
            return Float64Model(proto).run(self.own(feeds), names)
        return self.session_of("on", names).run(self.own(feeds), names)

    def twice(self, feeds: Feeds, dtype: torch.dtype) -> tuple[Values, Values]:
        """Two runs, with random numbers of their own if it draws any."""
        own = self.own(feeds)
        return self.session.run(own), self.session.run(own)

    def own(self, feeds: Feeds) -> Feeds:
        """The same arrays in the dtypes that the file declares."""
        dtypes = {name: dtype for name, dtype, _ in self.declared}
        for value in self.model.graph.inputs if self.drawn else ():
            if value.name in self.drawn and value.dtype is not None:
                dtypes[value.name] = value.dtype.numpy()
        return {name: np.asarray(a).astype(dtypes.get(name, a.dtype)) for name, a in feeds.items()}

    def without_float64(self, reason: str) -> None:
        """Take the file in its own dtype for the yardstick, and note why."""
        self.notes.append(_no_float64(self.source, reason))
        self.__dict__["_wide_model"] = None

    def site_functions(self) -> tuple[tuple[SiteFunction, ...], tuple[Unchecked, ...]]:
        """What each convolution computes, and what is left out and why."""
        return onnx_site_functions(self.model)

    def fixed_outputs(self) -> frozenset[str]:
        """Outputs that no value of an input reaches, but its sizes at most."""
        given = [value for value in self.model.graph.inputs if not value.is_initializer()]
        reached = {value.name for value in values_behind(self.model.graph, given)}
        return frozenset(self.outputs) - reached

    @cached_property
    def values(self) -> OnnxGraph:
        """Its operators one by one."""
        return OnnxGraph(self.model)

    @cached_property
    def _wide_model(self) -> Float64Model | None:
        try:
            return Float64Model(proto_of(self.model))
        except UsageError as error:
            self.without_float64(str(error))
            return None

    @cached_property
    def _half_model(self) -> Float64Model:
        return Float64Model(proto_of(self.model), rounded=np.dtype(np.float16))


Side = TorchSide | OnnxSide


def _no_float64(source: str, reason: str) -> str:
    return f"the yardstick is {source} in its own dtype, not in float64: {reason}"


def open_axes(side: Side) -> Iterator[tuple[str, tuple[bool, ...]]]:
    """For each input, which of its sizes are open; None of a torch model's is fixed by it."""
    if isinstance(side, TorchSide):
        for name, array in side.feeds.items():
            yield name, (True,) * array.ndim
        return
    for name, _, sizes in side.declared:
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
