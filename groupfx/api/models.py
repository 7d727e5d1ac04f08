"""The functions that users call: find, rewrite, load."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..convs.names import unnumbered
from ..convs.spec import ConvSpec
from ..errors import FileError, MismatchError, ModelError, RewriteError, UsageError
from ..files.archive import apply, read
from ..passes import make_pass
from ..rewriting import (
    Pass,
    Pipeline,
    Progress,
    Result,
    Site,
    Skip,
    SkippedSite,
    Store,
    Totals,
    UnreadableSite,
    find_sites,
    require_sites,
    totals,
)
from ..running.alone import alone
from ..running.inputs import ExampleInputs
from ..running.weightless import without_values
from ..state.map import StateDictMap
from ..state.reversed_map import map_from_dict
from ..targets import Target, target_named
from ..toolchains import WHOLE_MODEL
from ..tracing import Program, module_of
from ..tracing.exporting import in_its_modes
from ..version import TORCH_BEFORE, TORCH_FROM


def _require_torch() -> None:
    """Refuse a torch outside the range that is tested, before it fails in some obscure way."""
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if not TORCH_FROM <= version < TORCH_BEFORE:
        lower, upper = (".".join(map(str, bound)) for bound in (TORCH_FROM, TORCH_BEFORE))
        raise UsageError(
            f"groupfx works with torch >= {lower} and < {upper}, and this is {torch.__version__}: "
            f"install torch>={lower},<{upper}"
        )


_require_torch()


@dataclass(frozen=True)
class FoundSite:
    """A grouped convolution in a model.

    `name` is the path of the module that is called, that holds the weight, or whose forward
    computes it (`path#2` where a second call is listed). `macs` are multiply-accumulates of one
    call for one sample. `input_shape` and `output_shape` hold the batch. `taken` says whether the
    passes would rewrite it; `reason` why not. Numbers that are not constants of the model are None,
    and `spec`, which has all of them, is None then.
    """

    name: str
    kind: str
    type: str | None
    dims: int | None
    in_channels: int | None
    out_channels: int | None
    groups: int | None
    kernel_size: tuple[int, ...] | None
    parameters: int | None
    macs: int | None
    input_shape: tuple[int, ...] | None
    output_shape: tuple[int, ...] | None
    calls: int
    taken: bool
    reason: str | None
    spec: ConvSpec | None = field(repr=False)


def find(
    model: nn.Module,
    inputs: object = None,
    *,
    passes: Sequence[str | Pass[Any]] | None = None,
    target: str | None = None,
    way: str = "auto",
) -> tuple[FoundSite, ...]:
    """Every grouped convolution of `model`, in the order of the calls, and what would become of it.

    `inputs` is a tensor, a tuple of positional arguments or a dict of keyword arguments of
    `forward`; a shape is inferred where it is None. The model is run once in eval mode and is not
    changed. Raises `ModelError` where it cannot be opened or run.
    """
    return survey(model, inputs, passes=passes, target=target, way=way).sites


@dataclass(frozen=True)
class Survey:
    """What `find` saw: the sites, how the model was opened, and what it was run on."""

    way: str
    notes: tuple[str, ...]
    inputs: ExampleInputs
    sites: tuple[FoundSite, ...]
    totals: Totals


@alone
def survey(
    model: nn.Module,
    inputs: object = None,
    *,
    passes: Sequence[str | Pass[Any]] | None = None,
    target: str | None = None,
    way: str = "auto",
) -> Survey:
    """As `find`, with how it was found."""
    pipeline = make_pipeline(passes, target)
    program = pipeline.opened(model, inputs, way=way, read_only=True)
    with without_values(program.model):
        return _surveyed(pipeline, program)


def _surveyed(pipeline: Pipeline, program: Program) -> Survey:
    assert program.inputs is not None
    store = Store(program, {})
    found: dict[object, Site | UnreadableSite] = {}
    decisions: dict[object, list[object]] = {}
    for site in find_sites(program, store):
        if isinstance(site, UnreadableSite) or site.spec.groups > 1:
            found[_key(site)] = site
    for position, pass_ in enumerate(pipeline.passes):
        seen = list(find_sites(program, store, pass_.calls))
        # A later pass may be about sites that an earlier one would make.
        if position == 0:
            require_sites(pass_, store, seen)
        for site in seen:
            if isinstance(site, UnreadableSite):
                found.setdefault(_key(site), site)
            elif pass_.wants(site):
                found.setdefault(_key(site), site)
                decisions.setdefault(_key(site), []).append(pass_.match(site))
    orders = {id(fragment): fragment.order for fragment in program.fragments}
    places = {fragment: position for position, fragment in enumerate(orders)}

    def place(site: Site | UnreadableSite) -> tuple[int, int]:
        """Fragment and position of a site in it; those that are called nowhere come last."""
        if isinstance(site, UnreadableSite):
            return len(places), 0
        fragment = id(site.fragment)
        return places[fragment], orders[fragment][site.call.node]

    listed = [
        _unreadable(site)
        if isinstance(site, UnreadableSite)
        else _found(site, decisions.get(key, []))
        for key, site in sorted(found.items(), key=lambda item: place(item[1]))
    ]
    whole = totals(program.model, program.inputs, macs=program.macs)
    return Survey(program.way, program.notes, program.inputs, tuple(listed), whole)


def _key(site: Site | UnreadableSite) -> object:
    return site.name if isinstance(site, UnreadableSite) else site.call.node


def _found(site: Site, decisions: Sequence[object]) -> FoundSite:
    taken = any(not isinstance(decision, Skip) for decision in decisions)
    reasons = [decision.reason for decision in decisions if isinstance(decision, Skip)]
    spec = site.spec
    return FoundSite(
        name=site.name,
        kind=site.kind,
        type=spec.type_name,
        dims=spec.dims,
        in_channels=spec.in_channels,
        out_channels=spec.out_channels,
        groups=spec.groups,
        kernel_size=spec.kernel_size,
        parameters=spec.parameters,
        macs=site.macs,
        input_shape=None if site.shapes is None else site.shapes.input,
        output_shape=None if site.shapes is None else site.shapes.output,
        calls=site.calls,
        taken=taken,
        reason=None if taken else "; ".join(reasons) or "no pass of the pipeline is about it",
        spec=spec,
    )


def _unreadable(site: UnreadableSite) -> FoundSite:
    numbers = dict.fromkeys(
        ("type", "dims", "in_channels", "out_channels", "groups", "kernel_size", "parameters")
    )
    return FoundSite(
        name=site.name,
        kind="unknown",
        **numbers,
        macs=None,
        input_shape=None,
        output_shape=None,
        calls=site.calls,
        taken=False,
        reason=site.reason,
        spec=None,
    )


@alone
def rewrite(
    model: nn.Module,
    inputs: object = None,
    *,
    passes: Sequence[str | Pass[Any]] | None = None,
    target: str | None = None,
    way: str = "auto",
    inplace: bool = False,
    verify: bool = True,
    progress: Progress | None = None,
) -> Result:
    """Rewrite the grouped convolutions of `model`, and check that the function is the same.

    `passes` are names (with options: `"split-grouped-conv:max_groups=64"`) or pass objects; without
    them, the pipeline of `target` runs, or the default one. `way` is how the model is opened:
    `auto`, `trace`, `modules` or `export`. The model is not changed unless `inplace`. `progress` is
    called with how many sites were checked and of how many.

    Raises `ModelError` where the model cannot be opened or copied, `RewriteError` where a site that
    an option names is refused, and `MismatchError` where the check fails (its `report` says where).
    """
    pipeline = make_pipeline(passes, target)
    meant = None if target is None else target_named(target)
    result = rewritten_for(
        meant, pipeline, model, inputs, way=way, inplace=inplace, verify=verify, progress=progress
    )
    refuse_named(pipeline.passes, result.report.skipped)
    return result


def rewritten_for(
    target: Target | None,
    pipeline: Pipeline,
    model: nn.Module,
    inputs: object,
    *,
    way: str,
    inplace: bool = False,
    verify: bool,
    progress: Progress | None,
) -> Result:
    """What the passes make of a model, judged by the target's grammar where it has one."""
    result = pipeline(model, inputs, way=way, inplace=inplace, verify=verify, progress=progress)
    if target is None or target.grammar is None:
        return result
    result = _judged(target, result)
    if (way, inplace) != ("auto", False) or not _is_unread(target, result):
        return result
    # What is no single graph, the toolchain cannot read either; what was exported, it may.
    try:
        exported = pipeline(model, inputs, way="export", verify=verify, progress=progress)
    except (ModelError, MismatchError):
        return result
    exported = _judged(target, exported)
    return exported if _left(exported) < _left(result) else result


def _is_unread(target: Target, result: Result) -> bool:
    """Whether the target cannot even read it, as it is no graph, or a part of it is none."""
    found = result.report.obstacles or ()
    refused = (each.methods for each in found if each.refused)
    return result.report.way == "modules" or any({*target.methods} <= {*each} for each in refused)


def _left(result: Result) -> tuple[int, int, bool, int]:
    """How far a result is from what its target takes; where as far, one that knows the place."""
    found = result.report.obstacles or ()
    refusing = {method for each in found if each.refused for method in each.methods}
    wrong = {method for each in found for method in each.methods}
    whole = any(each.operation == WHOLE_MODEL for each in found)
    return len(refusing), len(wrong), whole, len(found)


def _judged(target: Target, result: Result) -> Result:
    """The result, with what the target would refuse in it."""
    assert result.program.inputs is not None
    found = target.obstacles(result.model, result.program.inputs)
    return replace(result, report=replace(result.report, obstacles=found))


def make_pipeline(passes: Sequence[str | Pass[Any]] | None, target: str | None) -> Pipeline:
    """The pipeline of the given passes, else of the target, else the default one."""
    if passes is not None and target is not None:
        raise UsageError(f"give passes or target={target!r}, not both")
    chosen = target_named(target).passes if passes is None else passes
    return Pipeline([make_pass(p) if isinstance(p, str) else p for p in chosen])


def refuse_named(passes: Iterable[Pass[Any]], skipped: Iterable[SkippedSite]) -> None:
    """Raise `RewriteError` for a site that the option `only` names outright and a pass refused."""
    for pass_ in passes:
        named = set(getattr(pass_, "only", ()))
        for site in skipped:
            if site.pass_name == pass_.pass_name() and unnumbered(site.name) in named:
                raise RewriteError(f"{site.name} cannot be rewritten: {site.reason}")


@dataclass(frozen=True)
class Loaded:
    """A model read from a file of ours, with the report of the rewrite that made it."""

    model: nn.Module
    report: Mapping[str, Any]
    state_dict_map: StateDictMap
    inputs: ExampleInputs | None


@torch.inference_mode(False)  # what it reads can be trained wherever it is read
def load(path: str | Path, model: nn.Module | None = None, *, inplace: bool = False) -> Loaded:
    """Read a file that `Result.save` wrote; nothing in it is executed.

    A model whose modules were swapped needs the original `model` (any weights): the swap is made
    in a copy of it, or with `inplace` in the model itself, and the weights of the file are loaded.
    Raises `FileError`, and `ModelError` where `model` cannot be copied.
    """
    archive = read(path)
    if archive.model is not None:
        rebuilt: nn.Module = archive.model
        if archive.way == "export":
            rebuilt = in_its_modes(archive.model)
    elif model is None:
        raise FileError(
            f"{path} holds a model whose modules were swapped: give the original model as well, "
            "groupfx.load(path, model), or --arch on the command line"
        )
    else:
        rebuilt = apply(archive, module_of(model)[0], inplace=inplace)
    report = dict(archive.report)
    state_map = map_from_dict(report.pop("state_dict_map"), model=rebuilt)
    try:
        inputs = ExampleInputs.from_description(archive.inputs) if archive.inputs else None
    except UsageError:
        inputs = None  # one of them was an object, of which a file holds the class's name alone
    return Loaded(rebuilt, report, state_map, inputs)
