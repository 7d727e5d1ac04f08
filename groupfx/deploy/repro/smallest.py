"""The smallest part of two sides that still differs: a branch of a site, a site, an operator, or
all of an output.

Each part is run before it is taken: what does not differ on its own is no part to show.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import GroupfxError
from ...verify.bounds import rounding_bound
from ...verify.yardstick import rms, rms_limit, underflow
from ..graph.channel_order import arranged
from ..running.runtime import Session
from ..validate.difference import Difference
from ..validate.onnx_sites import Region, candidate_regions
from ..validate.sides import OnnxSide, Side
from ..validate.site_checks import wide_tensor
from ..validate.site_functions import SiteFunction
from ..validate.torch_graph import TorchGraph
from ..validate.torch_values import TorchValues, graph_of
from .judging import difference
from .saved_model import SavedModel, graph_part, layer_part, onnx_part

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Repro:
    """Two models that take the `inputs`, and what the candidate should give but does not.

    `what` says in words which part of the models this is.
    """

    what: str
    candidate: SavedModel
    reference: SavedModel | None
    inputs: tuple[Array, ...]
    expected: Array
    allowed: Array
    allowed_rms: Array

    @property
    def differs(self) -> bool:
        """Whether the candidate, alone, still gives something else."""
        return self._differs(self.candidate)

    @property
    def refuted(self) -> bool:
        """Whether the reference, alone, gives something else too: then nothing is shown."""
        return self.reference is not None and self._differs(self.reference)

    def _differs(self, side: SavedModel) -> bool:
        bounds = self.expected, self.allowed, self.allowed_rms
        return any(difference(side.run(self.inputs, m), *bounds) is not None for m in side.modes)


def smallest(found: Difference) -> Repro | None:
    """The first of the parts, from the smallest, that differs alone; None where none does."""
    for attempt in (_of_branch, _of_site, _of_operator, _of_output):
        # What cannot be taken out of its model, or does not run alone, is shown as a larger part.
        with contextlib.suppress(GroupfxError, RuntimeError, ValueError, LookupError, TypeError):
            repro = attempt(found)
            if repro is not None and repro.differs and not repro.refuted:
                return _of_one_row(repro)
    return None


def _of_one_row(repro: Repro) -> Repro:
    """The same on one row of its batch, where that one differs alone."""
    rows = {array.shape[0] if array.ndim else 0 for array in (*repro.inputs, repro.expected)}
    if len(rows) != 1 or min(rows) < 2:
        return repro
    for row in range(min(rows)):
        keep = slice(row, row + 1)
        bounds = repro.allowed[keep] if repro.allowed.ndim else repro.allowed
        single = replace(
            repro,
            inputs=tuple(array[keep] for array in repro.inputs),
            expected=repro.expected[keep],
            allowed=bounds,
        )
        with contextlib.suppress(GroupfxError, RuntimeError, ValueError):
            if single.differs and not single.refuted:
                return single
    return repro


# A site


def _of_branch(found: Difference) -> Repro | None:
    """The one branch of a split site that gives the wrong channel."""
    whole, side = _of_site(found), found.candidate
    if whole is None or found.site is None or not isinstance(side, OnnxSide):
        return None
    check, _, region = found.site
    joined = next((n for n in side.model.graph if region.end in [v.name for v in n.outputs]), None)
    if joined is None or joined.op_type != "Concat" or joined.attributes.get_int("axis", 0) != 1:
        return None
    names = [value.name or "" for value in joined.inputs if value is not None]
    feeds = side.own(found.own(found.runs[check.run or ""]))
    made = Session(side.model, "off", source=side.source, also=names).run(feeds, names)
    first = 0
    for name in names:
        last = first + made[name].shape[1]
        if first <= check.index[1] < last:
            break
        first = last
    return replace(
        whole,
        what=f"the branch of {whole.what} that gives its channels {first} to {last - 1}",
        candidate=onnx_part("candidate", side.model, [region.start], name, whole.inputs),
        reference=None if whole.reference is None else whole.reference.channels(first, last),
        expected=whole.expected[:, first:last],
        allowed=whole.allowed[:, first:last],
        allowed_rms=whole.allowed_rms[first:last],
    )


def _of_site(found: Difference) -> Repro | None:
    if found.site is None or found.site[0].run not in found.runs:
        return None
    check, function, region = found.site
    if region.problem is not None:
        return None
    feeds = found.own(found.runs[check.run or ""])
    (start,) = _values(found.candidate, [region.start], feeds, function)
    expected, elements, channels = _bounded(found, function, region, start)
    moved = function.orders != region.orders
    ends = [end for end in (region.end, region.behind_norm) if end is not None]
    repros = [
        Repro(
            f"the site {check.name}",
            _part("candidate", found.candidate, [region.start], end, [start]),
            # It would take its channels in another order.
            None if moved else _reference_site(found.reference, function, start),
            (start,),
            expected,
            elements,
            channels,
        )
        for end in ends
    ]
    # The reference may have folded a BatchNorm that the candidate has behind: both must be wrong.
    return repros[0] if all(repro.differs for repro in repros) else None


def _bounded(
    found: Difference, function: SiteFunction, region: Region, start: Array
) -> tuple[Array, Array, Array]:
    """What the site should give from `start`, and what is allowed: an element, and a channel.

    In the order that the candidate's channels have; those that only it has may be anything.
    """
    spec, (have, want) = function.spec, (region.orders, function.orders)
    x = wide_tensor(arranged(start, have.input, want.input, spec.in_channels).array)
    expected, magnitudes = function.value(x), function.magnitudes(x, found.dtype)
    floor = underflow(found.dtype)
    elements = rounding_bound(magnitudes, function.terms, found.dtype) + floor
    axes = [axis for axis in range(expected.dim()) if axis != 1]
    unit = float(np.finfo(_numpy(found)).eps) / 2
    channels = function.factor() * unit * magnitudes.square().mean(dim=axes).sqrt() + floor
    made = [
        arranged(array.numpy(), want.output, have.output, spec.out_channels)
        for array in (expected, elements, channels[None])
    ]
    for bound in made[1:]:
        bound.array[:, ~bound.there] = np.inf
    return made[0].array, made[1].array, made[2].array[0]


def _numpy(found: Difference) -> str:
    return str(found.dtype).removeprefix("torch.")


def _values(
    side: Side, names: Sequence[str], feeds: dict[str, Array], function: SiteFunction
) -> list[Array]:
    """Inner values of a candidate in its own dtype."""
    if isinstance(side, OnnxSide):
        own = side.own(feeds)
        inner = [name for name in names if name not in own]
        made = Session(side.model, "off", source=side.source, also=inner).run(own, inner)
        return [own[name] if name in own else made[name] for name in names]
    recorded = TorchValues(side.program, [function], {})
    with side.playing(feeds):
        made_here = recorded.of(side.given_in(feeds, side.dtype))
    return [made_here[name] for name in names]


def _part(
    role: str, side: Side, inputs: Sequence[str], output: str, given: Sequence[Array]
) -> SavedModel:
    if isinstance(side, OnnxSide):
        return onnx_part(role, side.model, inputs, output, given)
    return graph_part(role, graph_of(side.program), inputs, output, wide=False)


def _reference_site(side: Side, function: SiteFunction, start: Array) -> SavedModel:
    """As it is in an ONNX file, else as the layers of torch that it is."""
    if not isinstance(side, OnnxSide):
        return layer_part("reference", function, start)
    regions, _ = candidate_regions(side.model, side.site_functions()[0])
    own = next((region for region in regions if region.name == function.name), None)
    if own is None or own.problem is not None:
        return layer_part("reference", function, start)
    kind = next((dtype for _, dtype, _ in side.declared if dtype.kind == "f"), start.dtype)
    return onnx_part("reference", side.model, [own.start], own.end, [start.astype(kind)])


# A piece around an operator


def _of_operator(found: Difference) -> Repro | None:
    apart = found.apart
    if apart is None:
        return None
    cut, (end, other) = apart.cut, apart.ends
    kind = np.dtype(_numpy(found))
    given = [
        a.astype(kind) if (a := np.asarray(apart.inputs[name])).dtype.kind == "f" else a
        for name, _ in cut
    ]
    graph = found.reference.values
    wide = graph.compute(
        apart.reference, {r: a for (_, r), a in zip(cut, given, strict=True)}, other
    )
    candidate = _operators_part("candidate", found.candidate, [c for c, _ in cut], end, given)
    reference = _operators_part("reference", found.reference, [r for _, r in cut], other, given)
    return _judged(apart.what, candidate, reference, given, wide, found)


def _operators_part(
    role: str, side: Side, inputs: Sequence[str], output: str, given: Sequence[Array]
) -> SavedModel:
    if isinstance(side, OnnxSide):
        return onnx_part(role, side.model, inputs, output, given)
    values: TorchGraph = side.values
    return graph_part(role, values.graph, [values.node_of(n) for n in inputs], output, wide=False)


def _judged(
    what: str,
    candidate: SavedModel,
    reference: SavedModel,
    given: Sequence[Array],
    wide: Array,
    found: Difference,
) -> Repro:
    """By the rule for outputs: 4 times the error of the reference in the candidate's dtype."""
    exact = wide.dtype.kind != "f"
    limit = 0.0 if exact else _limit(wide, reference.run(given, False), found)
    free = np.array(0.0 if exact else np.inf)
    return Repro(what, candidate, reference, tuple(given), wide, free, np.array(limit))


def _limit(wide: Array, original: Array, found: Difference) -> float:
    """What the root mean square of an error may be, by the error of the reference itself."""
    finite = np.isfinite(wide) & np.isfinite(original)
    apart = rms(original[finite].astype(np.float64) - wide[finite])
    peak = float(np.abs(wide[finite]).max(initial=0.0))
    return rms_limit(apart, peak, found.dtype, ordinary=True)


# All of an output


def _of_output(found: Difference) -> Repro | None:
    check = found.output
    if check is None or check.run not in found.runs:
        return None
    feeds = found.runs[check.run]
    name = next(name for name, other in found.outputs.items() if other == check.name)
    side = found.candidate
    own = side.own(found.own(feeds)) if isinstance(side, OnnxSide) else found.own(feeds)
    given = [own[other] for other in found.inputs.values()]
    candidate = _whole("candidate", side, check.name, given)
    mine = [feeds[each] for each in found.inputs]
    reference: SavedModel | None = None
    with contextlib.suppress(GroupfxError):
        if isinstance(found.reference, OnnxSide):
            mine = [found.reference.own(feeds)[each] for each in found.inputs]
        reference = _whole("reference", found.reference, name, mine)
    wide = found.reference.wide(feeds)[name]
    what = f"the output {check.name}"
    if check.limit_is_absolute or wide.dtype.kind != "f":
        allowed, limit = np.array(check.limit), np.array(np.inf)
        return Repro(what, candidate, reference, tuple(given), wide, allowed, limit)
    native = found.reference.native(feeds, found.dtype)[name]
    # Where the shape is another, nobody has measured what is allowed.
    limit = np.array(max(check.limit, _limit(wide, native, found)))
    return Repro(what, candidate, reference, tuple(given), wide, np.array(np.inf), limit)


def _whole(role: str, side: Side, output: str, given: Sequence[Array]) -> SavedModel:
    """Everything that an output is computed by."""
    if isinstance(side, OnnxSide):
        return onnx_part(role, side.model, side.inputs, output, given)
    values = side.values
    names = [values.node_of(name) for name in values.inputs]
    return graph_part(role, values.graph, names, values.node_of(values.outputs[output]), wide=False)
