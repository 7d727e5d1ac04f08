"""What `print` shows of a rewrite: the table of the command line, and three lines of a result."""

from pathlib import Path

import pytest
import torch
from torch import nn

import groupfx
from tests.cli.runs import SHAPE, Cli, grouped_model, save

X = torch.randn(2, 6, 9, 11)


def test_a_report_reads_like_the_command_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = grouped_model()
    report = groupfx.rewrite(model, (X,)).report
    shown = str(report).splitlines()
    done = Cli(capsys, tmp_path, monkeypatch)(
        "rewrite", save(tmp_path / "m.pt", model), "--input-shape", SHAPE
    )
    table = shown[: len(report.sites) + 1]
    assert [line.split() for line in table] == [
        line.split() for line in done.out.splitlines() if line.split() in [t.split() for t in table]
    ]
    assert shown[len(table) + 1] in done.out
    assert all(site.reason in str(report) for site in report.skipped)
    assert shown[-1] == "Same function, checked in float64."


def test_a_result_is_three_lines() -> None:
    result = groupfx.rewrite(nn.Sequential(nn.Conv2d(6, 6, 3, groups=2)), (X,))
    assert repr(result).splitlines() == [
        "Result: GraphModule with 168 parameters",
        "  1 site rewritten by split-grouped-conv, 2 branches.",
        "  Same function, checked in float64.",
    ]
    nothing = groupfx.rewrite(nn.Sequential(nn.Conv2d(6, 6, 3, groups=6)), (X,), verify=False)
    assert repr(nothing).splitlines()[1:] == ["  Nothing to rewrite. 1 left.", "  Not checked."]
