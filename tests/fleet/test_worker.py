"""What is done to a model, in this process: the stages, their failures, and series."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

import groupfx
from groupfx.errors import FileError, MismatchError, MissingDependencyError, NotComparableError
from groupfx.fleet import Entry, Outcome, Reading, Work, worker
from groupfx.fleet.failures import Failure, Stage, failure_of
from groupfx.fleet.series import Opened
from groupfx.fleet.task import Task
from tests.fleet import stubs
from tests.fleet.onnx_files import grouped

STUBS = Path(stubs.__file__)


def done(
    folder: Path,
    model: str | Path,
    before: Opened | None = None,
    reading: dict[str, Any] | None = None,
    **work: Any,
) -> tuple[Outcome, Opened | None]:
    entry = Entry(
        name="m",
        model=Path(model),
        reading=Reading(**{"input_shape": (stubs.SHAPE,), **(reading or {})}),
        work=Work(**work),
    )
    task = Task(entry, "key", folder / "models" / "m")
    return worker.done(task, before, lambda stage: None, keep=True)


def test_a_model_is_rewritten_and_proved(tmp_path: Path) -> None:
    outcome, _ = done(tmp_path, f"{STUBS}:net", save=True)
    assert (outcome.ok, outcome.verified, outcome.validated) == (True, True, None)
    assert (outcome.sites, outcome.rewritten, outcome.skipped) == (1, 1, 0)
    assert [file.path for file in outcome.files] == ["models/m/model.groupfx.pt"]
    assert outcome.report is not None
    report = json.loads((tmp_path / outcome.report).read_text())
    assert report["sites"][0]["verdict"]["ok"]
    found = groupfx.load(tmp_path / outcome.files[0].path).model
    x = torch.randn(2, 6, 5, 7)
    assert torch.allclose(found(x), stubs.net()(x), atol=1e-6)


def test_a_site_is_counted_once_whichever_passes_looked_at_it(tmp_path: Path) -> None:
    outcome, _ = done(tmp_path, f"{STUBS}:learned")
    assert (outcome.sites, outcome.rewritten, outcome.skipped) == (1, 1, 0)


def test_an_onnx_file_is_split_and_compared(tmp_path: Path) -> None:
    path = grouped(tmp_path / "a.onnx")
    outcome, _ = done(tmp_path, path, reading={"input_shape": ()}, save=True)
    assert (outcome.rewritten, outcome.verified, outcome.validated) == (1, True, True)
    made = onnx.load(tmp_path / outcome.files[0].path)
    assert [node.op_type for node in made.graph.node].count("Conv") == 3


@pytest.mark.long
def test_an_export_is_written_and_validated(tmp_path: Path) -> None:
    outcome, _ = done(tmp_path, f"{STUBS}:net", export=True, target="plinio")
    assert (outcome.validated, [file.path for file in outcome.files]) == (
        True,
        ["models/m/model.onnx"],
    )
    outcome, _ = done(tmp_path / "other", f"{STUBS}:net", validate=True, verify=False)
    assert (outcome.validated, outcome.verified, outcome.files) == (True, False, ())


@pytest.mark.long
def test_a_tuned_file_says_how_fast_it_is(tmp_path: Path) -> None:
    outcome, _ = done(tmp_path, f"{STUBS}:net", tune=True, budget=2.0)
    assert outcome.failure is None
    assert outcome.summary is not None
    assert "onnxruntime" in outcome.summary
    path = grouped(tmp_path / "a.onnx")
    outcome, _ = done(tmp_path, path, reading={"input_shape": ()}, tune=True, budget=2.0)
    assert outcome.failure is None
    assert outcome.summary is not None


OPENING: dict[str, tuple[str, dict[str, Any], str, str | None]] = {
    "gone": ("gone.pt", {}, "there is no file", None),
    "no_such_factory": (f"{STUBS}:none", {}, "has no none", None),
    "exits": (f"{STUBS}:exits", {}, "raised SystemExit: 4", None),
    "package": (f"{STUBS}:no_package", {}, "a_package_that_is_not_here", "missing package"),
    "module": ("a_package_that_is_not_here:net", {}, "there is no module", "missing package"),
    "forward": (f"{STUBS}:odd", {}, "not today", None),
    "shape": (f"{STUBS}:net", {"input_shape": ("2,5,5,7",)}, "5", None),
    "no_shape": (f"{STUBS}:net", {"input_shape": ("2,x",)}, "is not a shape", None),
}


@pytest.mark.parametrize(("model", "reading", "said", "environment"), OPENING.values(), ids=OPENING)
def test_what_cannot_be_opened(
    tmp_path: Path, model: str, reading: dict[str, Any], said: str, environment: str | None
) -> None:
    outcome, _ = done(tmp_path, model, reading=reading)
    failure = outcome.failure
    assert failure is not None
    assert (failure.kind, failure.exit_code, failure.environment) == ("cannot open", 2, environment)
    assert said in failure.message


def test_an_onnx_file_that_is_damaged_cannot_be_opened(tmp_path: Path) -> None:
    path = grouped(tmp_path / "a.onnx")
    path.write_bytes(path.read_bytes()[:50])
    outcome, _ = done(tmp_path, path, reading={"input_shape": ()})
    assert outcome.failure is not None
    assert outcome.failure.kind == "cannot open"


def test_a_wrong_rewrite_is_a_mismatch_with_its_report(tmp_path: Path) -> None:
    outcome, _ = done(tmp_path, f"{STUBS}:net", passes=["tests.cli.runs:SwappedGroups"])
    failure = outcome.failure
    assert failure is not None
    assert (failure.kind, failure.exit_code, failure.stage) == ("mismatch", 1, "rewrite")
    assert outcome.report is not None
    report = json.loads((tmp_path / outcome.report).read_text())
    assert not report["sites"][0]["verdict"]["ok"]


def test_a_site_that_is_named_and_is_not_there_is_not_rewritten(tmp_path: Path) -> None:
    outcome, _ = done(tmp_path, f"{STUBS}:net", passes=["split-grouped-conv:only=nothing"])
    assert outcome.failure is not None
    assert (outcome.failure.kind, outcome.failure.exit_code) == ("not rewritten", 1)


def test_a_file_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    place = tmp_path / "models" / "m" / "model.groupfx.pt"
    place.parent.mkdir(parents=True)
    place.write_text("mine")
    outcome, _ = done(tmp_path, f"{STUBS}:net", save=True)
    assert outcome.failure is not None
    assert place.read_text() == "mine"


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from groupfx.files import atomic

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    outcome, _ = done(tmp_path, f"{STUBS}:net", save=True)
    failure = outcome.failure
    assert failure is not None
    assert (failure.kind, failure.stage) == ("not rewritten", "write")
    assert failure.environment == "full disk"
    assert "No space left on device" in failure.message
    # What is known of the rewrite is not lost with the file.
    assert outcome.rewritten == 1


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


FAILURES: dict[str, tuple[BaseException, Stage, tuple[str, int, str | None]]] = {
    "mismatch": (MismatchError("x"), "validate", ("mismatch", 1, None)),
    "not_comparable": (NotComparableError("x"), "validate", ("not comparable", 4, None)),
    "memory": (MemoryError(), "rewrite", ("memory", 2, "out of memory")),
    "of_torch": (
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
        "rewrite",
        ("memory", 2, "out of memory"),
    ),
    "of_cpp": (RuntimeError("std::bad_alloc"), "export", ("memory", 2, "out of memory")),
    "quota": (OSError(errno.EDQUOT, "x"), "write", ("not rewritten", 2, "full disk")),
    "full": (
        caused(FileError("not written"), OSError(errno.ENOSPC, "x")),
        "write",
        ("not rewritten", 2, "full disk"),
    ),
    "extra": (
        MissingDependencyError("x"),
        "tune",
        ("not rewritten", 3, "missing package"),
    ),
    "bug": (KeyError("x"), "rewrite", ("crash", 70, None)),
    "other_file": (FileError("no permission"), "write", ("not rewritten", 2, None)),
}


@pytest.mark.parametrize(("error", "stage", "expected"), FAILURES.values(), ids=FAILURES)
def test_classes(error: BaseException, stage: Stage, expected: tuple[str, int, str | None]) -> None:
    found: Failure = failure_of(error, stage)
    assert (found.kind, found.exit_code, found.environment) == expected


def test_an_error_that_causes_itself() -> None:
    error = ValueError("x")
    error.__cause__ = error
    assert failure_of(error, "open").kind == "crash"


def checkpoint(folder: Path, name: str, change: Callable[[nn.Module], None]) -> Path:
    model = stubs.net()
    change(model)
    path = folder / name
    torch.save(model.state_dict(), path)
    return path


def doubled(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 2


def not_finite(model: nn.Module) -> None:
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)


def test_checkpoints_are_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[object] = []
    real = worker.open_source
    monkeypatch.setattr(worker, "open_source", lambda s: (opened.append(s), real(s))[1])
    arch = {"arch": f"{STUBS}:net"}
    paths = [
        checkpoint(tmp_path, "1.pt", lambda model: None),
        checkpoint(tmp_path, "2.pt", doubled),
    ]
    before: Opened | None = None
    for place, path in enumerate(paths):
        outcome, before = done(tmp_path / str(place), path, before, arch, save=True)
        assert outcome.failure is None
        assert (outcome.rewritten, outcome.verified) == (1, True)
    assert len(opened) == 1
    assert any("planned with m" in note for note in outcome.notes)
    # The weights are those of the second, in the form of the first.
    found = groupfx.load(tmp_path / "1" / outcome.files[0].path).model
    model = stubs.net()
    doubled(model)
    x = torch.randn(2, 6, 5, 7)
    assert torch.allclose(found(x), model(x), atol=1e-6)


def test_a_checkpoint_that_is_wrong_ends_no_series(tmp_path: Path) -> None:
    arch = {"arch": f"{STUBS}:net"}
    _, before = done(tmp_path, checkpoint(tmp_path, "1.pt", lambda model: None), None, arch)
    assert before is not None
    torch.save({"other": torch.ones(2)}, tmp_path / "2.pt")
    outcome, before = done(tmp_path, tmp_path / "2.pt", before, arch)
    assert outcome.failure is not None
    assert outcome.failure.kind == "cannot open"
    outcome, _ = done(tmp_path, checkpoint(tmp_path, "3.pt", doubled), before, arch)
    assert outcome.failure is None


def test_checkpoints_whose_plan_is_in_their_values_are_planned_each_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    real = worker.open_source
    monkeypatch.setattr(worker, "open_source", lambda s: (opened.append(s), real(s))[1])
    before: Opened | None = None
    for seed in (0, 1, 1):
        torch.manual_seed(seed)
        torch.save(stubs.learned().state_dict(), tmp_path / "net.pt")
        outcome, before = done(
            tmp_path,
            tmp_path / "net.pt",
            before,
            {"arch": f"{STUBS}:learned"},
            passes=["freeze-learned-groups"],
        )
        assert outcome.failure is None, outcome.failure
        assert outcome.verified
    assert len(opened) == 3
