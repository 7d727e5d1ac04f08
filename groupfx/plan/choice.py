"""The form that a cost model says is fastest, never one that it says is slower than dense."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .blocks import BlockStructure
from .cost import OnnxRuntime, Work
from .forms import FORMS, FormPlan
from .machine import Machine
from .packing import pack_bins
from .recipes import merge_counts, recipe_plan

# What a form must save to be taken: the model is right to about a tenth.
_LEAST_SAVING = 0.07


@dataclass(frozen=True)
class Choice:
    """A form, what it is expected to take, and what masked dense takes, both in microseconds.

    `recipe` says the same as `plan`, see `groupfx.plan.recipes`.
    """

    recipe: str
    plan: FormPlan
    time: float
    dense: float

    @property
    def ratio(self) -> float:
        """Expected time by that of masked dense."""
        return self.time / self.dense


def choose(structure: BlockStructure, work: Work, machine: Machine | None = None) -> Choice:
    """The form of `structure` that is expected to be fastest in ONNX Runtime.

    Dense, the mask folded into the weight, is taken unless another form saves a share that the
    model can be trusted for.
    """
    machine = machine or Machine()
    price = OnnxRuntime(work, machine)
    dense = recipe_plan("dense", structure)
    time = price.site(dense, structure.in_channels)
    # As if the other layers shrank as much as this one.
    smaller = replace(price, share=structure.exact_macs / structure.dense_macs)
    best = Choice("dense", dense, time, time)
    for recipe, plan in recipes(structure, smaller):
        own = smaller.site(plan, structure.in_channels)
        if own <= time * (1 - _LEAST_SAVING) and own < best.time:
            best = Choice(recipe, plan, own, time)
    return best


def recipes(structure: BlockStructure, price: OnnxRuntime) -> Iterator[tuple[str, FormPlan]]:
    """Every recipe but dense that is worth weighing, and its plan."""
    for form in FORMS:
        if form not in ("dense", "grouped") or (form == "grouped" and structure.equal):
            yield form, recipe_plan(form, structure)
    for by in merge_counts(structure, price.block):
        yield f"merge {by}", recipe_plan(f"merge {by}", structure)
    packed = pack_bins(structure, price)
    if packed is not None:
        yield str(packed), packed.plan(structure)
