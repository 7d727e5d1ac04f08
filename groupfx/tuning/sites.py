"""The sites of an ONNX graph that can be executed in more than one way, each in one piece yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from ..convs.spec import ConvSpec
from ..deploy.forms.absorbing import absorb, surroundings
from ..deploy.forms.activating import activate_branches
from ..deploy.forms.chaining import join_gathers
from ..deploy.forms.fastest import fastest_forms
from ..deploy.forms.forming import apply_form
from ..deploy.forms.static_shapes import static_shapes
from ..deploy.forms.works import Works
from ..deploy.forms.zero_blocks import zero_blocks
from ..deploy.graph.conv_nodes import ConvNode, conv_nodes
from ..deploy.graph.free_names import Names
from ..deploy.graph.metadata import mark
from ..plan.absorbed import Absorbed
from ..plan.around import Around
from ..plan.blocks import BlockStructure
from ..plan.cost import OnnxRuntime, Work
from ..plan.machine import Machine
from ..plan.recipes import recipe_plan

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


@dataclass(frozen=True)
class TunedSite:
    """A convolution of blocks: groups that the author wrote, or those that zeros leave.

    `untouched` is the recipe of the convolution as it stands. Sites of one `signature` take the
    same time on the same machine. `around` are the layers that may bring its channels in order.
    """

    name: str
    structure: BlockStructure
    work: Work
    signature: str
    untouched: str
    around: Around | None = None

    def price(self, machine: Machine) -> OnnxRuntime:
        """What the cost model says of it."""
        return OnnxRuntime(self.work, machine, read_channels=self.structure.in_channels)

    def beside(self, recipe: str, machine: Machine) -> float:
        """Microseconds that a recipe adds to the layers around, which no profile tells of it."""
        absorbed = Absorbed.read(recipe)
        if absorbed is None or self.around is None:
            return 0.0
        layout = absorbed.layout(self.structure)
        return self.around.beside(self.price(machine), self.structure, layout)


def tunable_sites(
    model: ir.Model, inputs: Mapping[str, tuple[int, ...]]
) -> tuple[tuple[TunedSite, ...], tuple[str, ...]]:
    """The sites of `model`, run on inputs of these shapes; and those whose sizes nobody knows."""
    shapes = static_shapes(model, inputs)
    convs, _ = conv_nodes(model)
    works_of = Works.of(convs, shapes)
    blocks = {conv.name: found for conv in convs if (found := _blocks(conv)) is not None}
    around = surroundings(model, blocks, shapes, works_of)
    sites: list[TunedSite] = []
    unknown: list[str] = []
    for conv in convs:
        structure, ends = blocks.get(conv.name), _ends(conv, shapes)
        if structure is None:
            continue
        works = works_of(conv)
        if ends is None or not works:
            unknown.append(conv.name)
        else:
            sites.append(_site(conv, structure, ends, works[0], around.get(conv.name)))
    return tuple(sites), tuple(unknown)


def expected_of(
    model: ir.Model, feeds: Mapping[str, npt.NDArray[Any]], machine: Machine
) -> Mapping[str, str]:
    """The recipes of sites that an export takes, which chooses them together, for these inputs."""
    shapes = static_shapes(model, {name: array.shape for name, array in feeds.items()})
    batches = [array.shape[0] for array in feeds.values() if array.ndim]
    chosen = fastest_forms(model, _learned, shapes, machine, batches[:1] or None)
    return chosen.recipes


def _learned(conv: ConvNode) -> BlockStructure | None:
    return None if conv.spec.groups > 1 else _blocks(conv)


def with_recipes(model: ir.Model, recipes: Mapping[str, str], *, alone: bool = False) -> ir.Model:
    """A copy of `model` in which sites are executed by the recipes of their names.

    Every convolution is marked with its name, so that it is compared with the original's. Gathers
    of sites that follow each other are joined, unless each site is to be one `alone`, whose time
    does not depend on what its neighbours are.
    """
    work = model.clone()
    convs, _ = conv_nodes(work)
    blocks = {conv.name: found for conv in convs if (found := _blocks(conv)) is not None}
    absorbed = {
        name: (structure, taken)
        for name, structure in blocks.items()
        if (taken := Absorbed.read(recipes.get(name, ""))) is not None
    }
    for conv in convs:
        mark(conv.node, conv.name)
    done = absorb(work, absorbed, blocks)
    names = Names(work)
    for conv in convs:
        recipe = recipes.get(conv.name)
        if recipe in (None, _untouched(conv)) or conv.name in done or conv.name not in blocks:
            continue
        assert recipe is not None
        apply_form(work, conv, recipe_plan(recipe, blocks[conv.name]), names)
    if not alone:
        join_gathers(work)
        activate_branches(work)
    return work


_Ends = tuple[tuple[int, ...], tuple[int, ...]]
"""The shapes of what a convolution reads and gives."""


def _ends(conv: ConvNode, shapes: Mapping[str, tuple[int, ...]]) -> _Ends | None:
    read, written = (shapes.get(_name(v)) for v in (conv.node.inputs[0], conv.node.outputs[0]))
    return None if read is None or written is None or 0 in (*read, *written) else (read, written)


def _site(
    conv: ConvNode, structure: BlockStructure, ends: _Ends, work: Work, around: Around | None
) -> TunedSite:
    tensor, spec = conv.weight_tensor, conv.spec
    assert tensor is not None
    untouched = _untouched(conv)
    told = signature(spec, tensor.dtype.name.lower(), structure, *ends)
    users = sorted({node.op_type for node in conv.node.outputs[0].consumers()})
    # What the runtime may fuse.
    told = f"{told}, into {' '.join(users) or 'the output'}"
    if around is not None:
        kept = "" if around.outputs is None else " and outputs"
        told = f"{told}, inputs{kept} in any order"
    return TunedSite(conv.name, structure, work, told, untouched, around)


def signature(
    spec: ConvSpec,
    dtype: str,
    structure: BlockStructure,
    read: tuple[int, ...],
    written: tuple[int, ...],
) -> str:
    """What the time of a site depends on: sizes and blocks."""
    shapes = [f"{inputs}>{outputs}" for inputs, outputs in structure.shapes]
    blocks = f"{len(shapes)} x {shapes[0]}" if structure.equal else " ".join(shapes)
    return ", ".join(
        [
            f"{spec.describe()}, stride {_sizes(spec.stride)}, dilation {_sizes(spec.dilation)}",
            f"{dtype}, {_sizes(read)} to {_sizes(written)}",
            f"blocks {blocks}{'' if _runs(structure) else ', permuted'}",
            f"constants {len(structure.bias_only)}, dead {len(structure.dead_inputs)}",
        ]
    )


def _runs(structure: BlockStructure) -> bool:
    """Whether the channels of every block are neighbours: nothing has to be gathered."""
    sides = (side for block in structure.blocks for side in (block.inputs, block.outputs))
    return all(side[-1] - side[0] == len(side) - 1 for side in sides)


def _sizes(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))


def _untouched(conv: ConvNode) -> str:
    return "grouped" if conv.spec.groups > 1 else "dense"


def _blocks(conv: ConvNode) -> BlockStructure | None:
    """The blocks of a convolution; None where there is one only, or each is a single channel."""
    spec, tensor = conv.spec, conv.weight_tensor
    if spec.transposed or tensor is None or not conv.constant or tensor.dtype not in _FLOATS:
        return None
    if spec.groups == 1:
        return zero_blocks(conv)
    if spec.in_channels == spec.groups:
        return None
    return BlockStructure.of_groups(spec.in_channels, spec.out_channels, spec.groups)


def _name(value: ir.Value | None) -> str:
    return "" if value is None else value.name or ""
