"""The command line: help, `rewrite`, what it prints and how it exits."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

import groupfx
from groupfx.cli.commands import rewrite as rewrite_command
from groupfx.cli.input import options
from groupfx.passes import PASSES
from groupfx.rewriting import Rewritten
from groupfx.rewriting.report import SCHEMA as REPORT_SCHEMA
from groupfx.targets import targets
from groupfx.tracing.program import WAYS
from tests.cli.runs import (
    SHAPE,
    Cli,
    Printing,
    blind_model,
    check_json,
    contents,
    dense_model,
    grouped_model,
    save,
)
from tests.models import zoo

ROOT = Path(__file__).resolve().parents[2]
MAIN = (sys.executable, "-m", "groupfx")
NOT_AT_START = {"matplotlib", "numpy", "onnx", "onnx_ir", "onnxruntime", "scipy", "torch"}


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, tmp_path, monkeypatch)


@pytest.fixture
def wrong_pass(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a pass in the catalogue that swaps groups."""
    monkeypatch.setitem(PASSES, "swapped-groups", "tests.cli.runs:SwappedGroups")  # type: ignore[arg-type]
    return "swapped-groups"


# The start: help, version, completion.


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["--version"],
        ["rewrite", "--help"],
        ["inspect", "--help"],
        ["passes", "--help"],
        ["rewrite", "there_is_no_such_file.pt"],
        ["rewrite", __file__, "-p", "splt-grouped-conv"],
        ["rewrte", "model.pt"],
    ],
    ids=lambda argv: " ".join(argv[:2]),
)
def test_it_starts_without_what_it_does_not_need(argv: list[str]) -> None:
    code = f"""
import sys
from groupfx.cli import main
try:
    main({argv!r})
finally:
    print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    loaded = done.stdout.splitlines()[-1].split()
    assert {"groupfx.cli", "typer"} <= {*loaded}, done.stderr
    assert not NOT_AT_START & {*loaded}
    # 315 at the most with Python 3.11, and half a second of an idle core; torch alone has 1,500.
    assert len(loaded) < 400


def test_a_rewrite_is_made_without_compiler_and_exporter(tmp_path: Path) -> None:
    """Which take longer to import than a small model takes."""
    save(tmp_path / "net.pt", grouped_model())
    argv = ["rewrite", "net.pt", "--input-shape", SHAPE]
    code = f"""
import sys
from groupfx.cli import main
try:
    main({argv!r})
finally:
    print(*sys.modules)
"""
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    loaded = {*done.stdout.splitlines()[-1].split()}
    assert "groupfx.verify.observable" in loaded, done.stderr
    assert not {"torch._dynamo", "onnx", "onnxscript", "onnxruntime"} & loaded


@pytest.mark.parametrize("command", ["rewrite", "inspect", "passes"])
def test_help_has_an_example_that_parses_and_fits(cli: Cli, command: str) -> None:
    done = cli(command, "--help")
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) <= 80
    example = done.out.partition("Example:\n")[2].split()
    assert example[:2] == ["groupfx", command]
    wanted = {word for word in example if word.startswith("-")}
    assert all(re.search(rf"(^|\W){option}\W", done.out) for option in wanted)


def test_help_names_the_commands(cli: Cli) -> None:
    done = cli("--help")
    assert [done.row(name)[0] for name in ("rewrite", "inspect", "passes")]
    assert cli("-h").out == done.out


def test_no_command_is_a_usage_error_that_shows_the_help(cli: Cli) -> None:
    done = cli()
    assert (done.code, done.out) == (2, "")
    assert done.err == cli("--help").out


def test_version(cli: Cli) -> None:
    assert cli("--version").out == f"groupfx {groupfx.__version__}\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("groupfx re", {"rewrite"}),
        ("groupfx rewrite -p s", {name for name in PASSES if name.startswith("s")}),
        ("groupfx rewrite --target ", {target.name for target in targets()}),
        ("groupfx passes ", set(PASSES)),
    ],
)
def test_shell_completion(words: str, expected: set[str]) -> None:
    steering = {
        "_GROUPFX_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    done = subprocess.run(MAIN, cwd=ROOT, env=os.environ | steering, capture_output=True, text=True)
    assert set(done.stdout.split()) == expected


def test_ways_are_those_of_tracing() -> None:
    assert get_args(options.Way) == ("auto", *WAYS)


# rewrite


def test_rewrite_writes_the_same_function(cli: Cli, tmp_path: Path) -> None:
    model = grouped_model()
    done = cli("rewrite", save(tmp_path / "net.pt", model), "--input-shape", SHAPE)
    assert done.code == 0, done.err
    split = groupfx.load("net.groupfx.pt").model
    assert [m.groups for m in split.modules() if isinstance(m, torch.nn.Conv2d)].count(
        1
    ) == 3 + 15 + 1
    x = torch.randn(3, 6, 7, 5, dtype=torch.float64)
    assert torch.equal(split.double().eval()(x), model.double().eval()(x))


def test_rewrite_prints_a_row_for_each_site(cli: Cli, tmp_path: Path) -> None:
    done = cli("rewrite", save(tmp_path / "net.pt", grouped_model()), "--input-shape", SHAPE)
    assert done.err == ""
    assert done.row("stem") == [
        "stem",
        "grouped",
        "Conv2d 6->15, kernel 3x3, groups 3",
        "3 x Conv2d 2->5, kernel 3x3 + BatchNorm",
        "3",
        "identical",
    ]
    assert done.row("wide")[1:2] + done.row("wide")[-2:] == [
        "depthwise-multiplier",
        "15",
        "identical",
    ]
    reason = "2-d depthwise is left alone; depthwise=split splits it"
    assert done.out.count(f"  1 depthwise: {reason}\n     deep\n") == 1


def test_sites_left_for_one_reason_are_told_once_and_named(cli: Cli, tmp_path: Path) -> None:
    layers = [torch.nn.Conv2d(6, 6, 3, padding=1, groups=6) for _ in range(17)]
    done = cli(
        "rewrite", save(tmp_path / "net.pt", torch.nn.Sequential(*layers)), "--input-shape", SHAPE
    )
    assert done.out.count("depthwise") == 3
    assert "17 depthwise: 2-d depthwise is left alone; depthwise=split splits it" in done.out
    assert f"     {', '.join(map(str, range(17)))}\n" in done.out


def test_a_narrow_table_shows_what_a_pass_says_and_changes_no_word_of_it(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("groupfx.cli.text.screen.Screen.width", 80)
    path = save(tmp_path / "net.pt", grouped_model())
    assert cli("rewrite", path, "--input-shape", SHAPE).row("stem")[3] == "3 x 2->5 + BN"
    name = "groupfx.passes.split_grouped_conv.Rewritten"
    said = "3 x Conv2d 2->5, kernel 3x3, BatchNorm"

    def made(**fields: Any) -> Rewritten:
        return Rewritten(**{**fields, "form": said, "brief": None})

    monkeypatch.setattr(name, made)
    assert said in cli("rewrite", path, "--input-shape", SHAPE, "--force").out


def test_rewrite_prints_the_totals(cli: Cli, tmp_path: Path) -> None:
    model = grouped_model()
    parameters = f"{sum(p.numel() for p in model.parameters()):,}"
    done = cli("rewrite", save(tmp_path / "net.pt", model), "--input-shape", SHAPE)
    assert done.row("convolutions") == ["convolutions", "4", str(3 + 1 + 15 + 1)]
    assert done.row("grouped") == ["grouped", "3", "1"]
    assert done.row("branches") == ["branches", "0", "18"]
    assert done.row("parameters") == ["parameters", parameters, parameters]
    # Positions x taps x inputs a group x outputs, by hand.
    macs = 99 * 9 * 2 * 15 + 63 * 9 * 15 + 63 * 30 + 63 * 30 * 7
    assert done.row("MACs, one sample")[1:] == [f"{macs / 1000:.3g}k"] * 2


def test_rewrite_says_how_it_opened_the_model_and_on_what(cli: Cli, tmp_path: Path) -> None:
    path = save(tmp_path / "net.pt", grouped_model())
    given = cli("rewrite", path, "--input-shape", SHAPE, "--dry-run").out.splitlines()
    assert given[0] == f"{path}: a pickled Sequential"
    assert given[1] == "opened: traced as one graph"
    assert given[2] == "input: float32 [2, 6, 9, 11], as given"
    swapped = cli("rewrite", path, "--input-shape", SHAPE, "--dry-run", "--way", "modules")
    assert swapped.out.splitlines()[1].startswith("opened: by its convolution modules")
    inferred = cli("inspect", path).out.splitlines()[2]
    guess = r"; (\d+x\d+) is a guess: give yours with --input-shape"
    told = r"input: float32 \[2, 6, \d+, \d+\], inferred from stem"
    assert re.fullmatch(told + guess, inferred)


def test_rewrite_without_a_shape_infers_one(cli: Cli, tmp_path: Path) -> None:
    path = save(tmp_path / "net.pt", torch.nn.Sequential(torch.nn.Conv1d(6, 15, 3, groups=3)))
    done = cli("rewrite", path)
    assert done.code == 0
    assert "inferred from 0" in done.out


def test_rewrite_says_that_the_check_passed(cli: Cli, tmp_path: Path) -> None:
    path = save(tmp_path / "net.pt", grouped_model())
    done = cli("rewrite", path, "--input-shape", SHAPE)
    assert "Same function, checked in float64:\n  sites: 2 bit-identical\n" in done.out
    assert re.search(r"end to end: bit-identical in \d runs?", done.out)
    unchecked = cli("rewrite", path, "--input-shape", SHAPE, "--no-verify")
    assert unchecked.row("stem")[-1] == "not checked"
    assert "Not checked (--no-verify)." in unchecked.out
    assert "identical" not in unchecked.out


def test_rewrite_marks_what_the_end_cannot_see(cli: Cli, tmp_path: Path) -> None:
    blind = cli("rewrite", save(tmp_path / "blind.pt", blind_model()), "--input-shape", SHAPE)
    assert blind.row("0")[-1] == "identical*"
    assert "* not observable end to end" in blind.out
    seen = cli("rewrite", save(tmp_path / "net.pt", grouped_model()), "--input-shape", SHAPE)
    assert "observable" not in seen.out


def test_nothing_to_rewrite_is_done(cli: Cli, tmp_path: Path) -> None:
    model = dense_model()
    done = cli("rewrite", save(tmp_path / "net.pt", model), "--input-shape", SHAPE)
    assert done.code == 0
    assert "Nothing to rewrite: there is no grouped convolution." in done.out
    x = torch.randn(2, 6, 5, 7)
    assert torch.equal(groupfx.load("net.groupfx.pt").model(x), model(x))


def test_a_second_run_finds_nothing(cli: Cli, tmp_path: Path) -> None:
    cli("rewrite", save(tmp_path / "net.pt", grouped_model()), "--input-shape", SHAPE)
    done = cli("rewrite", "net.groupfx.pt", "-o", "again.pt")
    assert done.code == 0
    assert "Nothing to rewrite." in done.out
    assert "input: float32 [2, 6, 9, 11], as in the file" in done.out
    assert "1 depthwise: 2-d depthwise is left alone" in done.out
    assert done.row("deep") == ["deep"]


def test_a_file_of_ours_is_replaced_and_another_is_not(cli: Cli, tmp_path: Path) -> None:
    path = save(tmp_path / "net.pt", grouped_model())
    for _ in range(2):
        assert cli("rewrite", path, "--input-shape", SHAPE).code == 0
    mine = tmp_path / "mine.pt"
    mine.write_bytes(b"mine")
    refused = cli("rewrite", path, "--input-shape", SHAPE, "-o", mine)
    assert (refused.code, mine.read_bytes()) == (2, b"mine")
    assert "--force" in refused.err
    assert cli("rewrite", path, "--input-shape", SHAPE, "-o", mine, "--force").code == 0
    assert groupfx.load(mine).report["way"] == "trace"


def test_dry_run_writes_nothing(cli: Cli, tmp_path: Path) -> None:
    path = save(tmp_path / "net.pt", grouped_model())
    before = contents(tmp_path)
    done = cli("rewrite", path, "--input-shape", SHAPE, "--dry-run")
    assert done.row("stem")[-1] == "identical"
    assert "Dry run: no model was written." in done.out
    assert contents(tmp_path) == before


def test_pass_options_reach_the_pass(cli: Cli, tmp_path: Path) -> None:
    path = save(tmp_path / "net.pt", grouped_model())
    options = "split-grouped-conv:depthwise=split,batchnorm=after,max_groups=14"
    done = cli("rewrite", path, "--input-shape", SHAPE, "-p", options, "--json", "-")
    (entry,) = check_json(done.out, REPORT_SCHEMA)["passes"]
    assert (entry["rewritten"], entry["skipped"]) == (1, 2)
    assert entry["options"]["batchnorm"] == "after"


def test_a_named_site_that_is_refused_is_an_answer_of_no(cli: Cli, tmp_path: Path) -> None:
    path = save(tmp_path / "net.pt", grouped_model())
    done = cli("rewrite", path, "--input-shape", SHAPE, "-p", "split-grouped-conv:only=deep")
    assert done.code == 1
    assert "deep cannot be rewritten: 2-d depthwise is left alone" in done.err
    assert not Path("net.groupfx.pt").exists()


def test_a_mismatch_is_shown_and_writes_no_model(cli: Cli, tmp_path: Path, wrong_pass: str) -> None:
    path = save(tmp_path / "net.pt", grouped_model())
    argv = ("rewrite", path, "--input-shape", SHAPE, "-p", wrong_pass, "--json", "report.json")
    done = cli(*argv)
    assert done.code == 1
    assert done.row("stem")[-1] == "MISMATCH"
    assert "NOT the same function" in done.out
    assert "Wrote" not in done.out
    assert done.out.endswith("\nNo model was written.\n")
    assert done.err.startswith("groupfx: error: stem does not compute what it did")
    assert set(contents(tmp_path)) == {"net.pt", "report.json"}
    report = check_json(Path("report.json").read_text(), REPORT_SCHEMA)
    assert (report["ok"], report["verified"]) == (False, True)
    assert report["files"]["written"] is None
    assert [site["verdict"]["ok"] for site in report["sites"]] == [False, False]


def test_a_model_that_cannot_be_copied_is_rewritten_all_the_same(cli: Cli, tmp_path: Path) -> None:
    Path("net.py").write_text(
        "import threading\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv = nn.Conv2d(6, 15, 3, groups=3)\n"
        "        self.lock = threading.Lock()\n"
        "    def forward(self, x):\n"
        "        return self.conv(x)\n"
    )
    torch.save(torch.nn.Conv2d(6, 15, 3, groups=3).state_dict(prefix="conv."), "weights.pt")
    done = cli("rewrite", "weights.pt", "--arch", "net.py:Net", "--input-shape", SHAPE)
    assert done.code == 0, done.err
    assert done.row("conv")[-1] == "identical"


def test_a_factory_in_the_current_folder_is_found(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in the console script, which does not look there by itself.
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", os.getcwd())])
    Path("here_net.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(6, 15, 3, groups=3))\n"
    )
    torch.save(torch.nn.Conv2d(6, 15, 3, groups=3).state_dict(prefix="0."), "weights.pt")
    done = cli("inspect", "weights.pt", "--arch", "here_net:make", "--input-shape", SHAPE)
    assert done.code == 0, done.err


def test_weights_of_a_shipped_example(cli: Cli) -> None:
    example = zoo.load_example("shufflenet_v1")
    torch.save(example.shufflenet_v1_g3().state_dict(), "weights.pt")
    arch = f"{ROOT / 'examples' / 'shufflenet_v1.py'}:shufflenet_v1_g3"
    done = cli("rewrite", "weights.pt", "--arch", arch, "--input-shape", "2,3,32,32", "--json", "r")
    assert done.code == 0, done.err
    report = check_json(Path("r").read_text(), REPORT_SCHEMA)
    assert len(report["sites"]) == 31
    assert {site["branches"] for site in report["sites"]} == {3}
    assert all(site["verdict"]["identical"] for site in report["sites"])
    assert len(report["skipped"]) == 16


# Messages


def test_quiet_prints_nothing(cli: Cli, tmp_path: Path) -> None:
    path = save(tmp_path / "net.pt", grouped_model())
    done = cli("rewrite", path, "--input-shape", SHAPE, "-q")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert Path("net.groupfx.pt").exists()
    assert cli("inspect", path, "-q").out == ""


def test_quiet_still_prints_errors(cli: Cli) -> None:
    assert cli("rewrite", "missing.pt", "-q").err.startswith("groupfx: error: there is no file")


@pytest.fixture
def talking(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[object, ...]:
    """Arguments for a model that prints and warns in its forward."""
    torch.save(Printing().state_dict(), "talking.pt")
    arch = ("--arch", "tests.cli.runs:Printing", "--input-shape", SHAPE, "--way", "modules")
    return ("rewrite", "talking.pt", *arch)


def test_what_a_model_prints_does_not_reach_stdout(cli: Cli, talking: tuple[object, ...]) -> None:
    done = cli(*talking, "--json", "-")
    check_json(done.out, REPORT_SCHEMA)
    assert "a word from the model" in done.err


def test_warnings_are_for_the_verbose(cli: Cli, talking: tuple[object, ...]) -> None:
    assert "a worry" not in cli(*talking).err
    assert "groupfx: warning: UserWarning: a worry of the model\n" in cli(*talking, "-v").err


def test_a_bug_is_called_one(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(rewrite_command, "rewrite", fail)
    path = save(tmp_path / "net.pt", grouped_model())
    done = cli("rewrite", path, "--input-shape", SHAPE)
    assert done.code == 70
    assert done.err.startswith("groupfx: error: ZeroDivisionError: by nothing\n")
    assert "bug of groupfx" in done.err
    assert "Traceback" not in done.err
    traced = cli("rewrite", path, "--input-shape", SHAPE, "--traceback")
    assert "Traceback (most recent call last)" in traced.err
    assert 'raise ZeroDivisionError("by nothing")' in traced.err


def test_an_error_shows_its_cause_only_with_traceback(cli: Cli) -> None:
    Path("net.pt").write_text("text")
    assert "Traceback" not in cli("rewrite", "net.pt").err
    assert "FileError: net.pt is a text file" in cli("rewrite", "net.pt", "--traceback").err


def test_an_interrupt_is_130_and_leaves_nothing(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    path = save(tmp_path / "net.pt", grouped_model())
    before = contents(tmp_path)
    monkeypatch.setattr("groupfx.rewriting.result.write", stop)
    done = cli("rewrite", path, "--input-shape", SHAPE, "--json", "report.json")
    assert (done.code, done.out, done.err) == (130, "", "groupfx: interrupted\n")
    assert contents(tmp_path) == before


# --emit-python


def test_python_is_written_and_runs(cli: Cli, tmp_path: Path) -> None:
    path = save(tmp_path / "net.pt", grouped_model())
    argv = ("rewrite", path, "--input-shape", SHAPE, "--emit-python", "net.py")
    done = cli(*argv, "--json", "report.json")
    assert done.code == 0, done.err
    assert "Wrote net.py: the model as Python." in done.out
    assert json.loads(Path("report.json").read_text())["files"]["python"] == "net.py"
    namespace: dict[str, Any] = {"__name__": "net"}
    exec(compile(Path("net.py").read_text(), "net.py", "exec"), namespace)
    again = namespace["rewrite"](grouped_model())
    split = groupfx.load("net.groupfx.pt").model
    original = torch.load(path, weights_only=False).state_dict()
    again.load_state_dict(namespace["to_branches"](original))
    x = torch.randn(2, 6, 7, 5)
    assert torch.equal(again.eval()(x), split.eval()(x))
    # What we wrote may be replaced; test_cli_bad_input has the file that may not.
    assert cli(*argv).code == 0


def test_python_on_stdout_is_alone_there(cli: Cli, tmp_path: Path) -> None:
    path = save(tmp_path / "net.pt", grouped_model())
    done = cli("rewrite", path, "--input-shape", SHAPE, "--emit-python", "-", "--dry-run")
    assert done.code == 0, done.err
    compile(done.out, "stdout", "exec")
    assert "def rewrite(model: nn.Module) -> nn.Module:" in done.out
    assert done.err == "Dry run: no model was written.\n"


def test_rewrite_writes_a_pt2_for_torch_export(cli: Cli, tmp_path: Path) -> None:
    path = save(tmp_path / "net.pt", grouped_model())
    done = cli("rewrite", path, "--input-shape", SHAPE, "-o", "out.pt2")
    assert done.code == 0
    assert 'Read it with torch.export.load("out.pt2").module()' in done.out
    assert torch.export.load(tmp_path / "out.pt2").graph is not None
