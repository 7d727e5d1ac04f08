"""Everything that may be wrong with what a user gives: a message with the remedy, and no file."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.cli.runs import SHAPE, Cli, Printing, contents, grouped_model, save

# One grouped convolution, made in as many ways as there are to get it wrong.
ARCH = '''
import threading
from torch import nn


class Net(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.conv = nn.Conv2d(width, 15, 3, groups=3)

    def forward(self, x):
        return self.conv(x)


class Locked(nn.Conv2d):
    """Cannot be copied, and lies where a rewrite has to copy it."""

    def __init__(self):
        super().__init__(6, 15, 3, groups=3)
        self.lock = threading.Lock()


def raises():
    raise RuntimeError("the data is not there")


def gives_a_number():
    return 7


def locked():
    return nn.Sequential(Locked())
'''


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, tmp_path, monkeypatch)


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One good model and everything that is not."""
    monkeypatch.chdir(tmp_path)
    good = save(Path("good.pt"), grouped_model()).read_bytes()
    Path("empty.pt").touch()
    Path("half.pt").write_bytes(good[: len(good) // 2])
    Path("text.pt").write_text("accuracy: 0.93\n")
    Path("folder.pt").mkdir()
    save(Path("foreign.pt"), Printing())
    weights = nn.Conv2d(6, 15, 3, groups=3).state_dict(prefix="conv.")
    torch.save(weights, "weights.pt")
    torch.save(weights | {"conv.scale": torch.ones(1)}, "more.pt")
    torch.save({"conv.weight": weights["conv.weight"]}, "fewer.pt")
    torch.save({"epoch": 3, "best": grouped_model(), "ema": grouped_model()}, "two.pt")
    torch.save(nn.Conv2d(6, 15, 3, groups=3).half(), "half_precision.pt")
    Path("arch.py").write_text(ARCH)


ON_GOOD = ["rewrite", "good.pt", "--input-shape", SHAPE]
ON_WEIGHTS = ["rewrite", "weights.pt", "--input-shape", SHAPE]

# Arguments, and what the message must hold: the thing, the number, and the remedy.
FILES = {
    "missing": (["rewrite", "goood.pt"], ["no file goood.pt", "did you mean good.pt?"]),
    "missing_folder": (["rewrite", "no/good.pt"], ["no file no/good.pt", "no folder no"]),
    "folder": (["rewrite", "folder.pt"], ["folder.pt is a folder"]),
    "empty": (["rewrite", "empty.pt"], ["empty.pt is empty", "save the model again"]),
    "truncated": (["rewrite", "half.pt"], ["half.pt", "truncated or damaged"]),
    "text": (["rewrite", "text.pt"], ["text.pt is a text file", "accuracy"]),
    "untrusted": (
        ["rewrite", "foreign.pt"],
        ["tests.cli.runs.Printing", "--trust-pickle", "--arch"],
    ),
    "several": (["rewrite", "two.pt"], ["several networks", "--key", "best, ema"]),
    "no_such_key": (["rewrite", "two.pt", "--key", "bast"], ["--key bast", "best, ema: did you"]),
    "inspect_missing": (["inspect", "goood.pt"], ["did you mean good.pt?"]),
    "inspect_untrusted": (
        ["inspect", "foreign.pt"],
        ["tests.cli.runs.Printing", "--trust-pickle"],
    ),
}
ARCHS = {
    "none": (ON_WEIGHTS, ["weights.pt", "--arch package.module:factory or file.py:factory"]),
    "raises": (
        [*ON_WEIGHTS, "--arch", "arch.py:raises"],
        ["raises() raised RuntimeError: the data is not there"],
    ),
    "no_module": ([*ON_WEIGHTS, "--arch", "arch.py:gives_a_number"], ["int, not a torch.nn"]),
    "no_factory": ([*ON_WEIGHTS, "--arch", "arch.py:net"], ["arch.py", "net", "Net"]),
    "no_file": ([*ON_WEIGHTS, "--arch", "arc.py:Net"], ["arc.py"]),
    "no_package": ([*ON_WEIGHTS, "--arch", "no_such_package:Net"], ["no_such_package"]),
    "no_form": ([*ON_WEIGHTS, "--arch", "Net"], ["package.module:factory or file.py:factory"]),
    "unexpected": (
        ["rewrite", "more.pt", "--arch", "arch.py:Net"],
        ["more.pt", "1 unexpected: conv.scale"],
    ),
    "missing": (
        ["rewrite", "fewer.pt", "--arch", "arch.py:Net"],
        ["fewer.pt", "1 missing: conv.bias"],
    ),
    "other_width": (
        [*ON_WEIGHTS, "--arch", "arch.py:Net", "--arch-args", '{"width": 9}'],
        ["conv.weight", "--arch"],
    ),
    "wrong_argument": (
        [*ON_WEIGHTS, "--arch", "arch.py:Net", "--arch-args", '{"widht": 6}'],
        ["widht=6", "unexpected keyword argument"],
    ),
    "arguments_no_json": (
        [*ON_WEIGHTS, "--arch", "arch.py:Net", "--arch-args", "width=6"],
        ["'width=6' is not JSON", '{"num_classes": 10}'],
    ),
    "arguments_a_list": (
        [*ON_WEIGHTS, "--arch", "arch.py:Net", "--arch-args", "[6]"],
        ["'[6]' is not a JSON object"],
    ),
    "arguments_alone": ([*ON_WEIGHTS, "--arch-args", "{}"], ["--arch-args", "give --arch"]),
    "for_a_whole_model": ([*ON_GOOD, "--arch", "arch.py:Net"], ["leave --arch out"]),
    "no_folder": (
        [*ON_WEIGHTS, "--arch", "x:y", "--python-path", "nowhere"],
        ["--python-path nowhere is not a folder"],
    ),
}
SHAPES = {
    "channels": (["rewrite", "good.pt", "--input-shape", "2,5,9,11"], ["[2, 5, 9, 11]", "shape"]),
    "inspect_channels": (["inspect", "good.pt", "--input-shape", "2,5,9,11"], ["[2, 5, 9, 11]"]),
    "dtype": (["rewrite", "good.pt", "--input-shape", "int64:2,6,9,11"], ["does not run on"]),
    "other_precision": (
        ["rewrite", "half_precision.pt", "--input-shape", "float32:2,6,9,11"],
        ["does not run on an input", "[2, 6, 9, 11]"],
    ),
    "number_of_inputs": ([*ON_GOOD, "--input-shape", "2,6"], ["do not fit Sequential.forward"]),
    "unknown_name": (["rewrite", "good.pt", "--input-shape", "y=2,6,9,11"], ["do not fit"]),
    "twice_a_name": ([*ON_GOOD[:2], *["--input-shape", "x=2,3"] * 2], ["names x twice"]),
    "x_for_comma": ([*ON_GOOD[:2], "--input-shape", "2x6x9x11"], ["'2x6x9x11'", "2,3,32,32"]),
    "nothing": ([*ON_GOOD[:2], "--input-shape", ""], ["'' is not a shape"]),
    "zero": ([*ON_GOOD[:2], "--input-shape", "2,0,9,11"], ["at least 1"]),
    "negative": ([*ON_GOOD[:2], "--input-shape", "2,-6,9"], ["'2,-6,9' is not a shape"]),
    "huge": ([*ON_GOOD[:2], "--input-shape", "2,6,90000,90000"], ["at most 268435456 elements"]),
    "no_dtype": (
        [*ON_GOOD[:2], "--input-shape", "double:2,6"],
        ["'double' is no dtype", "float64"],
    ),
}
NAMES = {
    "pass": ([*ON_GOOD, "-p", "splitgrouped-conv"], ["did you mean 'split-grouped-conv'?"]),
    "pass_option": (
        [*ON_GOOD, "-p", "split-grouped-conv:max_group=3"],
        ["no option 'max_group'", "max_groups"],
    ),
    "pass_value": (
        [*ON_GOOD, "-p", "split-grouped-conv:depthwise=yes"],
        ["depthwise='yes'", "auto, keep, split"],
    ),
    "pass_number": ([*ON_GOOD, "-p", "split-grouped-conv:max_groups=many"], ["'many' is not int"]),
    "pass_range": ([*ON_GOOD, "-p", "split-grouped-conv:max_groups=1"], ["at least 2 groups"]),
    "pass_syntax": ([*ON_GOOD, "-p", "split-grouped-conv:keep"], ["'keep' is not option=value"]),
    "target": ([*ON_GOOD, "--target", "plino"], ["did you mean 'plinio'?"]),
    "pass_and_target": (
        [*ON_GOOD, "--target", "plinio", "-p", "split-grouped-conv"],
        ["-p or --target, not both"],
    ),
    "way": ([*ON_GOOD, "--way", "tarce"], ["'tarce'", "'trace'", "groupfx rewrite --help"]),
    "command": (["rewirte", "good.pt"], ["Did you mean 'rewrite'?", "groupfx --help"]),
    "file_for_a_command": (["good.pt"], ["'groupfx rewrite good.pt'"]),
    "option": ([*ON_GOOD, "--dryrun"], ["No such option: --dryrun. Did you mean --dry-run"]),
    "argument": (["rewrite"], ["Missing argument 'MODEL'", "groupfx rewrite --help"]),
    "value": (["rewrite", "good.pt", "--json"], ["--json"]),
    "too_many": (["rewrite", "good.pt", "more.pt"], ["more.pt"]),
    "catalogue": (["passes", "split"], ["did you mean 'split-grouped-conv'?"]),
}
OUTPUTS = {
    "no_folder": ([*ON_GOOD, "-o", "no/out.pt"], ["no folder no", "make it first"]),
    "file_for_a_folder": ([*ON_GOOD, "-o", "text.pt/out.pt"], ["no folder text.pt"]),
    "a_folder": ([*ON_GOOD, "-o", "folder.pt"], ["folder.pt is a folder"]),
    "no_suffix": ([*ON_GOOD, "-o", "out"], ["-o out", "must end in .pt", "out.pt"]),
    "onnx_no_folder": ([*ON_GOOD, "-o", "no/out.onnx"], ["no folder no", "make it first"]),
    "not_ours": ([*ON_GOOD, "-o", "weights.pt"], ["groupfx did not write it", "--force"]),
    "the_model": ([*ON_GOOD, "-o", "good.pt"], ["MODEL and -o both name good.pt"]),
    "json_no_folder": ([*ON_GOOD, "--json", "no/r.json"], ["--json no/r.json", "no folder no"]),
    "json_the_model": ([*ON_GOOD, "--json", "good.pt"], ["MODEL and --json both name good.pt"]),
    "json_the_output": (
        [*ON_GOOD, "-o", "out.pt", "--json", "out.pt"],
        ["-o and --json both name out.pt"],
    ),
    "stdout_twice": ([*ON_GOOD, "--json", "-", "--emit-python", "-"], ["both name -"]),
    "python_not_ours": ([*ON_GOOD, "--emit-python", "arch.py"], ["did not write it", "--force"]),
    "inspect_json_the_model": (["inspect", "good.pt", "--json", "good.pt"], ["both name good.pt"]),
    "passes_json_no_folder": (["passes", "--json", "no/p.json"], ["no folder no"]),
}
CASES = {
    f"{title}-{name}": case
    for title, cases in {
        "file": FILES,
        "arch": ARCHS,
        "shape": SHAPES,
        "name": NAMES,
        "output": OUTPUTS,
    }.items()
    for name, case in cases.items()
}


@pytest.mark.parametrize(("argv", "parts"), CASES.values(), ids=CASES.keys())
def test_bad_input(cli: Cli, tmp_path: Path, argv: list[str], parts: list[str]) -> None:
    before = contents(tmp_path)
    done = cli(*argv)
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("groupfx: error: ")
    for part in parts:
        assert part in done.err
    assert "Traceback" not in done.err
    assert contents(tmp_path) == before


def test_the_good_input_is_good(cli: Cli) -> None:
    """Else the refusals above might have another reason."""
    assert cli(*ON_GOOD).code == 0
    assert cli(*ON_WEIGHTS, "--arch", "arch.py:Net", "--arch-args", '{"width": 6}').code == 0
    assert cli("rewrite", "two.pt", "--key", "ema", "--input-shape", SHAPE).code == 0
    assert cli("rewrite", "half_precision.pt", "--input-shape", SHAPE).code == 0


def test_a_trusted_pickle_is_read(cli: Cli) -> None:
    done = cli("rewrite", "foreign.pt", "--trust-pickle", "--input-shape", SHAPE)
    assert done.code == 0, done.err
    assert done.row("conv")[-1] == "identical"


def test_a_folder_without_permission(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., bool] = os.access

    def access(path: str | os.PathLike[str], mode: int) -> bool:
        return Path(path) != Path("folder.pt") and real(path, mode)

    # By hand, because a test that runs as root may write anywhere.
    monkeypatch.setattr(os, "access", access)
    for option in ("-o", "--json", "--emit-python"):
        done = cli(*ON_GOOD, option, "folder.pt/out.pt")
        assert done.code == 2
        assert f"{option} folder.pt/out.pt: no permission to write to folder.pt" in done.err
    assert cli(*ON_GOOD, "-o", "out.pt").code == 0


@pytest.mark.parametrize("way", ["auto", "trace", "modules", "export"])
def test_a_model_that_cannot_be_copied(cli: Cli, tmp_path: Path, way: str) -> None:
    torch.save(nn.Sequential(nn.Conv2d(6, 15, 3, groups=3)).state_dict(), "locked.pt")
    before = contents(tmp_path)
    argv = ["rewrite", "locked.pt", "--arch", "arch.py:locked", "--input-shape", SHAPE]
    done = cli(*argv, "--way", way)
    if done.code == 0:
        # The model is nobody else's, so it may be changed where it stands.
        assert done.row("0")[-1] == "identical"
        return
    assert done.code == 2
    assert "cannot be copied" in done.err
    assert contents(tmp_path) == before


@pytest.mark.parametrize("shape", ["ids=int64:2,16", "int64:2,16"])
def test_token_ids_fit_the_embedding(cli: Cli, shape: str) -> None:
    Path("words.py").write_text(
        "from torch import nn\n"
        "class Words(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.table = nn.Embedding(11, 6)\n"
        "        self.conv = nn.Conv1d(6, 15, 3, groups=3)\n"
        "    def forward(self, ids):\n"
        "        return self.conv(self.table(ids).transpose(1, 2))\n"
    )
    words = {
        **nn.Embedding(11, 6).state_dict(prefix="table."),
        **nn.Conv1d(6, 15, 3, groups=3).state_dict(prefix="conv."),
    }
    torch.save(words, "words.pt")
    done = cli("rewrite", "words.pt", "--arch", "words.py:Words", "--input-shape", shape)
    assert done.code == 0, done.err
    assert done.row("conv")[-1] == "identical"


LEAVING = """
import sys
from torch import nn

def made():
    sys.exit(0)

class Net(nn.Conv2d):
    def __init__(self):
        super().__init__(6, 15, 3, groups=3)

    def forward(self, x):
        sys.exit(0)
"""


@pytest.mark.parametrize("command", ["rewrite", "inspect", "export", "tune", "groups"])
def test_code_of_the_model_that_ends_the_program_is_an_error_of_it(cli: Cli, command: str) -> None:
    Path("leaving.py").write_text(LEAVING)
    done = cli(command, "leaving.py:made")
    assert (done.code, done.out) == (2, "")
    assert "leaving.py:made raised SystemExit: 0" in done.err
    if command != "groups":
        ran = cli(command, "leaving.py:Net", "--input-shape", SHAPE)
        assert (ran.code, ran.out) == (2, "")
        assert "Net raised SystemExit: 0" in ran.err
    assert not [path for path in contents(Path()) if path.endswith((".onnx", ".groupfx.pt"))]


def test_what_makes_a_model_is_taken_as_the_model(cli: Cli) -> None:
    Path("made.py").write_text(ARCH)
    done = cli("rewrite", "made.py:Net", "--input-shape", SHAPE)
    assert done.code == 0, done.err
    assert "made.py:Net: a Net, as it was made" in done.out
    assert Path("Net.groupfx.pt").is_file()
    named = ("inspect", "made:Net", "--arch-args", '{"width": 3}', "--input-shape", "2,3,9,11")
    assert "3->15" in cli(*named).out
    for wrong, told in (
        ("made.py:Nut", "did you mean Net?"),
        ("mode.py:Net", "did you mean made.py"),
    ):
        refused = cli("inspect", wrong)
        assert refused.code == 2
        assert told in refused.err
