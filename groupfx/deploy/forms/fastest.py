"""The forms that a cost model expects to be fastest, for the sites of an ONNX graph.

Every form of learned groups is weighed, with dense among them, and of groups that an author wrote
every way to merge them, in the sizes that the graph says. What is there stays unless another form
saves enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from ...plan.absorbed import Absorbed
from ...plan.blocks import BlockStructure
from ...plan.choice import forms_text
from ...plan.cost import OnnxRuntime, Work
from ...plan.forms import FormPlan, plan
from ...plan.machine import Machine
from ...plan.streams import Stream
from ...plan.together import PricedStream, choose_together, site_options
from ..graph.conv_nodes import ConvNode, Shapes, conv_nodes
from ..running.blocked_layout import this_machine
from .absorbing import AbsorbedSite, surroundings
from .others import others
from .streams import streams_of
from .works import Works

Blocks = Callable[[ConvNode], BlockStructure | None]
"""The blocks of a convolution that learned its groups; None for every other."""

_OF_OPEN = (1, 16)


@dataclass(frozen=True)
class Fastest:
    """The forms of sites, and what all of the model is expected to take.

    `absorbed` are those for which the layers around change too, by name, with their blocks.
    `learned` has every site that learned its groups, `merged` those of the groups that an author
    wrote which are to be merged, and `kept` the number of the others. `ratio` is the expected time
    by that of the same model with every mask folded into its weight, and groups as they were
    written; None where no size is known. `recipes` say the same as text, of sites of known sizes.
    """

    learned: Mapping[str, FormPlan]
    merged: Mapping[str, FormPlan]
    kept: int
    ratio: float | None
    absorbed: Mapping[str, AbsorbedSite] = field(default_factory=dict)
    recipes: Mapping[str, str] = field(default_factory=dict)

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
    model: ir.Model,
    blocks: Blocks,
    shapes: Shapes | None = None,
    machine: Machine | None = None,
    batches: Sequence[int] | None = None,
) -> Fastest:
    """The forms of the convolutions of `model`.

    `shapes` are those of values, by name, where they are known better than the model says. A site
    of unknown size is left dense, or as it is: no form is taken that may be slower. `machine` is by
    default this one, as far as it is known without timing anything. `batches` are those for which
    forms are to be good.
    """
    machine = machine or this_machine()
    convs, _ = conv_nodes(model, shapes)
    batches = batches or _batches(model)
    works_of = Works.of(convs, shapes or {}, batches)
    learned = {
        conv.name: plan(structure, "dense")
        for conv in convs
        if (structure := blocks(conv)) is not None
    }
    authors = {conv.name for conv in convs if conv.name not in learned and _has_groups(conv)}
    structures = {conv.name: found for conv in convs if (found := _structure(conv, blocks))}
    around = surroundings(model, structures, shapes, works_of)
    works = {conv.name: own for conv in convs if (own := works_of(conv))}
    options = {
        name: site_options(
            structure, works[name], machine, around.get(name), learned=name in learned
        )
        for name, structure in structures.items()
        if structure.blocks and name in works
    }
    left = [conv for conv in convs if conv.name in works and conv.name not in options]
    left = [conv for conv in left if conv.name not in learned and conv.name not in authors]
    beside = sum(_price(conv, works[conv.name][0], machine) for conv in left)
    beside += others(model, shapes or {}, batches[0], machine)
    streams = _priced(streams_of(model, convs, options, shapes, machine), batches, machine)
    together = choose_together(options, streams)
    choices = together.choices
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
    untouched = together.untouched + beside
    ratio = (together.time + beside) / untouched if untouched else None
    recipes = {name: choice.recipe for name, choice in choices.items()}
    return Fastest(learned, merged, len(authors) - len(merged), ratio, absorbed, recipes)


def _price(conv: ConvNode, work: Work, machine: Machine) -> float:
    """Microseconds of a convolution that stays as it is."""
    spec = conv.spec
    return OnnxRuntime(work, machine).conv(spec.in_channels, spec.out_channels, spec.groups)


def _priced(
    streams: Iterable[Stream], batches: Sequence[int], machine: Machine
) -> Sequence[PricedStream]:
    """Streams, and what moving their tensors costs in each batch."""
    return [
        (
            stream,
            [
                OnnxRuntime(Work(1, stream.positions, batch=batch, blocked=stream.blocked), machine)
                for batch in batches
            ],
        )
        for stream in streams
    ]


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


def _convolutions(number: int) -> str:
    return "1 grouped convolution" if number == 1 else f"{number} grouped convolutions"


def _they(number: int) -> str:
    return "it is" if number == 1 else "they are"
