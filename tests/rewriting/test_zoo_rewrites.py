"""Every model of the zoo through the default pipeline: found, split, proved, saved, found empty."""

from pathlib import Path

import pytest

import groupfx
from groupfx.errors import FileError
from groupfx.passes import SplitGroupedConv
from groupfx.running.inputs import ExampleInputs
from groupfx.testing import check_pass
from tests.models import zoo

CASES = zoo.CASES
# A leaf of the user's own class, and hooks, cannot be written as data: tested as a refusal.
UNSAVED = {
    "custom-backward": "rounding",
    "forward-hook": "hook on the module conv",
    "forward-pre-hook": "hook on the module conv",
    "backward-hook": "hook on the module conv",
    "bn-hook": "hook on the module bn",
}


@pytest.mark.parametrize("name", CASES)
def test_a_split_holds_to_every_rule(name: str) -> None:
    case = CASES[name]
    total = sum(case.sites.values())
    result = check_pass(
        SplitGroupedConv(),
        case.build(),
        ExampleInputs.of(case.inputs()),
        sites=total - case.left,
        skipped=case.left,
        saved=name not in UNSAVED,
    )
    report = result.report
    assert report.way == case.way
    assert all(site.verdict is not None and site.verdict.identical for site in report.sites)
    if case.blind:
        assert {site.observable for site in report.sites} == {False}
    assert report.complexity is not None
    assert report.complexity.before.macs == report.complexity.after.macs
    calls = zoo.count_grouped_calls(result.model, case.inputs()).total()
    assert calls == (case.left if case.calls is None else min(case.left, case.calls))


@pytest.mark.parametrize("name", CASES)
def test_find_agrees_with_the_ground_truth(name: str) -> None:
    case = CASES[name]
    model = case.build()
    found = groupfx.find(model, ExampleInputs.of(case.inputs()))
    assert len(found) == sum(case.sites.values())
    assert sum(not site.taken for site in found) == case.left
    known = {site.name: site.groups for site in found if site.groups is not None}
    for path, groups in zoo.grouped_modules(model).items():
        assert known.get(path, groups) == groups
    for site in found:
        assert site.taken == (site.reason is None)


@pytest.mark.parametrize(("name", "reason"), UNSAVED.items(), ids=UNSAVED)
def test_what_is_no_data_is_refused_by_name(name: str, reason: str, tmp_path: Path) -> None:
    case = CASES[name]
    result = groupfx.rewrite(case.build(), ExampleInputs.of(case.inputs()))
    with pytest.raises(FileError, match=reason):
        result.save(tmp_path / "model.pt")
    assert list(tmp_path.iterdir()) == []
