"""The forms that a cost model expects to be fastest, for the sites of an ONNX graph.

Every form of learned groups is weighed, with dense among them, and of groups that an author wrote
every way to merge them, in the sizes that the graph says. What is there stays unless another form
saves enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import onnx_ir as ir

from ...plan.absorbed import Absorbed
from ...plan.blocks import BlockStructure
from ...plan.choice import Choice, choose, choose_groups, forms_text
from ...plan.cost import OnnxRuntime, Work
from ...plan.forms import FormPlan, plan
from ...plan.machine import Machine
from ..graph.conv_nodes import ConvNode, Shapes, conv_nodes
from .absorbing import AbsorbedSite, surroundings

Blocks = Callable[[ConvNode], BlockStructure | None]
"""The blocks of a convolution that learned its groups; None for every other."""

_OF_OPEN = (1, 16)


@dataclass(frozen=True)
class Fastest:
    """The forms of sites, and what all convolutions of the model are expected to take.

    `absorbed` are those for which the layers around change too, by name, with their blocks.
    `learned` has every site that learned its groups, `merged` those of the groups that an author
    wrote which are to be merged, and `kept` the number of the others. `ratio` is the expected time
    by that of the same model with every mask folded into its weight, and groups as they were
    written; None where no size is known.
    """

    learned: Mapping[str, FormPlan]
    merged: Mapping[str, FormPlan]
    kept: int
    ratio: float | None
    absorbed: Mapping[str, AbsorbedSite] = field(default_factory=dict)

    @property
    def forms(self) -> Mapping[str, FormPlan]:
        """Every form by the name of its site."""
        return {**self.learned, **self.merged}

    def describe(self, name: str) -> str:
        """The form of a site in one line."""
        plan = self.forms[name]
        if name not in self.absorbed:
            return plan.describe()
        return f"{plan.form}: {plan.convs[0].describe()}; the layers around bring its channels"

    def about(self, conv: ConvNode) -> bool:
        """Whether a form was to be chosen for a convolution, or it has groups of any kind."""
        return conv.name in self.learned or conv.spec.groups > 1

    @property
    def summary(self) -> str | None:
        """What to expect, in one line; None where there are no groups.

        Such as `expected 0.93 x the time of masked dense; 9 sites dense, 8 in 2-3 bins`.
        """
        said = [text for text in (forms_text(self.learned.values()), self._groups) if text]
        if not said:
            return None
        if self.ratio is None:
            return f"sizes are open, so no form is known to be faster: {'; '.join(said)}"
        if not self.learned and not self.merged:
            return f"no change: nothing is expected to be faster than {said[0]}"
        base = "masked dense" if self.learned else "the groups as they were written"
        return f"expected {self.ratio:.2f} x the time of {base}; {'; '.join(said)}"

    @property
    def _groups(self) -> str:
        merged = len(self.merged)
        if not merged:
            return f"{_convolutions(self.kept)} as {_they(self.kept)}" if self.kept else ""
        text = f"groups of {_convolutions(merged)} merged"
        return f"{text}, {self.kept} as {_they(self.kept)}" if self.kept else text


def fastest_forms(
    model: ir.Model, blocks: Blocks, shapes: Shapes | None = None, machine: Machine | None = None
) -> Fastest:
    """The forms of the convolutions of `model`.

    `shapes` are those of values, by name, of which the model does not say them itself. A site of
    unknown size is left dense, or as it is: no form is taken that may be slower.
    """
    machine = machine or Machine()
    convs, _ = conv_nodes(model, shapes)
    weights = sum(conv.weight_tensor.nbytes for conv in convs if conv.weight_tensor is not None)
    batches = _batches(model)
    works_of = partial(_works, weights=weights, shapes=shapes or {}, batches=batches)
    learned = {
        conv.name: plan(structure, "dense")
        for conv in convs
        if (structure := blocks(conv)) is not None
    }
    authors = {conv.name for conv in convs if conv.name not in learned and _has_groups(conv)}
    structures = {conv.name: found for conv in convs if (found := _structure(conv, blocks))}
    around = surroundings(model, structures, shapes, works_of)
    choices: dict[str, Choice] = {}
    time = untouched = 0.0
    for conv in convs:
        name, works = conv.name, works_of(conv)
        structure = structures.get(name)
        if works and structure is not None and structure.blocks:
            weigh = choose if name in learned else choose_groups
            choice = weigh(structure, *works, machine=machine, around=around.get(name))
            choices[name] = choice
            time, untouched = time + choice.time, untouched + choice.untouched
        elif works and name not in learned and name not in authors:
            spec = conv.spec
            price = OnnxRuntime(works[0], machine)
            own = price.conv(spec.in_channels, spec.out_channels, spec.groups)
            time, untouched = time + own, untouched + own
    learned |= {name: choice.plan for name, choice in choices.items() if name in learned}
    merged = {
        name: choice.plan
        for name, choice in choices.items()
        if name in authors and choice.recipe != "grouped"
    }
    absorbed = {
        name: (structures[name], taken)
        for name, choice in choices.items()
        if (taken := Absorbed.read(choice.recipe)) is not None
    }
    ratio = time / untouched if untouched else None
    return Fastest(learned, merged, len(authors) - len(merged), ratio, absorbed)


def _structure(conv: ConvNode, blocks: Blocks) -> BlockStructure | None:
    """The blocks of a site, learned ones or the groups that an author wrote."""
    learned, spec = blocks(conv), conv.spec
    if learned is not None or not _has_groups(conv) or not conv.constant:
        return learned
    return BlockStructure.of_groups(spec.in_channels, spec.out_channels, spec.groups)


def _has_groups(conv: ConvNode) -> bool:
    """Whether an author wrote groups that may be merged: not of single channels."""
    spec = conv.spec
    return 1 < spec.groups < spec.in_channels and not spec.transposed


def _batches(model: ir.Model) -> Sequence[int]:
    """The batch of a model; where it is open, one sample and many, for both of which forms are to
    be good.
    """
    firsts = {value.shape[0] for value in model.graph.inputs if value.shape}
    fixed = [first for first in firsts if isinstance(first, int)]
    return fixed if len(fixed) == len(firsts) == 1 else _OF_OPEN


def _works(conv: ConvNode, weights: int, shapes: Shapes, batches: Sequence[int]) -> Sequence[Work]:
    """What the convolution has to do in each batch; nothing where the graph does not say."""
    ends = (conv.node.outputs[0], conv.node.inputs[0])
    written, read = (_positions(value, shapes) for value in ends)
    if written is None or read is None or conv.weight_tensor is None:
        return ()
    one = Work(
        math.prod(conv.spec.kernel_size),
        written,
        read,
        model_weights=weights,
        blocked=conv.spec.dims == 2 and conv.weight_tensor.dtype == ir.DataType.FLOAT,
    )
    return [replace(one, batch=batch) for batch in batches]


def _positions(value: ir.Value | None, shapes: Shapes) -> int | None:
    sizes = None if value is None else value.shape or shapes.get(value.name or "")
    if sizes is None:
        return None
    spatial = list(sizes)[2:]
    known = [size for size in spatial if isinstance(size, int)]
    return math.prod(known) if len(known) == len(spatial) and all(known) else None


def _convolutions(number: int) -> str:
    return "1 grouped convolution" if number == 1 else f"{number} grouped convolutions"


def _they(number: int) -> str:
    return "it is" if number == 1 else "they are"
