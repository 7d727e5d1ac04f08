"""The file of results: whole lines, on the disk, whatever happens to who writes them."""

import errno
import json
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from groupfx.errors import FileError
from groupfx.fleet import Failure, Limits, ModelResult, Outcome
from groupfx.fleet.results import SCHEMA, Journal, Written, read_results
from groupfx.schema import schema
from tests.cli.runs import strict

DONE = Outcome(
    sites=3,
    rewritten=2,
    skipped=1,
    verified=True,
    report="models/a/report.json",
    files=(Written(path="models/a/model.onnx", bytes=7),),
    notes=("a note",),
    seconds=1.5,
    peak_memory=9,
)
FAILED = Outcome(failure=Failure("memory", "too much", 2, "rewrite", "out of memory"))


def result(name: str, outcome: Outcome = DONE) -> ModelResult:
    limits = Limits(time=3.0, memory=None)
    return ModelResult(
        name=name, model=f"{name}.pt", key="k", finished="2026", limits=limits, outcome=outcome
    )


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    names = ["a", "ü\n", "b\udc80", "c"]
    written = [result(name, DONE if name != "c" else FAILED) for name in names]
    for part in (written[:2], written[2:]):
        with Journal.open(path) as journal:
            for each in part:
                journal.append(each)
    assert read_results(path) == (tuple(written), 0)
    assert path.read_bytes().count(b"\n") == 4


@pytest.mark.parametrize("outcome", [DONE, FAILED], ids=["done", "failed"])
def test_a_line_fits_its_schema(outcome: Outcome) -> None:
    line = json.loads(json.dumps(result("a", outcome).to_dict()))
    checker = jsonschema.Draft202012Validator(strict(schema(SCHEMA)))
    checker.validate(line)
    for key in line:
        wrong = {**line, f"{key}_": line[key]}
        del wrong[key]
        assert not checker.is_valid(wrong), key


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_that_was_cut_off_is_none_and_spoils_no_other(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "results.jsonl"
    with Journal.open(path) as journal:
        journal.append(result("a"))
        journal.append(result("b"))
    path.write_bytes(path.read_bytes()[:-cut])
    kept = 2 if cut == 1 else 1
    with Journal.open(path) as journal:
        journal.append(result("c"))
    found, lost = read_results(path)
    assert [each.name for each in found] == [*["a", "b"][:kept], "c"]
    assert lost == 2 - kept


WRONG = [b"[]", b"null", b"{}", b'{"schema": "groupfx.zoo-model/1"}', b"\xff\xfe", b"[" * 99_999]


@pytest.mark.parametrize("line", WRONG)
def test_a_line_of_something_else_is_none(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "results.jsonl"
    path.write_bytes(line + b"\n")
    assert read_results(path) == ((), 1)


def test_one_run_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    refused = pytest.raises(FileError, match="written by another run")
    with Journal.open(path), refused, Journal.open(path):
        pass
    with Journal.open(path) as journal:
        journal.append(result("a"))


def test_a_disk_that_is_full_is_told_and_leaves_whole_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.jsonl"
    real = os.write

    def write(file: int, data: bytes) -> int:
        if len(data) > 40:
            return real(file, data[:40])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Journal.open(path) as journal:
        journal.append(result("a"))
        whole = path.read_bytes()
        monkeypatch.setattr(os, "write", write)
        with pytest.raises(FileError, match=r"result of b was not written .*No space left"):
            journal.append(result("b"))
        monkeypatch.undo()
        assert path.read_bytes() == whole
        journal.append(result("c"))
    assert [each.name for each in read_results(path)[0]] == ["a", "c"]


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may be larger than 300 bytes, as with a quota."""
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, ignored)


def test_a_file_that_may_not_grow_is_told(tmp_path: Path, small_files: None) -> None:
    path = tmp_path / "results.jsonl"
    with Journal.open(path) as journal, pytest.raises(FileError, match="File too large"):
        journal.append(result("a"))
    assert path.read_bytes() == b""


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="choose another folder"), Journal.open(tmp_path):
        pass
