"""Tools in processes of their own, as command lines, and how `groupfx conformance` shows them."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

import groupfx
import groupfx.cli.commands.conformance as command
from groupfx.errors import MissingDependencyError, ModelError, UsageError
from groupfx.testing import Adapter, Case, all_cases, conformance, outputs_by_name
from groupfx.testing.adapters import _FILES, adapter_for, adapter_names
from groupfx.testing.conformance.judging import judge
from tests.cli.runs import Cli, check_json

CASES = {case.name: case for case in all_cases()}
ONE = CASES["grouped/2d-bias"]

TOOL = """
import os, time
import numpy as np
from groupfx.testing import Adapter, all_cases
from groupfx.testing.adapters.onnx_runtime import run_onnx

def run(case):
    print("noise on stdout")
    if case.variant == "2d-no-bias":
        os.abort()
    if case.variant == "2d-pointwise":
        time.sleep(60)
    if case.variant == "2d-more-inputs":
        raise ValueError("no")
    return run_onnx(case, case.onnx.SerializeToString(), "off")

tool = Adapter("mine", run)
no_tool = 7
"""


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line, whose tools run in this process."""
    monkeypatch.setattr(command, "conformance", _here)
    return Cli(capsys, tmp_path, monkeypatch)


def _here(tool: str, cases: object, seconds: float, progress: object) -> object:
    adapter = command.adapter_for(tool)
    return conformance(adapter, cases, progress=progress)  # type: ignore[arg-type]


@pytest.mark.long
def test_a_tool_that_dies_or_hangs_costs_one_case(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(TOOL)
    names = ("2d-bias", "2d-no-bias", "2d-pointwise", "2d-more-inputs", "2d-even-kernel")
    chosen = [CASES[f"grouped/{name}"] for name in names]
    result = conformance(f"{tmp_path}/mine.py:tool", chosen, seconds=5)
    assert [each.verdict for each in result.judged] == ["pass", "crash", "time", "refused", "pass"]
    assert "SIGABRT" in result.judged[1].reason
    assert result.judged[2].reason == "no answer after 5 s"
    assert result.judged[3].reason == "ValueError: no"
    assert not result.ok


@pytest.mark.long
def test_a_tool_that_does_not_start_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "dead.py").write_text("import os\nprint('no licence')\nos._exit(3)\n")
    with pytest.raises(ModelError, match="cannot be started: exit code 3: no licence"):
        conformance(f"{tmp_path}/dead.py:tool", [ONE])
    with pytest.raises(MissingDependencyError, match="needs onnxslim"):
        conformance("onnxslim", [ONE])


def test_a_converter_is_a_command_line(tmp_path: Path) -> None:
    assert conformance(adapter_for("cp {model} {out}"), [ONE]).ok
    refused = conformance(adapter_for("sh -c 'echo not today >&2; exit 3' {model} {out}"), [ONE])
    assert refused.judged[0].reason == "Refused: exit code 3: not today"
    silent = conformance(adapter_for("true {model} {out}"), [ONE])
    assert silent.judged[0].verdict == "fail"
    assert silent.judged[0].reason == "it ended with 0, and wrote no file"
    rubbish = conformance(adapter_for("sh -c 'echo x > $1' sh {out} {model}"), [ONE])
    assert rubbish.judged[0].verdict == "fail"
    assert "cannot run what it wrote" in rubbish.judged[0].reason
    killed = conformance(adapter_for("sh -c 'kill -9 $$' {model} {out}"), [ONE])
    assert killed.judged[0].verdict == "crash"


def test_a_runtime_is_a_command_line(tmp_path: Path) -> None:
    script = tmp_path / "runtime.py"
    (answer,) = ONE.answers[0]
    np.savez(tmp_path / "right.npz", **{answer.name: answer.value.astype("float32")})
    script.write_text(
        "import shutil, sys, zipfile\n"
        "assert zipfile.ZipFile(sys.argv[2]).namelist() == ['x.npy']\n"
        f"shutil.copy({str(tmp_path / 'right.npz')!r}, sys.argv[3])\n"
    )
    tool = f"{sys.executable} -S {script} {{model}} {{inputs}} {{outputs}}"
    assert [j.verdict for j in conformance(adapter_for(tool), [ONE]).judged] == ["pass"]
    other = conformance(adapter_for(tool), [CASES["grouped/2d-more-inputs"]])
    assert other.judged[0].verdict == "fail"


BAD_TOOLS = {
    "unknown": ("nosuch", "there is no adapter 'nosuch'"),
    "no_outputs": ("tool {model} {inputs}", "a runtime reads"),
    "both": ("tool {model} {inputs} {outputs} {out}", "a runtime reads"),
    "quotes": ("tool 'x {model} {out}", "is no command line"),
    "no_module": ("nosuch.module:tool", "nosuch"),
    "no_adapter": ("groupfx.errors:GroupfxError", "is a type, not a groupfx.testing.Adapter"),
    "no_program": ("/no/such/tool {model} {out}", "cannot be run"),
}


@pytest.mark.parametrize(("tool", "message"), BAD_TOOLS.values(), ids=BAD_TOOLS.keys())
def test_a_tool_that_there_is_not_is_refused(tool: str, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        conformance(adapter_for(tool), [ONE])


def test_a_missing_package_is_named() -> None:
    missing = Adapter("mine", lambda case: [], ("no-such-package",))
    with pytest.raises(MissingDependencyError, match="pip install no-such-package"):
        conformance(missing, [ONE])


def test_every_file_has_the_adapters_that_the_table_says() -> None:
    for file, names in _FILES.items():
        if file not in ("torch_export",):
            assert [adapter_for(name).name for name in names] == [*names], file
    assert len({*adapter_names()}) == len(adapter_names())


def test_the_table_the_json_and_the_junit_file(cli: Cli) -> None:
    chosen = ("--case", "pad-before/*", "--json", "r.json", "--junit", "r.xml")
    done = cli("conformance", "onnxruntime", "onnxruntime-off", *chosen)
    assert done.code == 1
    assert done.rows[1] == ["kind", "cases", "pass", "fail", "worst error / bound"]
    assert done.rows[2][:4] == ["pad-before", "6", "5", "1"]
    assert "fail: pad-before/then-max-pool: " in done.out
    document = check_json(Path("r.json").read_text(), command.SCHEMA)
    assert [tool["ok"] for tool in document["tools"]] == [False, True]
    suite = ElementTree.parse("r.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("12", "1", "0")
    (failure,) = suite.iter("failure")
    assert "instead of" in (failure.get("message") or "")


def test_exit_codes(cli: Cli) -> None:
    dilated = ("--case", "auto-pad/*-same-upper-dilated")
    assert cli("conformance", "onnxruntime-off", "--kind", "residual").code == 0
    assert cli("conformance", "onnxruntime-off", *dilated).code == 4
    mixed = ("--case", "auto-pad/1d-same-upper*")
    assert cli("conformance", "onnxruntime-off", *mixed).code == 0
    assert cli("conformance", "onnxruntime-off", *mixed, "--strict").code == 1
    assert cli("conformance").code == 2
    for wrong in (("--kind", "x"), ("--case", "x"), ("--timeout", "0"), ("--json", "no/r.json")):
        assert cli("conformance", "onnxruntime", *wrong).code == 2


def test_a_tool_that_is_not_installed(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = Adapter("gone", lambda case: [], ("no-such-package",))
    tools = {"gone": missing, "onnxruntime-off": adapter_for("onnxruntime-off")}
    monkeypatch.setattr(command, "adapter_for", tools.__getitem__)
    monkeypatch.setattr(command, "adapter_names", lambda: tuple(tools))
    monkeypatch.setattr(command, "require_known", tools.__getitem__)
    assert cli("conformance", "gone").code == 3
    done = cli("conformance", "all", "--kind", "residual")
    assert done.code == 0
    assert "skipped: gone needs no-such-package, which is not installed" in done.err


def test_the_list_and_the_files(cli: Cli) -> None:
    done = cli("conformance", "--list", "--kind", "branches", "--save", "kit")
    assert done.code == 0
    assert done.row("onnxruntime")[1] == f"onnxruntime {onnxruntime.__version__}"
    assert done.row("branches") == ["branches", str(_count("branches"))]
    folder = Path("kit/branches/split-2")
    assert sorted(p.name for p in folder.iterdir()) == [
        "answers_0.npz",
        "inputs_0.npz",
        "model.onnx",
    ]
    with np.load(folder / "answers_0.npz") as found:
        (answer,) = CASES["branches/split-2"].answers[0]
        np.testing.assert_array_equal(found[answer.name], answer.value)
        np.testing.assert_array_equal(found[f"{answer.name}.bound"], answer.bound)
    assert cli("conformance", "--save", "kit/branches/split-2/model.onnx").code == 2


def _count(kind: str) -> int:
    return sum(case.kind == kind for case in CASES.values())


@pytest.mark.long
@pytest.mark.parametrize("tool", [name for name in adapter_names() if name.startswith("groupfx-")])
def test_our_own_passes_conform(tool: str) -> None:
    # A third of the cases for each: another third for another pass is no less of a test.
    names = sorted(name for name in CASES if "same-upper-dilated" not in name)
    chosen: list[Case] = [CASES[name] for name in names[adapter_names().index(tool) % 3 :: 3]]
    result = conformance(adapter_for(tool), chosen)
    assert [each for each in result.judged if each.verdict != "pass"] == []


@pytest.mark.parametrize("passes", ["split-grouped-conv:depthwise=split", "fold-permutations"])
def test_our_own_passes_keep_dilations_under_auto_pad(tmp_path: Path, passes: str) -> None:
    # ONNX Runtime refuses these, and the rewriter of onnxscript computes other pads.
    for rank in (1, 2, 3):
        case = CASES[f"auto-pad/{rank}d-same-upper-dilated"]
        source, out = tmp_path / f"{rank}.onnx", tmp_path / f"{rank}_out.onnx"
        source.write_bytes(case.onnx.SerializeToString())
        groupfx.rewrite_onnx(source, out, passes=[passes], verify=False)
        evaluator = ReferenceEvaluator(str(out))
        found = outputs_by_name(case, lambda feeds, run=evaluator.run: run(None, dict(feeds)))
        assert judge(case, found)[0] == "pass"
