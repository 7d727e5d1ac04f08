"""The form that a cost model says is fastest, never one that it says is slower than dense."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .blocks import BlockStructure
from .cost import OnnxRuntime, Work
from .forms import FORMS, FormPlan, plan
from .machine import Machine
from .packing import pack

# What a form must save to be taken: the model is right to about a tenth.
_LEAST_SAVING = 0.07


@dataclass(frozen=True)
class Choice:
    """A form, what it is expected to take, and what masked dense takes, both in microseconds."""

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
    dense = plan(structure, "dense")
    in_channels = structure.in_channels
    time = price.site(dense, in_channels)
    # As if the other layers shrank as much as this one.
    smaller = replace(price, share=structure.exact_macs / structure.dense_macs)
    best, found = dense, time
    for candidate in _candidates(structure, smaller):
        own = smaller.site(candidate, in_channels)
        if own <= time * (1 - _LEAST_SAVING) and own < found:
            best, found = candidate, own
    return Choice(best, found, time)


def _candidates(structure: BlockStructure, price: OnnxRuntime) -> Iterator[FormPlan]:
    for form in FORMS:
        if form not in ("dense", "grouped") or (form == "grouped" and structure.equal):
            yield plan(structure, form)
    packed = pack(structure, price)
    if packed is not None:
        yield packed
