"""What a rewrite made of one site, so that nobody has to guess it from the graph.

The driver writes the plan of a site on the node that gives the site's value, and the site's name on
every other node that the rewrite put in. Both are plain data under one key of `node.meta`: they go
where the graph goes, in a copy as in a file. A graph that is traced anew carries none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ..errors import UsageError
from .branches import Branches
from .channels import Slice, group_slices
from .forms import FORMS, ConvPlan, Form, FormPlan
from .gathers import GatherPlan, plan_gather

NOTE = "groupfx"
"""The one key of a node's `meta`, and of a graph module's, that is ours and travels in a file."""

_MOST_BRANCHES = 1 << 20
"""More than any graph holds: a note that names more would only fill the memory."""

T = TypeVar("T")


@dataclass(frozen=True)
class SitePlan:
    """A site in pieces: how it is executed, and where each piece lies in the graph's module.

    `site` is the site's name inside the graph's own module (`layer1.conv2#2` for a second call,
    nothing where that module is the site). It takes `in_channels` and gives `out_channels`. `form`
    shares its groups out to convolutions, each on its slice of the input, or is the plan of a block
    structure.

    `convs` are the paths of the convolutions in the order of the form; there are none where they
    are function calls on rows of one weight. `norms` are those of the BatchNorms behind each of
    them (and behind the constants), if one went along. The others are None where the form has no
    such piece.
    """

    site: str
    in_channels: int
    out_channels: int
    form: Branches | FormPlan
    convs: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()
    input_gather: str | None = None
    constants: str | None = None
    output_gather: str | None = None

    @property
    def modules(self) -> tuple[str, ...]:
        """The path of every piece."""
        others = (self.input_gather, self.constants, self.output_gather)
        return (*self.convs, *self.norms, *(path for path in others if path is not None))

    def pieces(self) -> tuple[ConvPlan, ...]:
        """What each convolution does. Raises UsageError where the groups do not divide channels."""
        if isinstance(self.form, FormPlan):
            return self.form.convs
        sides = (self.form.slices(n) for n in (self.in_channels, self.out_channels))
        return tuple(
            ConvPlan(i, tuple(range(o.start, o.stop)), _columns(i, groups))
            for i, o, groups in zip(*sides, self.form.groups, strict=True)
        )

    def refined(self, conv: str | None, inner: SitePlan) -> SitePlan | None:
        """One plan for both, after the piece `conv` was itself rewritten as `inner` says.

        None where one plan cannot say it: the second rewrite then stands alone.
        """
        if not isinstance(inner.form, Branches) or not inner.convs or conv not in self.convs:
            return None
        place = self.convs.index(conv)
        piece = self.pieces()[place]
        if piece.groups != inner.form.total:
            return None
        # A BatchNorm in place behind a single convolution is no piece until the second rewrite.
        alone = len(self.convs) == 1 and self.constants is None and self.output_gather is None
        if bool(self.norms) != bool(inner.norms) and not (alone and inner.norms):
            return None
        return replace(
            self,
            form=_refined(self.form, place, piece, inner.form),
            convs=_inserted(self.convs, place, inner.convs),
            norms=_inserted(self.norms, place, inner.norms),
        )

    def to_data(self) -> dict[str, object]:
        """The plan as strings, integers, tuples and tables."""
        return {**vars(self), "form": _form_data(self.form)}

    @classmethod
    def of_data(cls, data: Any) -> SitePlan:
        """The plan that `to_data` gave. Raises UsageError for anything else."""
        try:
            form = data["form"]
            plan = cls(**{**data, "form": _form_of(form)})
            _require(type(name) is str for name in (plan.site, *plan.modules))
            numbers = [plan.in_channels, plan.out_channels]
            numbers += [] if isinstance(plan.form, FormPlan) else plan.form.groups
            _require(type(number) is int and number > 0 for number in numbers)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError("a note on the graph is no plan of a site") from error
        return plan


def note(site: str, plan: SitePlan | None = None) -> dict[str, object]:
    """What stands under `NOTE` at a node of `site`, with a plan on the one that gives its value."""
    return {"site": site} if plan is None else {"site": site, "plan": plan.to_data()}


def site_of(meta: Mapping[str, Any]) -> str | None:
    """The site that the node with this `meta` belongs to, or None."""
    found = meta.get(NOTE)
    return found.get("site") if isinstance(found, Mapping) else None


def plan_of(meta: Mapping[str, Any]) -> SitePlan | None:
    """The plan on the node with this `meta`, or None. Raises UsageError for one without sense."""
    found = meta.get(NOTE)
    if not isinstance(found, Mapping) or "plan" not in found:
        return None
    return SitePlan.of_data(found["plan"])


def _inserted(items: tuple[T, ...], place: int, new: tuple[T, ...]) -> tuple[T, ...]:
    return (*items[:place], *new, *items[place + 1 :])


def _refined(
    form: Branches | FormPlan, place: int, piece: ConvPlan, inner: Branches
) -> Branches | FormPlan:
    """The form with the groups of its convolution number `place` shared out as `inner` says."""
    if isinstance(form, Branches):
        return Branches(_inserted(form.groups, place, inner.groups))
    plans = _inserted(form.convs, place, tuple(_shared_out(piece, inner)))
    name: Form = "split" if all(plan.groups == 1 for plan in plans) else form.form
    return replace(form, form=name, convs=plans)


def _shared_out(plan: ConvPlan, branches: Branches) -> Iterator[ConvPlan]:
    """The branches of a convolution, each as one of its own."""
    first, group = plan.inputs.start, 0
    sides = (branches.slices(n) for n in (plan.in_channels, plan.out_channels))
    for i, r, groups in zip(*sides, branches.groups, strict=True):
        columns = plan.columns[group : group + groups]
        yield ConvPlan(Slice(first + i.start, first + i.stop), plan.rows[r.start : r.stop], columns)
        group += groups


def _columns(inputs: Slice, groups: int) -> tuple[tuple[int, ...], ...]:
    """What each group of a convolution on these inputs reads."""
    return tuple(
        tuple(range(inputs.start + part.start, inputs.start + part.stop))
        for part in group_slices(len(inputs), groups)
    )


def _form_data(form: Branches | FormPlan) -> object:
    if isinstance(form, Branches):
        return len(form) if form.single else form.groups
    plans = form.convs
    return {
        "form": form.form,
        "input_gather": _gather_data(form.input_gather),
        "convs": tuple((p.inputs.start, p.inputs.stop, p.rows, p.columns) for p in plans),
        "constants": form.constants,
        "output_gather": _gather_data(form.output_gather),
    }


def _form_of(data: Any) -> Branches | FormPlan:
    if type(data) is int:  # a branch a group, however many there are
        _require([0 < data <= _MOST_BRANCHES])
        return Branches.one_each(data)
    if isinstance(data, (tuple, list)):
        return Branches(_whole(data))
    _require([data["form"] in FORMS])
    plans = tuple(
        ConvPlan(
            Slice(*_whole((start, stop))),
            _places(rows),
            tuple(_places(columns) for columns in groups),
        )
        for start, stop, rows, groups in data["convs"]
    )
    gathers = [_gather_of(*data[name]) for name in ("input_gather", "output_gather")]
    return FormPlan(data["form"], gathers[0], plans, _whole(data["constants"]), gathers[1])


def _gather_data(gather: GatherPlan) -> tuple[str, tuple[int, ...]]:
    return gather.kind, gather.indices


def _gather_of(kind: str, indices: Any) -> GatherPlan:
    """The plan of the indices, made anew: whoever wrote the kind, the two agree."""
    found = GatherPlan("gather", _whole(indices))
    if kind != "gather":
        found = plan_gather(found.indices, len(found.indices))
    _require([found.kind == kind])
    return found


def _whole(numbers: Any) -> tuple[int, ...]:
    _require(type(number) is int and number >= 0 for number in numbers)
    return tuple(numbers)


def _places(numbers: Any) -> tuple[int | None, ...]:
    _whole([number for number in numbers if number is not None])
    return tuple(numbers)


def _require(conditions: Iterable[bool]) -> None:
    if not all(conditions):
        raise ValueError
