"""What `--json` writes, against the published schemas."""

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

import groupfx
from groupfx.cli.commands.bench import SCHEMA as BENCH_SCHEMA
from groupfx.cli.commands.check import SCHEMA as CHECK_SCHEMA
from groupfx.cli.commands.conformance import SCHEMA as CONFORMANCE_SCHEMA
from groupfx.cli.commands.export import SCHEMA as EXPORT_SCHEMA
from groupfx.cli.commands.groups import SCHEMA as GROUPS_SCHEMA
from groupfx.cli.commands.inspect import SCHEMA as INSPECT_SCHEMA
from groupfx.cli.commands.passes import SCHEMA as PASSES_SCHEMA
from groupfx.cli.commands.tune import SCHEMA as TUNE_SCHEMA
from groupfx.cli.text.onnx_text import SCHEMA as ONNX_SCHEMA
from groupfx.deploy.validate.verdict import SCHEMA as VALIDATION_SCHEMA
from groupfx.fleet.results import SCHEMA as FLEET_MODEL_SCHEMA
from groupfx.fleet.runner import SCHEMA as FLEET_SCHEMA
from groupfx.rewriting.report import SCHEMA as REPORT_SCHEMA
from groupfx.schema import NAMES, schema
from tests.cli.runs import SHAPE, Cli, check_json, grouped_model, save, strict


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, tmp_path, monkeypatch)


def test_json_of_a_rewrite(cli: Cli, tmp_path: Path) -> None:
    path = save(tmp_path / "net.pt", grouped_model())
    done = cli("rewrite", path, "--input-shape", SHAPE, "--json", "report.json")
    report = check_json(Path("report.json").read_text(), REPORT_SCHEMA)
    assert (report["ok"], report["verified"]) == (True, True)
    assert report["files"] == {
        "read": str(path),
        "kind": "module",
        "notes": [],
        "written": "net.groupfx.pt",
        "python": None,
    }
    assert [site["name"] for site in report["sites"]] == ["stem", "wide"]
    assert [site["name"] for site in report["skipped"]] == ["deep"]
    assert done.row("stem")[-1] == "identical"
    # On stdout it is the same, and alone.
    other = cli("rewrite", path, "--input-shape", SHAPE, "--json", "-")
    assert check_json(other.out, REPORT_SCHEMA) == report


def _unverified(report: dict[str, Any]) -> bool:
    counted = report["complexity"]["before"]["convs"] > 0
    return not report["verified"] and counted and report["model"] is None


@pytest.mark.parametrize(
    ("argv", "holds"),
    [
        (["--no-verify"], _unverified),
        (["--dry-run"], lambda report: report["files"]["written"] is None),
        (["--way", "modules"], lambda report: report["way"] == "modules"),
        (["--way", "export"], lambda report: report["way"] == "export"),
        (["-p", "split-grouped-conv:skip=*"], lambda report: not report["sites"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_json_of_other_rewrites(cli: Cli, tmp_path: Path, argv: list[str], holds: Any) -> None:
    path = save(tmp_path / "net.pt", grouped_model())
    done = cli("rewrite", path, "--input-shape", SHAPE, "--json", "-", *argv)
    assert done.code == 0, done.err
    assert holds(check_json(done.out, REPORT_SCHEMA))


def test_the_report_of_the_library_fits_the_schema_too() -> None:
    report = groupfx.rewrite(grouped_model(), torch.randn(2, 6, 9, 11)).report.to_dict()
    check_json(json.dumps(report), REPORT_SCHEMA)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every key in a document."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield (*path, key)
            yield from _paths(part, (*path, key))
    if isinstance(value, list) and value:
        yield from _paths(value[0], (*path, 0))


FREE = {"options", "history"}


def test_the_schema_notices_what_is_missing_or_of_another_type(cli: Cli, tmp_path: Path) -> None:
    path = save(tmp_path / "net.pt", grouped_model())
    done = cli("rewrite", path, "--input-shape", SHAPE, "--json", "-")
    right = check_json(done.out, REPORT_SCHEMA)
    checker = jsonschema.Draft202012Validator(strict(schema(REPORT_SCHEMA)))
    missed = []
    wrong_ones = 0
    for *parents, key in _paths(right):
        if FREE & set(parents) or (key in ("ok", "verified", "files") and not parents):
            continue
        for change in (_remove, _spoil):
            wrong = copy.deepcopy(right)
            holder = wrong
            for step in parents:
                holder = holder[step]
            change(holder, key)
            if checker.is_valid(wrong):
                missed.append((*parents, key, change.__name__))
            wrong_ones += 1
    assert missed == []
    assert wrong_ones > 100


def _remove(holder: dict[str, Any], key: str) -> None:
    # Under another name, so that a key that may be absent is noticed as well.
    holder[f"{key}_"] = holder.pop(key)


def _spoil(holder: dict[str, Any], key: str) -> None:
    holder[key] = [] if isinstance(holder[key], dict) else {"not": "what it was"}


def test_schemas_are_named_as_the_documents_are() -> None:
    torch_side = {REPORT_SCHEMA, INSPECT_SCHEMA, GROUPS_SCHEMA, PASSES_SCHEMA}
    onnx_side = {EXPORT_SCHEMA, TUNE_SCHEMA, VALIDATION_SCHEMA, ONNX_SCHEMA}
    others = {FLEET_SCHEMA, FLEET_MODEL_SCHEMA, BENCH_SCHEMA, CONFORMANCE_SCHEMA, CHECK_SCHEMA}
    assert set(NAMES) == {*torch_side, *onnx_side, *others}
    for name in NAMES:
        jsonschema.Draft202012Validator.check_schema(schema(name))
        assert schema(name)["properties"]["schema"] == {"const": name}
    with pytest.raises(KeyError, match="no schema"):
        schema("groupfx.report/0")


def test_json_to_a_pipe_or_a_device_is_not_replaced_by_a_file(cli: Cli, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert cli("passes", "--json", pipe).code == 0
        assert pipe.is_fifo()
        check_json(os.read(reader, 100_000).decode(), PASSES_SCHEMA)
    finally:
        os.close(reader)
