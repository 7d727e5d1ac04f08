"""What a validation is run on: random inputs of several sizes, adversarial ones, the user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...running.inputs import ExampleInputs
from ...verify import other_spatial
from .domain import Domain
from .drawn_batches import ALWAYS, has_large_rows

Array = npt.NDArray[Any]

_FIRST_SEED = 11
_MORE_SEEDS = (23, 47)
_MOST_ELEMENTS = 1 << 26


@dataclass(frozen=True)
class Run:
    """One run: an array for each input. An ordinary run has values as a user would give.

    `user` says that a user gave these values, `rebatched` and `resized` that it has another batch
    or other spatial sizes than the example.
    """

    name: str
    ordinary: bool
    feeds: Mapping[str, Array]
    user: bool = False
    rebatched: bool = False
    resized: bool = False


@dataclass(frozen=True)
class Open:
    """Which sizes of the inputs both sides leave open."""

    batch: bool
    sizes: bool


def make_runs(
    example: Mapping[str, Array],
    given: bool,
    free: Open,
    data: Sequence[Mapping[str, Array]] = (),
    domains: Mapping[str, Domain] | None = None,
    batches: Sequence[int] = ALWAYS,
) -> Iterator[Run]:
    """Every run, the ordinary ones first.

    Inputs that have a domain are drawn from all of it, other integers from those of the example.

    `example` is one array for each input, `given` whether a user gave its values. `data` are the
    user's own inputs, `batches` numbers of rows to try. Runs in other spatial sizes may not suit
    the model.
    """
    template = ExampleInputs((), {name: _tensor(array) for name, array in example.items()})
    if given:
        yield Run("the given inputs", True, example, user=True)
    for position, feeds in enumerate(data):
        name = f"data {position + 1}" if len(data) > 1 else "data"
        yield Run(name, True, feeds, user=True)
    generator = np.random.default_rng(_FIRST_SEED)
    for run in (*_ordinary(template, free, batches), *_adversarial(template, free)):
        drawn = {
            name: domain.sample(run.feeds[name].shape, generator).astype(run.feeds[name].dtype)
            for name, domain in (domains or {}).items()
        }
        yield replace(run, feeds={**run.feeds, **drawn})


def _ordinary(template: ExampleInputs, free: Open, batches: Sequence[int]) -> Iterator[Run]:
    seed = _FIRST_SEED
    if free.batch and template.batch:
        for batch in batches:
            run = _random(template.with_batch(batch), f"random batch {batch}", seed)
            yield replace(run, rebatched=batch != template.batch)
            seed += 1
    else:
        yield _random(template, "random", seed)
    for more in () if _is_large(template) else _MORE_SEEDS:
        inputs = template.with_batch(2) if free.batch and template.batch else template
        run = _random(inputs, f"random seed {more}", more)
        yield replace(run, rebatched=inputs.batch != template.batch)
    if free.sizes:
        for sizes in list(other_spatial(template.spatial)):
            text = "x".join(map(str, sizes))
            resized = template.resized(sizes)
            if sum(tensor.numel() for tensor in resized.tensors()) <= _MOST_ELEMENTS:
                yield replace(_random(resized, f"random size {text}", seed), resized=True)


def _is_large(template: ExampleInputs) -> bool:
    return has_large_rows(feeds_of(template))


def _random(inputs: ExampleInputs, name: str, seed: int) -> Run:
    generator = torch.Generator().manual_seed(seed)
    return Run(name, True, feeds_of(inputs.randomized(generator)))


def _adversarial(template: ExampleInputs, free: Open) -> Iterator[Run]:
    rows = 1 if _is_large(template) else 2
    inputs = template.with_batch(rows) if free.batch and template.batch else template
    generator = torch.Generator().manual_seed(_FIRST_SEED)
    normal = inputs.randomized(generator)
    floats = [t for t in normal.tensors() if t.is_floating_point()]
    if not floats:
        return
    info = torch.finfo(floats[0].dtype)
    large = 1e4 if info.max > 1e30 else 30.0
    tiny = 1e-4 if info.max > 1e30 else 1e-2
    denormal = info.smallest_normal / 64
    changes: Mapping[str, Callable[[Tensor], Tensor]] = {
        "large": lambda t: t * large,
        "tiny": lambda t: t * tiny,
        "zero": torch.zeros_like,
        "negative": lambda t: -t.abs(),
        "denormal": lambda t: t * denormal,
    }
    for name, change in changes.items():
        changed = normal.map(lambda t, c=change: c(t) if t.is_floating_point() else t)  # type: ignore[misc]
        rebatched = inputs.batch != template.batch
        yield Run(name, False, feeds_of(changed), rebatched=rebatched)


def perturbed(feeds: Mapping[str, Array], number: int) -> Iterator[Mapping[str, Array]]:
    """The same inputs with each floating value moved by at most one unit in the last place."""
    generator = np.random.default_rng(_FIRST_SEED)
    for _ in range(number if any(array.dtype.kind == "f" for array in feeds.values()) else 0):
        moved = {}
        for name, array in feeds.items():
            if array.dtype.kind != "f":
                moved[name] = array
                continue
            steps = generator.integers(-1, 2, array.shape)
            towards = np.where(steps > 0, np.inf, -np.inf).astype(array.dtype)
            moved[name] = np.asarray(np.where(steps == 0, array, np.nextafter(array, towards)))
        yield moved


def feeds_of(inputs: ExampleInputs) -> dict[str, Array]:
    """The keyword arguments as arrays."""
    return {name: value.detach().cpu().numpy() for name, value in inputs.kwargs.items()}


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.array(array))  # a scalar stays one
