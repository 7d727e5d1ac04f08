"""The proof end to end: a whole model and its rewritten form, in eval mode and in float64."""

from __future__ import annotations

import contextlib
import copy
import math
import random
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import GroupfxError, ModelError, kind_and_line
from ..running.float64 import Float64, named_state, widen
from ..running.inputs import ExampleInputs
from ..running.unchanged import evaluate, seed_torch, unchanged
from .measures import StructureMismatchError, difference, identical, paired_leaves, plain_number

_SEEDS = (11, 23, 47)
# Below it, a part of an image is soon smaller than a kernel.
_LARGE = 32
# What most nets that make an image smaller can divide it by.
_STRIDE = 32


@dataclass(frozen=True)
class OutputVerdict:
    """One output tensor, over all runs: max|d| / max|y| at its worst, and why it is not ok."""

    name: str
    ok: bool
    relative_error: float
    identical: bool
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data; a number that is not finite is None."""
        return {**vars(self), "relative_error": plain_number(self.relative_error)}


@dataclass(frozen=True)
class ModelVerdict:
    """What the comparison end to end found.

    Attributes:
        ok: every output agrees in every run.
        outputs: one verdict for each output tensor.
        reason: why it is not ok, in words; None if it is.
        runs: the input shapes of each run.
        wide: whether it was made in float64; else the original runs in its own dtype alone.
    """

    ok: bool
    outputs: tuple[OutputVerdict, ...] = ()
    reason: str | None = None
    runs: tuple[tuple[tuple[int, ...], ...], ...] = ()
    wide: bool = True

    @property
    def identical(self) -> bool:
        """Whether every output was bit-identical in every run."""
        return self.ok and all(output.identical for output in self.outputs)

    @property
    def relative_error(self) -> float:
        """The worst of all outputs."""
        return max((output.relative_error for output in self.outputs), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with shapes as lists."""
        return {
            "ok": self.ok,
            "identical": self.identical,
            "relative_error": plain_number(self.relative_error),
            "reason": self.reason,
            "outputs": [output.to_dict() for output in self.outputs],
            "runs": [[list(shape) for shape in run] for run in self.runs],
            "wide": self.wide,
        }


def compare_models(
    original: nn.Module,
    rewritten: nn.Module,
    inputs: ExampleInputs,
    *,
    tolerance: float = 1e-12,
    native: Collection[str] = (),
    vary: bool = True,
    once: bool = False,
    small: ExampleInputs | None = None,
) -> ModelVerdict:
    """Run both models in eval mode and float64 and compare every output tensor.

    Three runs, with a seed each: the inputs as given; random ones in another batch size; random
    ones in another spatial size too. The original decides which sizes there are (with
    `vary=False`: only the given ones, for a model that was exported with fixed sizes). `once` makes
    the last of them alone, which is the smallest too, for models whose parts have been compared
    already; the inputs as given, where sizes are fixed. `small` is of a size that the original was
    seen to take, which ends the search for one. Every output must satisfy max|d| / max|y|
    <= `tolerance`; integers, bools and the structure must be equal; for values that are not finite
    see `measures`.

    `native` names parameters and buffers that keep their own dtype; see `Float64`. Both models'
    modes and buffers and the random generators are left as they were. Models that draw random
    numbers get the same seed on both sides.

    Where the original does not run in float64, both are run in their own dtype, and the bound is
    the square root of its unit roundoff: the sites, each on its own, have been compared closer.

    Raises ModelError if the original does not run on the given inputs.
    """
    try:
        return _compare_models(original, rewritten, inputs, tolerance, native, vary, once, small)
    except ModelError:
        # Of a model that is given token ids, the weights say what it computes in.
        narrow = _number_dtypes(inputs.tensors()) or _number_dtypes(original.parameters())
        if not narrow or not _runs_at_all(original, inputs):
            raise
        rough = math.sqrt(max(torch.finfo(dtype).eps for dtype in narrow))
        sides = (original, rewritten, inputs, rough, native, vary, once, small)
        return _compare_models(*sides, wide=False)


def _number_dtypes(tensors: Iterable[Tensor]) -> set[torch.dtype]:
    dtypes = {tensor.dtype for tensor in tensors}
    return {dtype for dtype in dtypes if dtype.is_floating_point or dtype.is_complex}


def _runs_at_all(model: nn.Module, inputs: ExampleInputs) -> bool:
    with unchanged(model), torch.no_grad():
        evaluate(model)
        try:
            inputs.map(torch.clone).call(model)
        except Exception:
            return False
    return True


def _compare_models(
    original: nn.Module,
    rewritten: nn.Module,
    inputs: ExampleInputs,
    tolerance: float,
    native: Collection[str],
    vary: bool,
    once: bool,
    small: ExampleInputs | None,
    wide: bool = True,
) -> ModelVerdict:
    runs: list[tuple[tuple[int, ...], ...]] = []
    outputs: dict[str, OutputVerdict] = {}
    reason = None
    with torch.no_grad():
        before, after = (
            Float64Runner(side, native, wide=wide, products=True) for side in (original, rewritten)
        )
        for seed, given, expected in _runs(before, inputs, vary, once, small):
            runs.append(tuple(tuple(tensor.shape) for tensor in given.tensors()))
            try:
                found = after.run(given, seed)
            except Exception as error:
                reason = (
                    f"the rewritten model fails where the original runs: {kind_and_line(error)}"
                )
                break
            try:
                _compare(expected, found, tolerance, outputs)
            except StructureMismatchError as error:
                reason = str(error)
                break
    if reason is None:
        wrong = [output for output in outputs.values() if not output.ok]
        reason = f"{wrong[0].name} {wrong[0].reason}" if wrong else None
    return ModelVerdict(reason is None, tuple(outputs.values()), reason, tuple(runs), wide)


class Float64Runner:
    """Runs one model in eval mode and float64, with the same random numbers for the same seed.

    Not `wide`: in the model's own dtype. For `products` see `Float64`.
    """

    def __init__(
        self,
        model: nn.Module,
        native: Collection[str],
        *,
        wide: bool = True,
        products: bool = False,
    ) -> None:
        self.model = model
        self.wide = wide
        self._products = products
        state = named_state(model) if native else {}
        self._native = [state[name] for name in native if name in state]
        self._wide: nn.Module | None = None
        self._ran = False

    def run(self, inputs: ExampleInputs, seed: int, *, copies: bool = True) -> Any:
        """The model's output. `inputs` are not written to.

        Not `copies`: as it is or not at all.
        """
        if not self.wide:
            return self._call(self.model, inputs, seed)
        if self._wide is not None:
            return self._call(self._wide, inputs, seed)
        mode = Float64(self.model, self._native, products=self._products)
        try:
            output = self._call(self.model, inputs, seed, mode)
        except Exception as error:
            if not copies or self._ran or self._native or isinstance(error, GroupfxError):
                raise
            # TorchScript and custom operators are out of a function mode's reach.
            wide = _wide_copy(self.model, error)
            output = self._call(wide, inputs, seed)
            # Only now: inputs that no copy takes say nothing of the mode.
            self._wide = wide
            return output
        self._ran = True
        return output

    def _call(
        self,
        model: nn.Module,
        inputs: ExampleInputs,
        seed: int,
        mode: Float64 | None = None,
    ) -> Any:
        # What one run leaves behind, such as a generator's state, the other side's next is without.
        with unchanged(model):
            evaluate(model)
            random.seed(seed)
            np.random.seed(seed)
            seed_torch(seed)
            with mode or contextlib.nullcontext():
                return inputs.map(torch.clone).call(model)


def _wide_copy(model: nn.Module, error: Exception) -> nn.Module:
    try:
        return copy.deepcopy(model).double()
    except Exception:
        raise error from None


def _runs(
    original: Float64Runner,
    inputs: ExampleInputs,
    vary: bool,
    once: bool,
    small: ExampleInputs | None,
) -> Iterator[tuple[int, ExampleInputs, Any]]:
    """Seed, inputs and the original's output of each run."""
    first = inputs.map(widen) if original.wide else inputs
    if once and vary:
        # Where only the given sizes are taken, the given values are.
        choices = small_inputs(inputs) if small is None else iter((small,))
        wide = (choice.map(widen) if original.wide else choice for choice in choices)
        others = _varied(original, _SEEDS[2], wide)
        if others is not None:
            yield others
            return
    try:
        expected = original.run(first, _SEEDS[0])
    except GroupfxError:
        raise
    except Exception as error:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in inputs.tensors())
        raise ModelError(
            f"{type(original.model).__name__} does not run in float64 on inputs of shape {shapes}: "
            f"{kind_and_line(error)}"
        ) from error
    yield _SEEDS[0], first, expected
    for seed, sizes in zip(_SEEDS[1:], () if once else _other_sizes(first, vary), strict=False):
        found = _varied(original, seed, sizes)
        if found is not None:
            yield found


def _varied(
    original: Float64Runner, seed: int, choices: Iterable[ExampleInputs]
) -> tuple[int, ExampleInputs, Any] | None:
    """Random inputs of the first size that the original takes, and its output for them."""
    generator = torch.Generator().manual_seed(seed)
    refused: list[ExampleInputs] = []
    # A copy is large, and what runs as it is in some size needs none in the others.
    for copies, sizes in ((False, choices), (True, refused)):
        for choice in sizes:
            given = choice.randomized(generator)
            try:
                return seed, given, original.run(given, seed, copies=copies)
            except Exception:  # a size that the original does not take
                if not copies:
                    refused.append(choice)
    return None


def _compare(
    expected: Any, found: Any, tolerance: float, outputs: dict[str, OutputVerdict]
) -> None:
    """Add one run to `outputs`, where each output keeps its worst."""
    for path, before, after in paired_leaves(expected, found):
        before, after = widen(before), widen(after)
        measured = difference(before, after)
        reason = measured.reason
        if reason is None and not measured.relative <= tolerance:
            reason = (
                f"is off by {measured.error:.3g}, {measured.relative:.3g} of its largest value "
                f"{measured.scale:.3g}; {tolerance:g} is allowed"
            )
        earlier = outputs.get(path, OutputVerdict(path, True, 0.0, True))
        outputs[path] = OutputVerdict(
            path,
            earlier.ok and reason is None,
            max(earlier.relative_error, measured.relative),
            earlier.identical and identical(before, after),
            earlier.reason or reason,
        )


def _other_sizes(inputs: ExampleInputs, vary: bool) -> tuple[list[ExampleInputs], ...]:
    """For each further run, what to try: other sizes first, the given ones last."""
    batch, spatial = inputs.batch, inputs.spatial
    if not vary:
        return [inputs], [inputs]
    larger = inputs.with_batch(3 if batch == 2 else 2) if batch else inputs
    single = inputs.with_batch(1 if batch != 1 else 2) if batch else inputs
    resized = [single.resized(sizes) for sizes in other_spatial(spatial)]
    return [larger, inputs], [*resized, single, inputs]


def small_inputs(example: ExampleInputs) -> Iterator[ExampleInputs]:
    """Inputs of other sizes than the example's, the smallest first, for a model to be tried with.

    One of any size, then those that nets take which halve sizes, then one sample of the example's.
    Not those that are much larger than it: in three dimensions, 32 more are 24 times it.
    """
    most = 2 * _numbers(example)
    tried: set[tuple[int, ...]] = set()
    for choice in (*_smallest(example), *_other_sizes(example, True)[1][:-1]):
        if choice.spatial in tried or _numbers(choice) > most:
            continue
        halved = not any(size % _STRIDE for size in choice.spatial)
        if not tried or halved or choice.spatial == example.spatial:
            yield choice
            tried.add(choice.spatial)


def _numbers(inputs: ExampleInputs) -> int:
    return sum(tensor.numel() for tensor in inputs.tensors())


def _smallest(inputs: ExampleInputs) -> Iterator[ExampleInputs]:
    """One sample of about a ninth of the size, where that leaves enough to be seen.

    As it comes out, then sizes that strided nets can halve.
    """
    spatial = inputs.spatial
    if not inputs.batch or min(spatial, default=0) < _LARGE:
        return
    single = inputs.with_batch(1)
    for step in (1, 8, 16):
        sizes = [size * (3, 2, 3)[at % 3] // 8 // step * step for at, size in enumerate(spatial)]
        yield single.resized(tuple(max(size, step) for size in sizes))


def other_spatial(spatial: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Smaller sizes, a different one in each dimension; then sizes that strided nets can halve."""
    if not spatial or min(spatial) < 1:
        return
    tried = {spatial}
    for step in (1, 8, 32):
        for shares in ((3, 2, 3), (1, 2, 3)):
            sizes = tuple(
                max(size * shares[position % 3] // 4 // step, 1) * step
                for position, size in enumerate(spatial)
            )
            if sizes not in tried:
                tried.add(sizes)
                yield sizes
    yield tuple(size + 32 * (position + 1) for position, size in enumerate(spatial))
