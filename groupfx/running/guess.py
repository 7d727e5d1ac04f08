"""Guess what a model takes: its own dummy inputs, or usual sizes for its first layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import nn

from ..convs.spec import shape_of_weight
from ..errors import ModelError, kind_and_line
from .alone import alone
from .inputs import ExampleInputs
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


class InferredInputs(NamedTuple):
    """Inputs that a model's forward accepted, and where they came from, as text.

    `layer` is the one whose channels told the shape, if one did.
    """

    inputs: ExampleInputs
    source: str
    layer: str | None = None


@alone
def infer_inputs(model: nn.Module) -> InferredInputs:
    """Guess inputs that `model` takes: random, in batches of 2, tried in eval mode.

    A `dummy_inputs` of the model (as Hugging Face models have) is tried first, then its first
    convolution's or linear layer's channels with usual sizes. The model's modes, buffers and the
    random generators are left as they were.

    Raises ModelError, with what was tried and the remedy, if none is taken.
    """
    generator = torch.Generator().manual_seed(0)
    tried: list[str] = []
    failure = "nothing in it says what shape it takes"
    with unchanged(model), torch.no_grad():
        evaluate(model)
        for make, source, layer in _candidates(model):
            tried.append(source)
            try:
                inputs = _placed(make(generator), model)
                inputs.call(model)
            except Exception as error:
                failure = f"{source}: {kind_and_line(error)}"
                continue
            return InferredInputs(inputs, source, layer)
    attempts = "; ".join(tried) or "nothing"
    raise ModelError(
        f"cannot guess the inputs of {type(model).__name__}: tried {attempts}; the last failure "
        f"was {failure}. {_REMEDY}"
    )


Make = Callable[[torch.Generator], ExampleInputs]


def _candidates(model: nn.Module) -> Iterator[tuple[Make, str, str | None]]:
    dummy = getattr(model, "dummy_inputs", None)
    if isinstance(dummy, Mapping) and dummy:
        told = "the model's dummy_inputs"
        yield (lambda _: ExampleInputs.of(dummy).with_batch(_BATCH)), told, None
    name = getattr(model, "main_input_name", None)
    if name in ("input_ids", "inputs"):
        yield (lambda g: _tokens(model, name, g)), f"{name}: token ids [{_BATCH}, 16]", None
    if name == "input_values":
        for length in (16000, 4000, 1000, 400):
            shape = (_BATCH, length)
            yield _random(shape, name), f"{name}: {list(shape)}", None
    keyword = name if name == "pixel_values" else None
    layer = _first_layer(model)
    if layer is not None:
        path, module = layer
        for sizes in _shapes(model, module):
            layer_name = path or "the model"
            yield _random(sizes, keyword), f"{list(sizes)} from {layer_name}", layer_name


def _first_layer(model: nn.Module) -> tuple[str, nn.Module] | None:
    """The first convolution, else the first linear layer: what the input most likely meets."""
    named = list(model.named_modules())
    for types in ((*_FIRST_CONVS, *_FIRST_TRANSPOSED), (nn.Linear,)):
        for path, module in named:
            # Without a weight yet, a lazy layer takes whatever comes first.
            if isinstance(module, types) and not nn.parameter.is_lazy(module.weight):
                return path, module
    return None


def _shapes(model: nn.Module, module: nn.Module) -> Iterator[tuple[int, ...]]:
    if isinstance(module, nn.Linear):
        _, features = shape_of_weight(module)
        yield from ((_BATCH, features), (_BATCH, 16, features))
        return
    assert isinstance(module, (*_FIRST_CONVS, *_FIRST_TRANSPOSED))
    transposed = isinstance(module, _FIRST_TRANSPOSED)
    rows, columns, *kernel = shape_of_weight(module)
    channels, rank = rows if transposed else columns * module.groups, len(kernel)
    wanted = getattr(getattr(model, "config", None), "image_size", None)
    sizes = _SMALL_SIZES if transposed else _SIZES[rank]
    if isinstance(wanted, int):
        sizes = (wanted, *(size for size in sizes if size != wanted))
    for size in sizes:
        yield _BATCH, channels, *[size] * rank


def _random(shape: tuple[int, ...], name: str | None) -> Make:
    def make(generator: torch.Generator) -> ExampleInputs:
        value = torch.randn(shape, generator=generator)
        return ExampleInputs((value,)) if name is None else ExampleInputs((), {name: value})

    return make


def _tokens(model: nn.Module, name: str, generator: torch.Generator) -> ExampleInputs:
    vocabulary = int(getattr(getattr(model, "config", None), "vocab_size", 2))
    ids = torch.randint(0, vocabulary, (_BATCH, 16), generator=generator)
    return ExampleInputs((), {name: ids})


def _placed(inputs: ExampleInputs, model: nn.Module) -> ExampleInputs:
    """On the device and, for floats, in the dtype of the model's first floating parameter."""
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    if first is None:
        return inputs
    return inputs.map(lambda t: t.to(first) if t.is_floating_point() else t.to(first.device))
