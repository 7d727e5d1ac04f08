"""What a page shows of a rewrite: its report, and the graphs that the report points into."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import fx, nn

from ..convs.names import joined
from ..convs.spec import spec_of_module
from ..errors import UsageError
from ..learned.groups import groups_of
from ..learned.layers import LearnedLayer
from ..plan.blocks import BlockStructure
from ..plan.branches import Branches
from ..plan.forms import FormPlan
from ..plan.site_plan import SitePlan, plan_of
from ..report.pieces import Piece, conv_label, pieces_of
from ..report.prose import digits, told
from ..rewriting.report import Report, RewrittenSite, SkippedSite
from ..rewriting.report_text import check_word, obstacles, operations, summary, verdict
from ..running.totals import Complexity
from ..tracing.program import Fragment
from ..verify import SiteVerdict
from ..verify.models import OutputVerdict
from .content import Grid, Page, Side, SiteRow, Size, Tone

_LEFT = "left"
CHECK_WORDS: Mapping[Tone, str] = {"good": "identical", "close": "within bound", "bad": "MISMATCH"}
# A graph between two values that lie far apart is no local one.
_MOST_PIECES = 20_000


def page_of_report(report: Report, name: str) -> Page:
    """The page of a rewrite of the torch model `name`."""
    return Page(
        kind="Rewrite",
        name=name,
        tone=tone_of_report(report),
        verdict=verdict(report),
        lines=tuple(report_lines(report)),
        sites=rewritten_rows(report),
        sizes=() if report.complexity is None else sizes_of(report.complexity),
        grids=tuple(_grids(report)),
        notes=tuple(map(told, report.notes)),
        versions=tuple(sorted(report.versions.items())),
    )


def tone_of_report(report: Report) -> Tone:
    """How the whole rewrite fared."""
    if not report.ok:
        return "bad"
    return "good" if report.verified else "open"


def report_lines(report: Report) -> Iterator[str]:
    """What was done, in a few lines."""
    yield summary(report)
    if report.expected is not None:
        yield report.expected
    if report.model is not None and report.model.reason is not None:
        yield f"end to end: {told(report.model.reason)}"
    elif report.model is not None and report.model.identical:
        yield "end to end: every output is bit-identical"
    elif report.model is not None:
        error = digits(report.model.relative_error)
        yield f"end to end: max|d| / max|y| is {error}"
    for change in report.changes or ():
        yield f"outside the sites: {told(str(change))}"
    yield from map(told, operations(report))
    yield from (told(fold.describe()) for fold in report.folds)


def rewritten_rows(report: Report) -> tuple[SiteRow, ...]:
    """All sites: those that were rewritten, and behind them those that were left, and why."""
    plans = {id(f): _plans(f) for f in {id(s.fragment): s.fragment for s in report.sites}.values()}
    rows = [_row(site, plans[id(site.fragment)]) for site in report.sites]
    known = {site.name for site in report.sites}
    return (*rows, *left_rows(skip for skip in report.skipped if skip.name not in known))


def left_rows(skipped: Iterable[SkippedSite]) -> Iterator[SiteRow]:
    """A row for each site that was left; several passes may say why of one."""
    reasons: dict[str, list[SkippedSite]] = {}
    for site in skipped:
        reasons.setdefault(site.name, []).append(site)
    for name, sites in reasons.items():
        notes = tuple(dict.fromkeys(told(site.reason) for site in sites))
        by = ", ".join(dict.fromkeys(site.pass_name for site in sites if site.pass_name))
        facts = (("left by", by),) if by else ()
        yield SiteRow(name, sites[0].kind, "left", _LEFT, facts=facts, notes=notes)


def sizes_of(complexity: Complexity) -> tuple[Size, ...]:
    """The numbers of the whole model."""
    before, after = complexity.before, complexity.after
    guess = "" if before.guessed is None else f" at a guessed {before.guessed}"
    return (
        Size("convolutions", before.convs, after.convs),
        Size("grouped convolutions", before.grouped_convs, after.grouped_convs),
        Size("parameters", before.parameters, after.parameters),
        Size(f"MACs, one sample{guess}", before.macs, after.macs),
    )


def _row(site: RewrittenSite, plans: Mapping[str, SitePlan]) -> SiteRow:
    before, after = site_graphs(site)
    return SiteRow(
        name=site.name,
        kind=site.kind,
        tone=_tone(site.verdict),
        verdict=check_word(site),
        before=Side(site.before, before),
        after=Side(site.after, after),
        done=site.pass_name,
        ratio=None if site.verdict is None else _ratio(site.verdict),
        macs=(site.macs, site.macs_after),
        facts=tuple(_facts(site)),
        notes=tuple(told(str(note)) for note in site.notes),
        structure=_structure(site, plans),
    )


def _tone(found: SiteVerdict | None) -> Tone:
    if found is None:
        return "open"
    if not found.ok:
        return "bad"
    return "good" if found.identical else "close"


def _tone_of_output(found: OutputVerdict) -> Tone:
    if not found.ok:
        return "bad"
    return "good" if found.identical else "close"


def _ratio(found: SiteVerdict) -> float | None:
    """Error by what is allowed: in whole numbers nothing is, so that any difference is infinite."""
    if found.bound_ratio is not None:
        return max(found.bound_ratio, 0.0 if found.ok else 1.0)
    return 0.0 if found.ok else float("inf")


def _facts(site: RewrittenSite) -> Iterator[tuple[str, str]]:
    yield "branches", f"{site.branches:,}"
    found = site.verdict
    if site.observable is False:
        yield "end to end", "not observable: its weights do not reach the output now"
    if found is None:
        return
    if found.reason is not None:
        yield "wrong", told(found.reason)
    yield "compared in", found.proof
    if found.chance is not None:
        yield "chance that this hides a difference", f"at most {digits(found.chance)}"
    yield "max|d|", digits(found.max_error)
    modes = (("gradients", found.gradients_ok), ("train mode", found.train_ok))
    for title, ok in (*modes, ("own dtype", found.own_dtype_ok)):
        if ok is not None:
            yield title, "agree" if ok else "DIFFER"


def _plans(fragment: Fragment) -> Mapping[str, SitePlan]:
    """What rewrites wrote on the graph, by the full names of sites."""
    found = {}
    for node in fragment.working.graph.nodes:
        try:
            plan = plan_of(node.meta)
        except UsageError:
            continue
        if plan is not None:
            found[joined(fragment.path, plan.site)] = plan
    return found


def _structure(site: RewrittenSite, plans: Mapping[str, SitePlan]) -> BlockStructure | None:
    """The groups that a layer learned, the blocks that are executed, or the groups it has."""
    learned = _learned(site)
    if learned is not None:
        return learned
    plan, spec = plans.get(site.name), site.spec
    form = None if plan is None else plan.form
    try:
        if plan is not None and isinstance(form, FormPlan):
            return form.blocks(plan.in_channels)
        groups = form.total if isinstance(form, Branches) else spec.groups
        return BlockStructure.of_groups(spec.in_channels, spec.out_channels, groups)
    except UsageError:
        return None


def _learned(site: RewrittenSite) -> BlockStructure | None:
    """The blocks of a layer with learned groups, whatever form they are executed in."""
    root = site.fragment.reference
    node = next((node for node in root.graph.nodes if node.name == site.conv), None)
    if site.kind != "learned" or node is None or node.op != "call_module":
        return None
    layer = root.get_submodule(str(node.target))
    try:
        return LearnedLayer(site.name, site.spec.kernel_size, groups_of(layer)).structure
    except UsageError:
        return None


# The operations of a site


def site_graphs(site: RewrittenSite) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    """The operations of a site in the original and now; none where they do not stand apart."""
    fragment = site.fragment
    if site.end is None or not site.replaces:
        return (), ()
    nodes = {node.name: node for node in fragment.reference.graph.nodes}
    starts = [nodes[name] for name in site.starts if name in nodes]
    end = nodes.get(site.end)
    now = [node for s in starts if (node := fragment.standing.get(s.name)) is not None]
    after = fragment.standing.get(site.end)
    before = () if end is None else _between(fragment.reference, starts, end)
    return before, () if after is None else _between(fragment.working, now, after)


def _between(root: fx.GraphModule, starts: list[fx.Node], end: fx.Node) -> tuple[Piece, ...]:
    """What `end` is computed by of `starts`, in the order of the graph."""
    seen, pending = {*starts}, [end]
    found: set[fx.Node] = set()
    while pending and len(found) < _MOST_PIECES:
        node = pending.pop()
        if node in seen or node.op == "placeholder":
            continue
        seen.add(node)
        found.add(node)
        pending += node.all_input_nodes
    order = [node for node in root.graph.nodes if node in found]
    return pieces_of(order, lambda node: node.all_input_nodes, lambda node: _label(root, node))


_SLICES = frozenset([operator.getitem])


def _label(root: fx.GraphModule, node: fx.Node) -> str | None:
    """What an operation is, without names and numbers that tell branches apart."""
    if node.op in ("get_attr", "output"):
        return None
    if node.op == "call_module":
        return _module_label(root.get_submodule(str(node.target)))
    if node.target in _SLICES:
        return "slice"
    target: Any = node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    return str(name).partition(".")[0]


def _module_label(module: nn.Module) -> str:
    spec = spec_of_module(module)
    if spec is None:
        return type(module).__name__
    return conv_label(spec.type_name, spec)


def _grids(report: Report) -> Iterator[Grid]:
    if report.model is not None and report.model.outputs:
        outputs = report.model.outputs
        tones = [_tone_of_output(each) for each in outputs]
        rows = [
            (each.name, digits(each.relative_error), CHECK_WORDS[tone])
            for each, tone in zip(outputs, tones, strict=True)
        ]
        titles = ("output", "max|d| / max|y|", "check")
        yield Grid("End to end", titles, rows, tones, frozenset([1]))
    yield Grid(
        "Passes",
        ("pass", "options", "rewritten", "left"),
        [
            (
                entry.name,
                ", ".join(f"{key}={value}" for key, value in entry.options.items()) or "-",
                f"{entry.rewritten:,}",
                f"{entry.skipped:,}",
            )
            for entry in report.passes
        ],
        numbers=frozenset([2, 3]),
    )
    kept = [each for fold in report.folds for each in fold.kept]
    if kept:
        yield Grid(
            "Permutations that stay",
            ("where", "how", "bytes a sample", "why"),
            [(each.name, each.how, f"{each.moved:,}", told(each.reason)) for each in kept],
            numbers=frozenset([2]),
        )
    if report.obstacles:
        yield Grid(
            "What the target would refuse",
            ("operation",),
            [(told(line.removeprefix("the target: ")),) for line in obstacles(report)],
        )
