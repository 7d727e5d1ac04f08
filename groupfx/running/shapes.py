"""`--input-shape`: example inputs from text such as `2,3,32,32` or `input_ids=int64:2,16`."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import UsageError
from .inputs import MOST_ELEMENTS, ExampleInputs

_FORM = re.compile(r"(?:(?P<name>[^=:,]+)=)?(?:(?P<dtype>[^=:,]+):)?(?P<sizes>[^=:]+)")
_FORMS = "2,3,32,32 or name=2,3,32,32 or int64:2,16 or name=int64:2,16"
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
        torch.complex64,
        torch.complex128,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.bool,
    )
}


@dataclass(frozen=True)
class InputShape:
    """One input as the command line names it; `dtype` is None where it follows the model."""

    name: str | None
    dtype: torch.dtype | None
    sizes: tuple[int, ...]


def parse_input_shape(text: str) -> InputShape:
    """Read `[name=][dtype:]size,size,...`; UsageError for anything else."""
    found = _FORM.fullmatch(text.strip())
    sizes = found["sizes"].split(",") if found else []
    if found is None or not all(re.fullmatch(r"\s*\d+\s*", size) for size in sizes):
        raise UsageError(f"--input-shape {text!r} is not a shape: write {_FORMS}")
    numbers = tuple(int(size) for size in sizes)
    if 0 in numbers or math.prod(numbers) > MOST_ELEMENTS:
        limit = f"each size is at least 1, and all together at most {MOST_ELEMENTS} elements"
        raise UsageError(f"--input-shape {text!r} makes no usable input: {limit}")
    dtype = found["dtype"]
    if dtype is not None and dtype.strip() not in _DTYPES:
        known = ", ".join(_DTYPES)
        raise UsageError(f"--input-shape {text!r}: {dtype!r} is no dtype, choose one of {known}")
    name = found["name"]
    return InputShape(
        name=None if name is None else name.strip(),
        dtype=None if dtype is None else _DTYPES[dtype.strip()],
        sizes=numbers,
    )


def inputs_of_shapes(shapes: Sequence[InputShape], model: nn.Module) -> ExampleInputs:
    """Random inputs for `model`: positional ones in the given order, named ones by keyword.

    Floats are normal, in the model's own dtype where none is given. Integers go up to the size of
    the smallest embedding, so that they may be token ids; where there is none they are 0 or 1.
    """
    names = [shape.name for shape in shapes if shape.name is not None]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UsageError(f"--input-shape names {', '.join(sorted(twice))} twice")
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    usual = torch.get_default_dtype() if first is None else first.dtype
    device = torch.device("cpu") if first is None else first.device
    embeddings = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]
    high = min(embeddings, default=2)
    generator = torch.Generator().manual_seed(0)

    def value(shape: InputShape) -> torch.Tensor:
        dtype = shape.dtype or usual
        if dtype.is_floating_point or dtype.is_complex:
            wide = torch.complex128 if dtype.is_complex else torch.float64
            made = torch.randn(shape.sizes, dtype=wide, generator=generator)
        else:
            limit = 2 if dtype is torch.bool else min(high, torch.iinfo(dtype).max)
            made = torch.randint(0, limit, shape.sizes, generator=generator)
        return made.to(device=device, dtype=dtype)

    made = [(shape.name, value(shape)) for shape in shapes]
    positional = tuple(tensor for name, tensor in made if name is None)
    return ExampleInputs(positional, {name: tensor for name, tensor in made if name is not None})
