"""`groupfx zoo`: what it says, its exit codes, and what it refuses; its models cost nothing."""

import sys
from pathlib import Path

import pytest

from groupfx.cli.input.files import STDOUT
from groupfx.fleet import runner
from tests.cli.runs import Cli, check_json
from tests.fleet.cheap_fleet import ENGINE


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setattr(runner.Engine, "of", lambda workers: ENGINE)
    for name in ("a.pt", "sub/ü b.onnx"):
        (tmp_path / "nets" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "nets" / name).write_text(name)
    return Cli(capsys, tmp_path, monkeypatch)


def test_a_folder_of_models(cli: Cli, tmp_path: Path) -> None:
    done = cli("zoo", "nets")
    assert (done.code, done.err) == (0, "")
    assert [row[:2] for row in done.rows[:3]] == [
        ["model", "result"],
        ["a.pt", "done"],
        ["sub/ü b.onnx", "done"],
    ]
    assert "2 of 2 models done\n" in done.out
    assert "The results are in nets.zoo." in done.out
    assert "torch" not in done.out
    again = cli("zoo", "nets", "--json", STDOUT)
    document = check_json(again.out, "groupfx.zoo/1")
    assert (document["counts"]["kept"], document["ok"]) == (2, True)
    assert "2 known from before" in cli("zoo", "nets").out


def test_one_that_is_not_there_is_an_exit_code_of_1(cli: Cli) -> None:
    Path("zoo.yaml").write_text("[nets/a.pt, gone.pt]")
    done = cli("zoo", "zoo.yaml", "-v")
    assert done.code == 1
    assert done.row("gone.pt")[1] == "cannot open"
    assert "gone.pt: there is no file gone.pt" in done.out
    assert "1 of 2 models done, 1 cannot open" in done.out
    # As each ends, for those who want to look on.
    assert "a.pt: done, 0.0 s" in done.err
    assert (cli("zoo", "zoo.yaml", "-q").out, cli("zoo", "zoo.yaml", "-q").code) == ("", 1)


def test_shards_by_the_same_command(cli: Cli) -> None:
    first = cli("zoo", "nets", "--shard", "1/2")
    assert "1 of 1 model done" in first.out
    assert "1 of 1 model done" in cli("zoo", "nets", "--shard", "2/2", "-o", "other").out
    joined = cli("zoo", "nets", "--join", "other")
    assert "2 of 2 models done, 2 known from before" in joined.out


def test_the_folder_of_results_is_no_part_of_the_fleet(cli: Cli) -> None:
    assert cli("zoo", "nets", "-o", "nets/out").code == 0
    Path("nets/out/b.pt").write_text("not a model of theirs")
    assert "2 of 2 models done" in cli("zoo", "nets", "-o", "nets/out").out


REFUSED = {
    "no_manifest": (["gone.yaml"], "there is no file gone.yaml"),
    "malformed": (["bad.yaml"], "bad.yaml, line 2, column 1: this is not YAML"),
    "shard": (["nets", "--shard", "1"], "--shard '1': write 1/8"),
    "shard_0": (["nets", "--shard", "0/2"], "--shard 0/2: the first of 2 is 1/2"),
    "jobs": (["nets", "-j", "0"], "--jobs 0: it must be at least 1"),
    "time": (["nets", "--time", "0"], "--time 0: give a number of seconds"),
    "not_a_time": (["nets", "--time", "nan"], "--time nan: give a number of seconds"),
    "memory": (["nets", "--memory", "4"], "memory '4' is no size"),
    "two": (["nets", "--retry", "--again"], "give one of --retry"),
    "pass": (["nets", "-p", "split-gruoped-conv"], "did you mean 'split-grouped-conv'"),
    "target": (["nets", "--target", "none"], "none"),
    "join": (["nets", "--join", "gone"], "gone is neither a folder of results"),
    "file": (["nets", "-o", "bad.yaml"], "bad.yaml"),
    "nowhere": (["nets", "-o", "/proc/nothing"], "/proc/nothing cannot be made"),
    "scheduler": (["nets", "--scheduler", "nonsense"], "--scheduler 'nonsense' is no address"),
    "json": (["nets", "--json", "gone/x.json"], "there is no folder gone"),
}


@pytest.mark.parametrize(("argv", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_before_anything_runs(cli: Cli, argv: list[str], said: str) -> None:
    Path("bad.yaml").write_text("{a: [\n")
    done = cli("zoo", *argv)
    assert (done.code, done.out) == (2, "")
    assert said in done.err


def test_a_scheduler_without_dask(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    done = cli("zoo", "nets", "--scheduler", "tcp://127.0.0.1:1")
    assert done.code == 3
    assert "pip install 'groupfx[dask]'" in done.err


def test_a_page_of_all_is_written_last_and_stops_nothing(cli: Cli) -> None:
    Path("zoo.yaml").write_text("[nets/a.pt, gone.pt]")
    done = cli("zoo", "zoo.yaml", "--html", "fleet.html")
    assert done.code == 1
    text = Path("fleet.html").read_text("utf-8")
    assert "1 of 2 models done, 1 cannot open" in text
    assert "Wrote fleet.html" in done.out
    refused = cli("zoo", "zoo.yaml", "--html", "no/fleet.html")
    assert refused.code == 2
    assert "there is no folder no" in refused.err
