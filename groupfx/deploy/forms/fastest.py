"""The forms that a cost model expects to be fastest, for the sites of an ONNX graph.

Every form of a site's blocks is weighed, with dense among them, in the sizes that the graph says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from ...plan.choice import choose
from ...plan.cost import OnnxRuntime, Work
from ...plan.forms import FormPlan, plan
from ...plan.machine import Machine
from ..graph.conv_nodes import ConvNode, conv_nodes


@dataclass(frozen=True)
class Fastest:
    """The form of each site, and what all convolutions of the model are expected to take.

    `ratio` is that time by that of the same model with every mask folded into its weight; None
    where no size is known.
    """

    forms: Mapping[str, FormPlan]
    ratio: float | None

    @property
    def summary(self) -> str:
        """Such as `expected 0.93 x the time of masked dense; 9 sites dense, 8 in 2-3 bins`."""
        bins = [_bins(form) for form in self.forms.values() if form.form != "dense"]
        dense, parts = len(self.forms) - len(bins), []
        if dense:
            parts.append(f"{_sites(dense)} dense")
        if bins:
            span = f"{min(bins)}-{max(bins)}" if min(bins) < max(bins) else str(max(bins))
            number = str(len(bins)) if dense else _sites(len(bins))
            parts.append(f"{number} in {span} {'bin' if max(bins) == 1 else 'bins'}")
        said = ", ".join(parts)
        if self.ratio is None:
            return f"sizes are open, so no form is known to be faster: {said}"
        return f"expected {self.ratio:.2f} x the time of masked dense; {said}"


def fastest_forms(
    model: ir.Model, planned: Mapping[str, FormPlan], machine: Machine | None = None
) -> Fastest:
    """The forms for the sites in `planned`, which says what their blocks are.

    A site of unknown size is left dense: no form is taken that may be slower.
    """
    machine = machine or Machine()
    convs, _ = conv_nodes(model)
    weights = sum(conv.weight_tensor.nbytes for conv in convs if conv.weight_tensor is not None)
    forms: dict[str, FormPlan] = {}
    time = dense = 0.0
    for conv in convs:
        spec, work, own = conv.spec, _work(conv, weights), planned.get(conv.name)
        if own is None:
            if work is not None:
                price = OnnxRuntime(work, machine)
                same = price.conv(spec.in_channels, spec.out_channels, spec.groups)
                time, dense = time + same, dense + same
        elif not own.convs:
            forms[conv.name] = own
        elif work is None:
            forms[conv.name] = plan(own.blocks(spec.in_channels), "dense")
        else:
            choice = choose(own.blocks(spec.in_channels), work, machine)
            forms[conv.name] = choice.plan
            time, dense = time + choice.time, dense + choice.dense
    return Fastest(forms, time / dense if dense else None)


def _work(conv: ConvNode, weights: int) -> Work | None:
    """What the convolution has to do for one sample; None where the graph does not say."""
    sizes = [_positions(value) for value in (conv.node.outputs[0], conv.node.inputs[0])]
    if None in sizes or conv.weight_tensor is None:
        return None
    written, read = sizes
    assert written is not None
    return Work(
        math.prod(conv.spec.kernel_size),
        written,
        read,
        model_weights=weights,
        blocked=conv.spec.dims == 2 and conv.weight_tensor.dtype == ir.DataType.FLOAT,
    )


def _positions(value: ir.Value | None) -> int | None:
    if value is None or value.shape is None:
        return None
    sizes = list(value.shape)[2:]
    known = [size for size in sizes if isinstance(size, int)]
    return math.prod(known) if len(known) == len(sizes) and all(known) else None


def _bins(form: FormPlan) -> int:
    return sum(conv.groups for conv in form.convs if not conv.added)


def _sites(number: int) -> str:
    return "1 site" if number == 1 else f"{number} sites"
