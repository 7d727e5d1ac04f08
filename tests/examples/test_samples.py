"""The models that are shipped, end to end through the command line, as the README runs them."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from groupfx import load
from groupfx.learned.groups import has_learned_groups
from tests.cli.runs import Cli
from tests.models import zoo


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, tmp_path, monkeypatch)


def report_of(cli: Cli, folder: Path, *argv: object) -> dict:
    done = cli(*argv, "--json", folder / "report.json")
    assert done.code == 0, done.err
    report: dict = json.loads((folder / "report.json").read_text())
    assert report["ok"]
    assert report["verified"]
    return report


def test_shufflenet_with_3_groups_from_the_shipped_file(cli: Cli, tmp_path: Path) -> None:
    report = report_of(cli, tmp_path, "rewrite", zoo.EXAMPLES / "shufflenet_v1_g3.pt")
    assert len(report["sites"]) == 31
    assert {site["branches"] for site in report["sites"]} == {3}
    assert all(site["verdict"]["identical"] and site["observable"] for site in report["sites"])
    assert len(report["skipped"]) == 16
    split = load(tmp_path / "shufflenet_v1_g3.groupfx.pt").model
    original = load(zoo.EXAMPLES / "shufflenet_v1_g3.pt").model
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    assert torch.equal(split.double()(x), original.double()(x))
    again = report_of(cli, tmp_path, "rewrite", "shufflenet_v1_g3.groupfx.pt")
    assert again["sites"] == []


def test_shufflenet_with_2_groups_from_a_state_dict(cli: Cli, tmp_path: Path) -> None:
    factory = zoo.EXAMPLES / "shufflenet_v1.py"
    torch.manual_seed(0)
    model = zoo.load_example("shufflenet_v1").shufflenet_v1_g2().eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    report = report_of(
        cli,
        tmp_path,
        "rewrite",
        "weights.pt",
        *("--arch", f"{factory}:shufflenet_v1_g2", "--input-shape", "2,3,32,32"),
    )
    assert len(report["sites"]) == 31
    assert {site["branches"] for site in report["sites"]} == {2}
    split = load(tmp_path / "weights.groupfx.pt").model.eval()
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    assert torch.equal(split.double()(x), model.double()(x))


def test_the_trained_flgc_network_frozen_sees_the_same_digits(cli: Cli, tmp_path: Path) -> None:
    report = report_of(cli, tmp_path, "rewrite", zoo.EXAMPLES / "flgc_digits.pt")
    assert len(report["sites"]) == 17
    assert {site["kind"] for site in report["sites"]} == {"learned"}
    assert report["expected"] == "expected 1.00 x the time of masked dense; 17 sites dense"
    least = report_of(
        cli, tmp_path, "rewrite", zoo.EXAMPLES / "flgc_digits.pt", "-p", "freeze-learned-groups"
    )
    size = least["complexity"]
    saved = sum(site["macs"] - site["macs_after"] for site in least["sites"])
    assert size["before"]["macs"] - size["after"]["macs"] == saved > 0
    frozen = load(tmp_path / "flgc_digits.groupfx.pt").model
    trained = load(zoo.EXAMPLES / "flgc_digits.pt").model
    assert not any(has_learned_groups(module) for module in frozen.modules())
    images, labels = digits_to_test()
    with torch.no_grad():
        seen, expected = frozen(images).argmax(1), trained(images).argmax(1)
    assert torch.equal(seen, expected)
    accuracy = float((seen == labels).double().mean())
    assert accuracy > 0.97
    again = report_of(cli, tmp_path, "rewrite", "flgc_digits.groupfx.pt")
    assert again["sites"] == []


def digits_to_test() -> tuple[torch.Tensor, torch.Tensor]:
    """The test images of the example, all 360 of them."""
    test = zoo.load_example("flgc_digits/digits").load_digits().test
    return test.images, test.labels


def sizes(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["shufflenet_v1_g3", "flgc_digits"])
def test_the_shipped_files_are_as_they_were_made(name: str) -> None:
    """No rewrite was made of them, so that the README's command has something to do."""
    loaded = load(zoo.EXAMPLES / f"{name}.pt")
    assert loaded.report["passes"] == []
    assert sizes(loaded.model) > 0
