"""Checkpoints of one network: opened and planned once, then only their weights are moved.

A rewrite says which entries of the original's tensors each of its own is, and that holds for any
weights as long as the plan did not look at their values. Where it did, as with learned groups, or
where the map of the rewrite refuses a checkpoint, that is planned by itself. What was proved of
each site was proved for any weights; the whole is compared again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..api.source import ModelOptions, OpenedFile
from ..errors import UsageError
from ..files.models import read_model
from ..learned.groups import deciding_tensors
from ..rewriting import Report, Result
from ..verify import compare_models


@dataclass(frozen=True)
class Opened:
    """A model that was read and rewritten, of the first checkpoint of a series, called `name`."""

    file: OpenedFile
    result: Result
    name: str


def of_same_network(before: Opened, source: ModelOptions, *, verify: bool) -> Opened | None:
    """The checkpoint of `source` in the rewrite of `before`, whose models get its weights.

    None where it must be planned by itself: its values say another plan, or what came out is not
    the same function. Raises FileError for a file whose weights do not fit.
    """
    result, program = before.result, before.result.program
    if program.inputs is None or _by_values(result.report):
        return None
    read = read_model(
        source.path,
        trust_pickle=source.trust_pickle,
        arch=source.arch,
        key=source.key,
        into=before.file.model,
    )
    if read.model is not before.file.model:
        return None
    try:
        result.state_dict_map.load_original(read.model.state_dict())
    except UsageError:
        return None
    report = result.report
    if verify:
        verdict = compare_models(
            read.model,
            result.model,
            program.inputs,
            native=deciding_tensors(read.model),
            vary=program.dynamic,
            once=True,
        )
        if not verdict.ok:
            return None
        report = replace(report, model=verdict)
    note = f"planned with {before.name}, whose sites were proved for any weights"
    report = replace(report, notes=(*report.notes, note))
    file = replace(before.file, path=source.path, notes=(*read.notes, note))
    return Opened(file, replace(result, report=report), before.name)


def _by_values(report: Report) -> bool:
    """Whether values decided what was done, or what was proved holds for these alone."""
    dropped = any(fold.dead.filters or fold.dead.inputs for fold in report.folds)
    return dropped or any(site.zeroed or not site.exact for site in report.sites)
