"""Guess what a model takes: its own dummy inputs, or usual sizes for its first layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import NamedTuple

import torch
from torch import nn

from ..convs.spec import shape_of_weight
from ..errors import ModelError, kind_and_line
from .alone import alone
from .inputs import MOST_ELEMENTS, ExampleInputs
from .told_sizes import fitted_sizes, setting, told_sizes
from .unchanged import evaluate, unchanged

_REMEDY = "give the inputs, or their shape with --input-shape, such as --input-shape 2,3,224,224"
# Tried in this order until the model's forward takes one: the sizes that published models of each
# rank are made for, the most usual first.
_SIZES: Mapping[int, tuple[int, ...]] = {
    1: (128, 256, 64, 32, 512, 1024, 16, 100, 400, 2048, 16000, 8, 4, 2),
    2: (224, 32, 64, 28, 96, 128, 256, 160, 299, 384, 512, 84, 16, 8),
    3: (32, 64, 16, 96, 112, 128, 8),
}
_FIRST_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FIRST_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# After a transposed convolution things grow: a decoder starts small.
_SMALL_SIZES = (4, 7, 8, 16, 1, 32, 64)
_BATCH = 2
_TOKENS = 16
# What the strides of a network usually divide.
_EVEN = 32
# Of all that was tried, in a message.
_NAMED = 24


class InferredInputs(NamedTuple):
    """Inputs that a model's forward accepted, and where they came from, as text.

    `layer` is the one whose channels told the shape, if one did. `told` says what told the sizes;
    None where they are a guess, which the inputs say too.
    """

    inputs: ExampleInputs
    source: str
    layer: str | None = None
    told: str | None = None


class Declared(NamedTuple):
    """An input as a file of the same network declares it; None for a size that is open."""

    name: str
    dtype: torch.dtype
    sizes: tuple[int | None, ...]


@dataclass(frozen=True)
class _Candidate:
    """Inputs to try. `guess` are sizes in them that nothing tells, `others` some to try instead."""

    make: Make
    source: str
    layer: str | None = None
    told: str | None = None
    guess: tuple[int, ...] = ()
    others: tuple[Make, ...] = ()


Make = Callable[[torch.Generator], ExampleInputs]


def inputs_for(
    model: nn.Module, known: ExampleInputs | None, declared: Sequence[Declared] = ()
) -> InferredInputs:
    """The inputs that are `known`, in the sizes that a file has `declared`; inferred without them.

    Raises ModelError as `infer_inputs` does.
    """
    if known is not None:
        fitted = known.fitted([entry.sizes for entry in declared]) if declared else known
        if fitted is not None:
            return InferredInputs(fitted, "known", told="as in the file")
    return infer_inputs(model, declared)


@alone
def infer_inputs(model: nn.Module, declared: Sequence[Declared] = ()) -> InferredInputs:
    """Guess inputs that `model` takes: random, in batches of 2, tried in eval mode.

    What a file of the same network has `declared` is taken. Else example inputs of the model's own
    (as those of Hugging Face and Lightning have) are tried first, then the channels of its first
    convolution or linear layer with sizes that it names, with usual ones, and with those that fit a
    linear layer. The model's modes, buffers and the random generators are left as they were.

    Raises ModelError, with what was tried and the remedy, if none is taken.
    """
    generator = torch.Generator().manual_seed(0)
    tried: list[str] = []
    failure = "nothing in it says what shape it takes"
    with unchanged(model), torch.no_grad():
        evaluate(model)
        for each in _declared(model, declared) if declared else _candidates(model):
            tried.append(each.source)
            try:
                inputs = _taken(each.make, model, generator)
            except Exception as error:
                failure = f"{each.source}: {kind_and_line(error)}"
                continue
            told = each.told
            if each.guess and not any(_takes(other, model, generator) for other in each.others):
                told = told or "the only usual size that it takes"
            if told is None and each.guess:
                inputs = replace(inputs, guessed="x".join(map(str, each.guess)))
            return InferredInputs(inputs, each.source, each.layer, told)
    attempts = "; ".join(tried[:_NAMED]) + (
        f"; and {len(tried) - _NAMED} more" if len(tried) > _NAMED else ""
    )
    raise ModelError(
        f"cannot guess the inputs of {type(model).__name__}: tried {attempts or 'nothing'}; the "
        f"last failure was {failure}. {_REMEDY}"
    )


def _taken(make: Make, model: nn.Module, generator: torch.Generator) -> ExampleInputs:
    """The inputs, which the model ran on."""
    inputs = _placed(make(generator), model)
    inputs.call(model)
    return inputs


def _takes(make: Make, model: nn.Module, generator: torch.Generator) -> bool:
    try:
        _taken(make, model, generator)
    except Exception:  # whatever a model raises on a size that it is not made for
        return False
    return True


def _candidates(model: nn.Module) -> Iterator[_Candidate]:
    for held in ("dummy_inputs", "example_input_array"):
        own = setting(model, held)
        if isinstance(own, (Mapping, torch.Tensor, tuple, list)) and len(own):
            told = f"the model's {held}"
            yield _Candidate(_own(own), told, told=told)
    name = getattr(model, "main_input_name", None)
    if name in ("input_ids", "inputs"):
        told = f"{name}: token ids [{_BATCH}, {_TOKENS}]"
        yield _Candidate(
            lambda g: _tokens(model, name, g),
            told,
            guess=(_TOKENS,),
            others=(lambda g: _tokens(model, name, g, 2 * _TOKENS),),
        )
    if name == "input_values":
        for length in (16000, 4000, 1000, 400):
            shape, other = (_BATCH, length), _random((_BATCH, 2 * length), name)
            yield _Candidate(
                _random(shape, name), f"{name}: {list(shape)}", guess=(length,), others=(other,)
            )
    keyword = name if name == "pixel_values" else None
    layer = _first_layer(model)
    if layer is not None:
        yield from _of_layer(model, *layer, keyword)


def _own(value: object) -> Make:
    return lambda _: ExampleInputs.of(value).with_batch(_BATCH)


def _first_layer(model: nn.Module) -> tuple[str, nn.Module] | None:
    """The first convolution, else the first linear layer: what the input most likely meets."""
    named = list(model.named_modules())
    for types in ((*_FIRST_CONVS, *_FIRST_TRANSPOSED), (nn.Linear,)):
        for path, module in named:
            # Without a weight yet, a lazy layer takes whatever comes first.
            if isinstance(module, types) and not nn.parameter.is_lazy(module.weight):
                return path, module
    return None


def _of_layer(
    model: nn.Module, path: str, module: nn.Module, keyword: str | None
) -> Iterator[_Candidate]:
    """Inputs with the channels of the layer that they meet first."""
    layer = path or "the model"
    if isinstance(module, nn.Linear):
        _, features = shape_of_weight(module)
        for shape in ((_BATCH, features), (_BATCH, _TOKENS, features)):
            source = f"{list(shape)} from {layer}"
            other = _random((_BATCH, 2 * _TOKENS, features), keyword)
            yield _Candidate(
                _random(shape, keyword), source, layer, guess=shape[1:-1], others=(other,)
            )
        return
    assert isinstance(module, (*_FIRST_CONVS, *_FIRST_TRANSPOSED))
    transposed = isinstance(module, _FIRST_TRANSPOSED)
    rows, columns, *kernel = shape_of_weight(module)
    channels, rank = rows if transposed else columns * module.groups, len(kernel)

    def of_size(sizes: tuple[int, ...], told: str | None, guess: bool = False) -> _Candidate:
        shape = (_BATCH, channels, *sizes)
        others = [_random((_BATCH, channels, *[n] * rank), keyword) for n in _other(sizes[0])]
        return _Candidate(
            _random(shape, keyword),
            f"{list(shape)} from {layer}",
            layer,
            told,
            sizes if guess else (),
            tuple(others),
        )

    for sizes, name in told_sizes(model, module.stride):
        yield of_size(sizes, f"as {name} tells")
    usual = _SMALL_SIZES if transposed else _SIZES[rank]
    for size in usual:
        yield of_size((size,) * rank, None, guess=True)
    generator = torch.Generator().manual_seed(0)

    def run(sizes: tuple[int, ...]) -> None:
        _taken(_random((_BATCH, channels, *sizes), keyword), model, generator)

    for sizes, name in fitted_sizes(model, run, rank, usual[0]):
        yield of_size(sizes, f"a size that {name} takes")


def _other(size: int) -> Iterator[int]:
    """Sizes that a network takes which takes any: a smaller one that is as even, a larger one."""
    if size > _EVEN:
        yield (size - 1) // _EVEN * _EVEN
    yield 2 * size


def _declared(model: nn.Module, declared: Sequence[Declared]) -> Iterator[_Candidate]:
    """Inputs of the sizes that a file declares; those that are open there are guessed."""
    accepted = signature(model.forward).parameters
    named = all(entry.name in accepted for entry in declared)
    high = min(
        (m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)), default=2
    )
    opened = [size for entry in declared for size in entry.sizes[1:] if size is None]
    rank = max(max(len(entry.sizes) for entry in declared) - 2, 1)

    def of(size: int) -> Make:
        def make(generator: torch.Generator) -> ExampleInputs:
            values = {}
            for entry in declared:
                sizes = [
                    (size if axis else _BATCH) if known is None else known
                    for axis, known in enumerate(entry.sizes)
                ]
                if math.prod(sizes) > MOST_ELEMENTS:
                    raise ModelError(f"{entry.name} {sizes} has more than {MOST_ELEMENTS} elements")
                values[entry.name] = _values(sizes, entry.dtype, high, generator)
            return ExampleInputs((), values) if named else ExampleInputs(tuple(values.values()))

        return make

    for size in _SIZES[min(rank, 3)] if opened else (_BATCH,):
        yield _Candidate(
            of(size),
            f"what the other file declares{f', {size} where it is open' if opened else ''}",
            told=None if opened else "as the other file declares",
            guess=(size,) if opened else (),
            others=tuple(of(other) for other in _other(size)),
        )


def _values(
    sizes: Sequence[int], dtype: torch.dtype, high: int, generator: torch.Generator
) -> torch.Tensor:
    if dtype.is_floating_point:
        return torch.randn(sizes, generator=generator).to(dtype)
    limit = 2 if dtype == torch.bool else high
    return torch.randint(0, limit, tuple(sizes), generator=generator).to(dtype)


def _random(shape: tuple[int, ...], name: str | None) -> Make:
    def make(generator: torch.Generator) -> ExampleInputs:
        value = torch.randn(shape, generator=generator)
        return ExampleInputs((value,)) if name is None else ExampleInputs((), {name: value})

    return make


def _tokens(
    model: nn.Module, name: str, generator: torch.Generator, length: int = _TOKENS
) -> ExampleInputs:
    vocabulary = int(getattr(getattr(model, "config", None), "vocab_size", 2))
    ids = torch.randint(0, vocabulary, (_BATCH, length), generator=generator)
    return ExampleInputs((), {name: ids})


def _placed(inputs: ExampleInputs, model: nn.Module) -> ExampleInputs:
    """On the device and, for floats, in the dtype of the model's first floating parameter."""
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    if first is None:
        return inputs
    return inputs.map(lambda t: t.to(first) if t.is_floating_point() else t.to(first.device))
