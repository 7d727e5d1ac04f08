"""Fleets in real processes: limits, crashes, and what is killed."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from groupfx.errors import InternalError, UsageError
from groupfx.fleet import Entry, Fleet, FleetOptions, logs, read_fleet, run_fleet
from groupfx.fleet.logs import Log
from groupfx.fleet.nursery import Nursery
from groupfx.fleet.results import read_results
from groupfx.fleet.task import Job, Task
from tests.cli.runs import Cli, check_json
from tests.fleet import stubs
from tests.fleet.cheap_fleet import ENGINE

STUBS = Path(stubs.__file__)
ROOT = STUBS.parents[2]

CLASSES = {
    "hangs": ("time", None, "longer than the 2 s that it may"),
    "crashes": ("crash", None, "SIGSEGV: Fatal Python error: Segmentation fault File"),
    "leaves": ("crash", None, "ended by itself with exit code 3"),
    "killed": ("crash", "lost worker", "was killed from outside"),
    "eats": ("memory", "out of memory", "of 1.00 GB that it may take"),
    "eats_in_a_child": ("memory", "out of memory", "of 1.00 GB that it may take"),
    "exits": ("cannot open", None, "raised SystemExit: 4"),
}


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, tmp_path, monkeypatch)


@pytest.mark.long
def test_one_that_fails_ends_nothing_but_itself(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["net", *CLASSES, "gone"]
    lines = [f"- {{name: {name}, factory: '{STUBS}:{name}'}}" for name in names[:-1]]
    lines += ["- gone.pt", "- {model: net.pt, wat: 1}", f"- {{name: net, factory: '{STUBS}:net'}}"]
    Path("zoo.yaml").write_text("\n".join(lines))
    argv = ("zoo", "zoo.yaml", "--input-shape", stubs.SHAPE, "--time", 2, "--memory", "1GB")
    first = cli(*argv, "--jobs", 3, "--json", "zoo.json")
    assert first.code == 1
    document = check_json(Path("zoo.json").read_text(), "groupfx.zoo/1")
    found = {each["name"]: each for each in document["models"]}
    assert [*found] == [*names[:-1], "gone.pt", "net.pt", "net#2"]
    assert found["net"]["ok"]
    for name, (kind, environment, said) in CLASSES.items():
        model = found[name]
        assert (model["class"], model["environment"]) == (kind, environment), model
        assert said in model["message"]
    assert found["hangs"]["stage"] == "open"
    for name, said in (("gone.pt", "there is no file"), ("net.pt", "'wat'"), ("net#2", "already")):
        assert (found[name]["class"], found[name]["exit_code"]) == ("cannot open", 2)
        assert said in found[name]["message"]
    assert document["counts"]["classes"] == {"cannot open": 4, "crash": 3, "memory": 2, "time": 1}
    assert "1 of 11 models done, 4 cannot open, 3 crash, 2 memory, 1 time" in first.out
    assert first.row("killed")[:3] == ["killed", "crash", "lost worker"]
    # All is known: nothing is run, and no process started.
    monkeypatch.delattr(Nursery, "open")
    monkeypatch.delattr(subprocess, "Popen")
    second = cli(*argv, "--json", "zoo.json")
    assert (second.code, check_json(Path("zoo.json").read_text(), "groupfx.zoo/1")["counts"]) == (
        1,
        {**document["counts"], "kept": 11},
    )


def end_soon(processes: Sequence[psutil.Process]) -> bool:
    """Whether none of them runs after a moment; whoever inherits them may take its time to see."""

    def runs(process: psutil.Process) -> bool:
        with suppress(psutil.NoSuchProcess):
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        return False

    for _ in range(500):
        if not any(map(runs, processes)):
            return True
        time.sleep(0.01)
    return False


def servers() -> list[psutil.Process]:
    """Those of this process that fork others; a cluster of another test has processes too."""
    children = psutil.Process().children()
    return [each for each in children if "groupfx.fleet.nursery" in " ".join(each.cmdline())]


def words(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def cheap_models(folder: Path, number: int) -> Fleet:
    folder.mkdir()
    for place in range(number):
        (folder / f"{place:02}.pt").write_text(str(place))
    return read_fleet([folder], Entry(name="", model=Path()))


def test_a_fleet_that_is_asked_to_stop(tmp_path: Path) -> None:
    fleet = cheap_models(tmp_path / "models", 9)
    ended: list[str] = []
    found = run_fleet(
        fleet,
        tmp_path / "out",
        engine=ENGINE,
        told=lambda result: ended.append(result.name),
        stop=lambda: len(ended) == 3,
    )
    assert found.interrupted
    assert len(found.models) == 3
    again = run_fleet(fleet, tmp_path / "out", engine=ENGINE)
    assert (again.ok, len(again.kept)) == (True, 3)


def test_no_process_outlives_its_fleet(tmp_path: Path) -> None:
    fleet = cheap_models(tmp_path / "models", 2)
    run_fleet(fleet, tmp_path / "out", engine=ENGINE)
    assert not servers()


def test_the_rest_of_a_job_whose_process_ended_goes_on(tmp_path: Path) -> None:
    (tmp_path / "ended").mkdir()  # the word of a model cannot be left there: its process ends
    good = tmp_path / "good"
    good.mkdir()
    tasks = []
    for name, folder in (("a", good), ("b", tmp_path), ("c", good)):
        entry = Entry(name=name, model=folder / f"{name}.pt")
        tasks.append(Task(entry, name, tmp_path / "out"))
    found = {t.entry.name: o for t, o in ENGINE.run([Job(tuple(tasks))], lambda: False)}
    assert {name: outcome.ok for name, outcome in found.items()} == {
        "a": True,
        "b": False,
        "c": True,
    }
    failure = found["b"].failure
    assert failure is not None
    assert failure.kind == "crash"
    assert "IsADirectoryError" in failure.message


def test_what_a_process_said_last() -> None:
    with closing(Log()) as log:
        assert log.last_words == ""
        os.write(log.file.fileno(), b"one\ntwo\n\n")
        assert log.last_words == "two"
        os.write(log.file.fileno(), b'Fatal Python error: Aborted\n\nThread\n  File "a.py"\nmore\n')
        assert log.last_words == 'Fatal Python error: Aborted File "a.py"'


def test_a_process_that_talks_without_end_fills_no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_MOST", 100)
    with closing(Log()) as log:
        for _ in range(9):
            os.write(log.file.fileno(), b"x" * 60)
            log.keep_small()
        assert os.fstat(log.file.fileno()).st_size <= 120


def test_a_server_that_is_killed_is_started_again(tmp_path: Path) -> None:
    fleet = cheap_models(tmp_path / "models", 6)
    killed: list[int] = []

    def told(result: object) -> None:
        if not killed:
            (server,) = servers()
            killed.append(server.pid)
            server.kill()

    found = run_fleet(fleet, tmp_path / "out", engine=ENGINE, told=told)
    assert len(found.models) == 6
    # One that was in work is lost with it, and told as such.
    failures = [each.outcome.failure for each in found.models if each.outcome.failure]
    assert [failure.environment for failure in failures] in (["lost worker"], [])
    again = FleetOptions(again="environment")
    assert run_fleet(fleet, tmp_path / "out", again, engine=ENGINE).ok


def test_a_system_that_cannot_fork_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = cheap_models(tmp_path / "models", 1)
    monkeypatch.delattr(os, "fork")
    with pytest.raises(UsageError, match="a fleet forks its processes"):
        run_fleet(fleet, tmp_path / "out", engine=ENGINE)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    fleet = cheap_models(tmp_path / "models", 1)
    with pytest.raises(InternalError, match=r"No module named 'tests\.fleet\.nowhere'"):
        run_fleet(fleet, tmp_path / "out", engine=replace(ENGINE, worker="tests.fleet.nowhere"))


def test_what_a_model_started_ends_with_it(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "starts.pt").touch()
    fleet = read_fleet([tmp_path / "models"], Entry(name="", model=Path()))
    found = run_fleet(fleet, tmp_path / "out", engine=ENGINE)
    assert found.ok
    pid = int((tmp_path / "models" / "pid").read_text())
    assert not psutil.pid_exists(pid) or end_soon([psutil.Process(pid)])


@pytest.mark.long
def test_a_runner_that_is_killed_loses_the_model_in_work_alone(tmp_path: Path) -> None:
    number = 60
    cheap_models(tmp_path / "models", number)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "tests.fleet.cheap_fleet", tmp_path / "models", out]
    moments = random.Random(0)
    seen: list[int] = []
    for round_ in range(20):
        runner = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
        # Five while it starts, which takes longer on a busy machine, and the others at its models.
        if round_ >= 5:
            before = words(tmp_path / "models" / "ended")
            while words(tmp_path / "models" / "ended") == before and runner.poll() is None:
                time.sleep(0.001)
        time.sleep(moments.uniform(0, 1 if round_ < 5 else 0.1))
        below = psutil.Process(runner.pid).children(recursive=True) if runner.poll() is None else []
        runner.kill()
        runner.wait()
        assert end_soon(below)
        if not (out / "results.jsonl").exists():
            continue
        results = {each.name for each in read_results(out / "results.jsonl")[0]}
        ended = words(tmp_path / "models" / "ended")
        assert len(set(ended) - results) <= 1
        seen.append(len(results))
    assert seen == sorted(seen)
    # Most of them were killed while it was at its models.
    assert len({count for count in seen if 0 < count < number}) >= 5
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    assert len({each.name for each in read_results(out / "results.jsonl")[0]}) == number
    # Each was run once, but for those that were in work when a runner was killed.
    assert number <= len(words(tmp_path / "models" / "ended")) <= number + 20


@pytest.mark.long
@pytest.mark.parametrize(
    # While torch is being loaded, and while a model is in work: its process is the server's.
    ("number", "code", "processes"),
    [(signal.SIGINT, 130, 1), (signal.SIGTERM, 143, 2)],
)
def test_a_signal_ends_it_in_order(tmp_path: Path, number: int, code: int, processes: int) -> None:
    (tmp_path / "zoo.json").write_text(f'["{STUBS}:hangs", "gone.pt"]')
    runner = subprocess.Popen(
        [sys.executable, "-m", "groupfx", "zoo", tmp_path / "zoo.json", "-o", tmp_path / "out"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    process = psutil.Process(runner.pid)
    for _ in range(600):
        if len(process.children(recursive=True)) >= processes:
            break
        time.sleep(0.1)
    below = process.children(recursive=True)
    runner.send_signal(number)
    out, err = runner.communicate(timeout=60)
    assert runner.returncode == code, err
    assert "Run the same command again" in out
    assert "1 without a result" in out
    assert end_soon(below)
    assert len(read_results(tmp_path / "out" / "results.jsonl")[0]) == 1
