"""What a rewrite made of one site, so that nobody has to guess it from the graph.

The driver writes the plan of a site on the node that gives the site's value, and the site's name on
every other node that the rewrite put in. Both are plain data under one key of `node.meta`: they go
where the graph goes, in a copy as in a file. A graph that is traced anew carries none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ..errors import UsageError
from .channels import Slice, group_slices
from .forms import FORMS, ConvPlan, Form, FormPlan
from .gathers import GatherPlan, plan_gather

NOTE = "groupfx"
"""The one key of a node's `meta`, and of a graph module's, that is ours and travels in a file."""

T = TypeVar("T")


@dataclass(frozen=True)
class SitePlan:
    """A site in pieces: how it is executed, and where each piece lies in the graph's module.

    `site` is the site's name inside the graph's own module (`layer1.conv2#2` for a second call,
    nothing where that module is the site). It takes `in_channels` and gives `out_channels`. `form`
    is a number of groups, each of which one convolution executes on its slice of the input, or the
    plan of a block structure.

    `convs` are the paths of the convolutions in the order of the form; there are none where they
    are function calls on rows of one weight. `norms` are those of the BatchNorms behind each of
    them (and behind the constants), if one went along. The others are None where the form has no
    such piece.
    """

    site: str
    in_channels: int
    out_channels: int
    form: int | FormPlan
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
        inputs = group_slices(self.in_channels, self.form)
        outputs = group_slices(self.out_channels, self.form)
        return tuple(
            ConvPlan(i, tuple(range(o.start, o.stop)), (tuple(range(i.start, i.stop)),))
            for i, o in zip(inputs, outputs, strict=True)
        )

    def refined(self, conv: str | None, inner: SitePlan) -> SitePlan | None:
        """One plan for both, after the piece `conv` was itself rewritten as `inner` says.

        None where one plan cannot say it: the second rewrite then stands alone.
        """
        form = self.form
        if not isinstance(form, FormPlan) or not isinstance(inner.form, int) or not inner.convs:
            return None
        if conv not in self.convs:
            return None
        place = self.convs.index(conv)
        if form.convs[place].groups != inner.form:
            return None
        # A BatchNorm in place behind a single convolution is no piece until the second rewrite.
        alone = len(self.convs) == 1 and self.constants is None and self.output_gather is None
        if bool(self.norms) != bool(inner.norms) and not (alone and inner.norms):
            return None
        plans = _inserted(form.convs, place, _one_a_group(form.convs[place]))
        name: Form = "split" if all(plan.groups == 1 for plan in plans) else form.form
        return replace(
            self,
            form=replace(form, form=name, convs=plans),
            convs=_inserted(self.convs, place, inner.convs),
            norms=_inserted(self.norms, place, inner.norms),
        )

    def to_data(self) -> dict[str, object]:
        """The plan as strings, integers, tuples and tables."""
        form = self.form if isinstance(self.form, int) else _form_data(self.form)
        return {**vars(self), "form": form}

    @classmethod
    def of_data(cls, data: Any) -> SitePlan:
        """The plan that `to_data` gave. Raises UsageError for anything else."""
        try:
            form = data["form"]
            plan = cls(**{**data, "form": form if type(form) is int else _form_of(form)})
            _require(type(name) is str for name in (plan.site, *plan.modules))
            numbers = [plan.in_channels, plan.out_channels]
            numbers += [] if isinstance(plan.form, FormPlan) else [plan.form]
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


def _one_a_group(plan: ConvPlan) -> tuple[ConvPlan, ...]:
    """The groups of a convolution, each as one of its own."""
    inputs = group_slices(plan.in_channels, plan.groups)
    rows = group_slices(plan.out_channels, plan.groups)
    first = plan.inputs.start
    return tuple(
        ConvPlan(Slice(first + i.start, first + i.stop), plan.rows[r.start : r.stop], (columns,))
        for i, r, columns in zip(inputs, rows, plan.columns, strict=True)
    )


def _form_data(form: FormPlan) -> dict[str, object]:
    plans = form.convs
    return {
        "form": form.form,
        "input_gather": _gather_data(form.input_gather),
        "convs": tuple((p.inputs.start, p.inputs.stop, p.rows, p.columns) for p in plans),
        "constants": form.constants,
        "output_gather": _gather_data(form.output_gather),
    }


def _form_of(data: Any) -> FormPlan:
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
