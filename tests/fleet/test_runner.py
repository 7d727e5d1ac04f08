"""What runs and what does not: results that are known, in which order, after what."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from groupfx import targets
from groupfx.errors import FileError, UsageError
from groupfx.fleet import (
    Entry,
    Failure,
    Fleet,
    FleetOptions,
    FleetResult,
    Limits,
    Outcome,
    Reading,
    Refused,
    Work,
    run_fleet,
    runner,
)
from groupfx.fleet import digests as digests_module
from groupfx.fleet.digests import Digests
from groupfx.fleet.engine import Stop
from groupfx.fleet.results import Written
from groupfx.fleet.runner import folder_name
from groupfx.fleet.task import Job, Task

MEMORY = Failure("memory", "too much", 2, environment="out of memory")
CRASH = Failure("crash", "it fell", 2)
TIME = Failure("time", "too long", 2)


@dataclass
class Fake:
    """Does every job at once, and says what it is told to say."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    jobs: list[list[str]] = field(default_factory=list)
    workers: int = 2
    threads: int = 1
    ends_after: int = 1_000

    def run(self, jobs: Sequence[Job], stop: Stop) -> Iterator[tuple[Task, Outcome]]:
        self.jobs = [[task.entry.name for task in job.tasks] for job in jobs]
        done = 0
        for job in jobs:
            for task in job.tasks:
                if done == self.ends_after:
                    return
                done += 1
                yield task, self.outcomes.get(task.entry.name, Outcome(seconds=1.0))

    @property
    def ran(self) -> list[str]:
        return [name for job in self.jobs for name in job]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fake:
    found = Fake()
    monkeypatch.setattr(runner, "_engine", lambda options, fleet: found)
    monkeypatch.chdir(tmp_path)
    return found


def entry(name: str, content: str | None = None, **said: object) -> Entry:
    path = Path(f"{name}.pt")
    if not path.exists() or content is not None:
        path.write_text(name if content is None else content)
    return replace(Entry(name=name, model=path), **said)  # type: ignore[arg-type]


def run(*entries: Entry | Refused, **options: object) -> FleetResult:
    return run_fleet(Fleet(entries), Path("out"), FleetOptions(**options))  # type: ignore[arg-type]


def test_what_has_a_result_is_not_run_again(fake: Fake) -> None:
    models = [entry("a"), entry("b")]
    first = run(*models)
    assert (fake.ran, first.ok, first.kept) == (["a", "b"], True, frozenset())
    second = run(*models, entry("c"))
    assert (fake.ran, second.kept) == (["c"], frozenset("ab"))
    assert [each.name for each in second.models] == ["a", "b", "c"]


def test_what_changed_is_run_again(fake: Fake) -> None:
    run(entry("a"), entry("b"), entry("c"))
    changed = entry("a", "other content")
    other = entry("b", work=Work(target="plinio"))
    shaped = entry("c", reading=Reading(input_shape=("2,3",)))
    run(changed, other, shaped)
    assert fake.ran == ["a", "b", "c"]


def test_another_name_or_time_changes_nothing(fake: Fake) -> None:
    run(entry("a"), entry("b", "of b"))
    Path("z.pt").write_text("of b")
    os.utime("a.pt", (1, 1))
    found = run(entry("a"), entry("z"))
    assert fake.ran == []
    assert {each.name: each.same_as for each in found.models} == {"a": None, "z": "b"}


def test_the_same_content_twice_is_run_once(fake: Fake) -> None:
    found = run(entry("a", "x"), entry("b", "x"), entry("c", "y"))
    assert fake.ran == ["a", "c"]
    assert [each.same_as for each in found.models] == [None, "a", None]
    # Where files are written, each has its own.
    run(*[entry(name, work=Work(export=True)) for name in "abc"])
    assert fake.ran == ["a", "b", "c"]


def test_a_file_that_is_gone_is_made_again(fake: Fake) -> None:
    fake.outcomes["a"] = Outcome(files=(Written(path="models/a/m.onnx", bytes=3),))
    Path("out/models/a").mkdir(parents=True)
    Path("out/models/a/m.onnx").write_bytes(b"123")
    model = entry("a", work=Work(export=True))
    run(model)
    run(model)
    assert fake.ran == []
    Path("out/models/a/m.onnx").unlink()
    run(model)
    assert fake.ran == ["a"]


def test_the_longest_goes_first(fake: Fake) -> None:
    run(entry("slow"), entry("fast"))
    fake.outcomes = {"slow": Outcome(seconds=9.0), "fast": Outcome(seconds=0.5)}
    run(entry("slow"), entry("fast"), again="all")
    Path("nets.py").write_text("def f(): ...")
    made = Entry(name="made", model=Path("nets.py:f"))
    big = entry("big", "x" * 1_000)
    run(entry("fast"), big, entry("slow"), entry("small", "y"), made, again="all")
    # By what they took; what nobody has seen yet by its size; what a factory makes may be large.
    assert fake.ran == ["made", "big", "slow", "small", "fast"]


AGAIN = {"new": [], "failed": ["a", "b"], "environment": ["b"], "all": ["a", "b", "c"]}


@pytest.mark.parametrize(("again", "ran"), AGAIN.items(), ids=AGAIN)
def test_which_run_again(fake: Fake, again: str, ran: list[str]) -> None:
    fake.outcomes = {"a": Outcome(failure=CRASH), "b": Outcome(failure=MEMORY)}
    models = [entry("a"), entry("b"), entry("c")]
    assert not run(*models).ok
    found = run(*models, again=again)
    assert fake.ran == ran
    assert found.failures == {"crash": 1, "memory": 1}


def test_those_of_the_environment_alone(fake: Fake) -> None:
    fake.outcomes = {"a": Outcome(failure=MEMORY)}
    run(entry("a"))
    found = run(entry("a"), entry("new"), Refused("bad", "", "no"), again="environment")
    assert (fake.ran, found.missing) == (["a"], ("new", "bad"))


LIMITS = {
    "same": (Limits(time=5), Limits(time=5), TIME, False),
    "more_time": (Limits(time=5), Limits(time=6), TIME, True),
    "less_time": (Limits(time=5), Limits(time=4), TIME, False),
    "no_end": (Limits(time=5), Limits(time=None), TIME, True),
    "more_memory": (Limits(memory=5), Limits(memory=6), MEMORY, True),
    "less_memory": (Limits(memory=5), Limits(memory=4), MEMORY, False),
    "other_failure": (Limits(time=5), Limits(time=6), CRASH, False),
}


@pytest.mark.parametrize(("then", "now", "failure", "again"), LIMITS.values(), ids=LIMITS)
def test_a_higher_limit_is_another_chance(
    fake: Fake, then: Limits, now: Limits, failure: Failure, again: bool
) -> None:
    fake.outcomes = {"a": Outcome(failure=failure)}
    run(entry("a", limits=then))
    run(entry("a", limits=now))
    assert fake.ran == (["a"] if again else [])


def test_what_cannot_be_read_has_its_result_at_once_and_once(fake: Fake) -> None:
    models = [Refused("bad", "x.pt", "unknown key"), Entry(name="gone", model=Path("gone.pt"))]
    found = run(*models, entry("a"))
    assert fake.ran == ["a"]
    assert found.failures == {"cannot open": 2}
    bad, gone, _ = found.models
    assert bad.model == "x.pt"
    assert bad.outcome.failure == Failure("cannot open", "unknown key", 2, "open")
    assert gone.outcome.failure is not None
    assert gone.outcome.failure.message == "there is no file gone.pt"
    lines = Path("out/results.jsonl").read_text().count("\n")
    run(*models, entry("a"))
    assert Path("out/results.jsonl").read_text().count("\n") == lines


def test_a_pass_or_a_target_that_is_none_is_told_before_anything_runs(fake: Fake) -> None:
    wrong = [
        entry("p", work=Work(passes=("split-gruoped-conv",))),
        entry("t", work=Work(target="plino")),
        entry("f", work=Work(target="mine.toml")),
    ]
    found = run(*wrong, entry("good"))
    assert fake.ran == ["good"]
    said = {each.name: each.outcome.failure for each in found.models}
    for name, text in (("p", "'split-grouped-conv'"), ("t", "'plinio'"), ("f", "mine.toml")):
        failure = said[name]
        assert failure is not None
        assert (failure.kind, failure.exit_code) == ("cannot open", 2)
        assert text in failure.message


def test_a_file_of_facts_that_changes_is_another_target(fake: Fake) -> None:
    facts = Path(targets.__file__).with_name("openvino.toml").read_text()
    Path("mine.toml").write_text(facts.replace('"openvino"', '"mine"'))
    model = entry("a", work=Work(target="mine.toml"))
    assert run(model).ok
    assert fake.ran == ["a"]
    run(model)
    assert fake.ran == []
    Path("mine.toml").write_text(facts.replace('"openvino"', '"mine"') + "# one more word\n")
    assert run(model).ok
    assert fake.ran == ["a"]


def test_shards_are_joined_by_the_same_command(fake: Fake) -> None:
    models = [entry(name) for name in "abcde"]
    for place in (1, 2, 3):
        run(*models, shard=(place, 3))
    assert len(list(Path("out").glob("results*.jsonl"))) == 3
    found = run(*models)
    assert (fake.ran, found.ok, len(found.kept)) == ([], True, 5)


def test_results_of_other_folders_count(fake: Fake) -> None:
    run_fleet(Fleet((entry("a"),)), Path("other"))
    found = run(entry("a"), entry("b"), joined=[Path("other")])
    assert (fake.ran, found.ok) == (["b"], True)
    with pytest.raises(FileError, match="neither a folder of results nor a file"):
        run(entry("a"), joined=[Path("nowhere")])


def test_what_was_cut_off_is_run_again(fake: Fake) -> None:
    run(entry("a"), entry("b"))
    path = Path("out/results.jsonl")
    path.write_bytes(path.read_bytes()[:-5])
    found = run(entry("a"), entry("b"))
    assert (fake.ran, found.ok) == (["b"], True)
    assert "1 line was cut off" in found.notes[0]


def test_an_end_on_the_way_leaves_the_rest_for_later(fake: Fake) -> None:
    fake.ends_after = 1
    models = [entry(name) for name in "abc"]
    found = run_fleet(Fleet(tuple(models)), Path("out"), stop=lambda: True)
    assert (found.interrupted, len(found.missing), found.ok) == (True, 2, False)
    fake.ends_after = 9
    assert run(*models).ok
    assert len(fake.ran) == 2


def test_checkpoints_of_one_network_go_together(fake: Fake) -> None:
    Path("nets.py").write_text("def f(): ...")
    reading = Reading(arch="nets.py:f")
    epochs = [entry(f"e{number}", reading=reading) for number in range(5)]
    other = entry("other", reading=replace(reading, key="ema"))
    run(*epochs, other, entry("alone"))
    # A part for each of two workers.
    assert sorted(fake.jobs) == [["alone"], ["e0", "e2", "e4"], ["e1", "e3"], ["other"]]


def test_options_that_make_no_sense() -> None:
    with pytest.raises(UsageError, match="workers=0"):
        run_fleet(Fleet(()), Path("out"), FleetOptions(workers=0))


def test_what_is_measured_runs_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runner, "cores", lambda: 5)
    plain, tuned = (Entry(name="a", model=tmp_path, work=Work(tune=tune)) for tune in (False, True))
    numbers = {
        (models, asked): runner._engine(FleetOptions(workers=asked), Fleet(models)).workers
        for models in ((plain,), (plain, tuned))
        for asked in (None, 3)
    }
    assert [*numbers.values()] == [5, 3, 1, 3]


NAMES = ["a", "a/b", "a%2Fb", "..", ".", "../x", "ü/é", "a\nb", "x" * 300, "x" * 301, "é" * 200]


def test_a_folder_for_every_name() -> None:
    made = [folder_name(name) for name in NAMES]
    assert len(set(made)) == len(NAMES)
    assert all("/" not in name and not name.startswith(".") for name in made)
    assert all(len(name.encode()) <= 255 for name in made)
    assert folder_name("ü é.pt") == "ü é.pt"


def test_code_counts_with_what_it_imports_from_beside_it(tmp_path: Path) -> None:
    for name, text in (("nets.py", "import parts"), ("parts.py", "x = 1"), ("else.py", "y = 1")):
        (tmp_path / name).write_text(text)
    made = Entry(name="a", model=tmp_path / "nets.py:f")

    def key() -> str:
        # As another run would: files that were just written are read again.
        digests_module._imported.cache_clear()
        return Digests(tmp_path / "d").key(made)

    first = key()
    (tmp_path / "else.py").write_text("y = 2")
    assert key() == first
    (tmp_path / "parts.py").write_text("x = 2")
    assert key() != first


def test_a_file_that_has_just_changed_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_text("one")
    os.utime(path, (1, 1))
    digests = Digests(tmp_path / "digests.json")
    first = digests.key(Entry(name="a", model=path))
    # Its ctime says that it did: it may change again within the same tick.
    digests.save()
    digests = Digests.open(tmp_path / "digests.json")
    path.write_text("two")
    os.utime(path, (1, 1))
    assert digests.key(Entry(name="a", model=path)) != first


def test_a_file_is_read_once_while_it_is_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests_module, "_SETTLED", -1)
    path = tmp_path / "a.pt"
    path.write_text("one")
    model = Entry(name="a", model=path)
    digests = Digests(tmp_path / "digests.json")
    first = digests.key(model)
    digests.save()
    monkeypatch.setattr(digests_module.hashlib, "file_digest", None)
    assert Digests.open(tmp_path / "digests.json").key(model) == first
    (tmp_path / "digests.json").write_text("{")
    with pytest.raises(TypeError):
        Digests.open(tmp_path / "digests.json").key(model)


def test_weights_beside_an_onnx_file_count(tmp_path: Path) -> None:
    from groupfx.deploy import read_onnx, write_onnx
    from tests.fleet.onnx_files import grouped

    made = grouped(tmp_path / "plain.onnx")
    path = write_onnx(read_onnx(made), tmp_path / "a.onnx", overwrite=True, external=True)[0]
    model = Entry(name="a", model=path)
    first = Digests(tmp_path / "d").key(model)
    (weights,) = tmp_path.glob("a.onnx.*.data")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert Digests(tmp_path / "d").key(model) != first
