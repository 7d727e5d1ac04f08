"""A file with several networks: every command takes the same one, says so, and takes `--key`."""

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from groupfx.cli.commands.export import SCHEMA as EXPORT_SCHEMA
from groupfx.cli.commands.groups import SCHEMA as GROUPS_SCHEMA
from groupfx.cli.commands.inspect import SCHEMA as INSPECT_SCHEMA
from groupfx.deploy.validate.verdict import SCHEMA as VALIDATION_SCHEMA
from groupfx.nn import Flgc2d
from groupfx.rewriting.report import SCHEMA as REPORT_SCHEMA
from tests.cli.runs import Cli, check_json

SHAPE = ("--input-shape", "2,6,5,7")
TOLD = "{} holds several networks: state_dict, net. state_dict was taken: --key takes another"


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, tmp_path, monkeypatch)


def network(name: str) -> nn.Module:
    """A grouped convolution, and learned groups in a layer of this name."""
    grouped, learned = nn.Conv2d(6, 9, 1, groups=3), Flgc2d(9, 4, 1, group_num=2)
    return nn.Sequential(OrderedDict([(f"conv_{name}", grouped), (name, learned)])).eval()


@pytest.fixture(autouse=True)
def two(cli: Cli) -> None:
    torch.save({"net": network("birch"), "state_dict": network("alder")}, "two.pt")
    weights = {"net": network("birch"), "state_dict": network("alder")}
    torch.save({name: net.state_dict() for name, net in weights.items()}, "weights.pt")


COMMANDS = {
    "rewrite": (["rewrite", "two.pt", *SHAPE], REPORT_SCHEMA),
    "inspect": (["inspect", "two.pt", *SHAPE], INSPECT_SCHEMA),
    "export": (["export", "two.pt", "-o", "two.onnx", *SHAPE], EXPORT_SCHEMA),
    "groups": (["groups", "two.pt", *SHAPE], GROUPS_SCHEMA),
    "groups-as-data": (["groups", "weights.pt"], GROUPS_SCHEMA),
    "series": (["groups", "weights.pt", "weights.pt"], GROUPS_SCHEMA),
}


@pytest.mark.parametrize(("argv", "schema"), COMMANDS.values(), ids=COMMANDS)
def test_the_network_that_is_taken_is_named(cli: Cli, argv: list[str], schema: str) -> None:
    done = cli(*argv, "--json", "-")
    assert done.code == 0, done.err
    note = TOLD.format(argv[1])
    assert done.err.count(f"groupfx: warning: {note}\n") == 1
    files = check_json(done.out, schema)["files"]
    assert all(file["notes"] == [note] for file in (files if isinstance(files, list) else [files]))
    assert "alder" in done.out
    assert "birch" not in done.out


@pytest.mark.parametrize(("argv", "schema"), COMMANDS.values(), ids=COMMANDS)
def test_another_is_taken_by_its_key(cli: Cli, argv: list[str], schema: str) -> None:
    done = cli(*argv, "--key", "net", "--json", "-")
    assert done.code == 0, done.err
    assert "warning" not in done.err
    check_json(done.out, schema)
    assert "birch" in done.out
    assert "alder" not in done.out


@pytest.mark.parametrize("argv", [argv for argv, _ in COMMANDS.values()], ids=COMMANDS)
def test_an_unknown_key_is_named_with_those_that_are_there(cli: Cli, argv: list[str]) -> None:
    done = cli(*argv, "--key", "nett")
    assert (done.code, done.out) == (2, "")
    words = f"--key nett: {argv[1]} has no such key; it has net, state_dict: did you mean net?"
    assert words in done.err


def test_the_key_of_validate_is_that_of_the_reference(cli: Cli) -> None:
    networks = torch.load("two.pt", weights_only=False)
    torch.save(networks["net"], "alone.pt")
    assert cli("validate", "two.pt", "alone.pt", *SHAPE).code == 1
    done = cli("validate", "two.pt", "alone.pt", "--key", "net", *SHAPE, "--json", "-")
    assert (done.code, "warning" in done.err) == (0, False), done.err
    # The candidate's, where it has it too; else it is chosen as ever, and that is said.
    assert cli("validate", "two.pt", "two.pt", "--key", "net", *SHAPE).code == 0
    torch.save({"ema": networks["net"], **networks}, "three.pt")
    assert cli("validate", "three.pt", "two.pt", "--key", "ema", *SHAPE).code == 1
    done = cli("validate", "alone.pt", "two.pt", *SHAPE, "--json", "verdict.json")
    assert done.code == 1
    assert f"groupfx: warning: {TOLD.format('two.pt')}\n" in done.err
    verdict = check_json(Path("verdict.json").read_text(), VALIDATION_SCHEMA)
    assert TOLD.format("two.pt") in verdict["notes"]
    done = cli("validate", "two.pt", "alone.pt", "--key", "nett", *SHAPE)
    assert done.code == 2
    assert "two.pt has no such key; it has net, state_dict: did you mean net?" in done.err


def test_the_library_says_it_too() -> None:
    import groupfx

    networks = torch.load("two.pt", weights_only=False)
    x = torch.randn(2, 6, 5, 7)
    verdict = groupfx.validate("two.pt", networks["net"], (x,))
    assert (verdict.ok, verdict.notes[0]) == (False, TOLD.format("two.pt"))
    verdict = groupfx.validate("two.pt", networks["net"], (x,), key="net")
    assert (verdict.ok, [note for note in verdict.notes if "network" in note]) == (True, [])
