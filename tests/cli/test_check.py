"""`groupfx check`: the verdict, the passes that help, what is written, and exit codes for a CI."""

import json
from pathlib import Path
from xml.etree import ElementTree

import onnx
import pytest
import torch
from torch import Tensor, nn

import groupfx
from groupfx.nn import Flgc2d
from tests.cli.runs import SHAPE, Cli, check_json, contents, dense_model, grouped_model, save

SCHEMA = "groupfx.check/1"
# As facts are, for a tool that takes some numbers of groups, and no gather.
FACT = """
[[fact]]
topic = "{topic}"
{more}
verdict = "{verdict}"
text = "{text}"
source = "its author"
version = "1"
date = 2026-11-28
"""
HEAD = """
schema = "groupfx.target/1"
name = "mine"
title = "a tool of mine"
date = 2026-11-28
passes = ["freeze-learned-groups"]
"""


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, tmp_path, monkeypatch)


def facts(path: Path, *each: tuple[str, str, str, str]) -> Path:
    """A file of facts: topic, verdict, text and further keys of each."""
    texts = [FACT.format(topic=t, verdict=v, text=x, more=m) for t, v, x, m in each]
    path.write_text(HEAD + "".join(texts))
    return path


def test_a_model_that_is_acceptable(cli: Cli, tmp_path: Path) -> None:
    path = save(tmp_path / "net.pt", grouped_model())
    done = cli("check", path, "--input-shape", SHAPE, "--target", "openvino")
    assert done.code == 0
    assert "target: OpenVINO" in done.out
    assert done.row("stem") == ["stem", "Conv2d 6->15, kernel 3x3, groups 3", "ok"]
    assert "All of it is acceptable." in done.out


def test_what_is_refused_is_told_with_its_source_and_what_helps(cli: Cli, tmp_path: Path) -> None:
    path = save(tmp_path / "net.pt", grouped_model())
    before = contents(tmp_path)
    done = cli("check", path, "--input-shape", SHAPE, "--target", "finn")
    assert done.code == 1
    assert done.row("stem")[-1] == "refused"
    assert "2 of 4 are not acceptable:" in done.out
    assert "all else is an error: stem, wide" in done.out
    assert "[https://github.com/Xilinx/finn/issues/918" in done.out
    assert "Passes that would be run: -p widen-groups:only=stem,only=wide\n" in done.out
    assert "then all of it is acceptable (not proved: --fix proves it, and writes it)" in done.out
    assert contents(tmp_path) == before


def test_what_helps_is_run_and_proved_and_written(cli: Cli, tmp_path: Path) -> None:
    path = save(tmp_path / "net.pt", grouped_model())
    done = cli(
        *("check", path, "--input-shape", SHAPE, "--target", "finn", "--fix", "--json", "r.json")
    )
    assert done.code == 0, done.err
    made = groupfx.load("net.finn.pt").model
    convs = [m for m in made.modules() if isinstance(m, nn.Conv2d)]
    assert [conv.groups for conv in convs] == [1, 15, 1, 1]
    report = check_json(Path("r.json").read_text(), SCHEMA)
    assert (report["ok"], report["before"]["ok"], report["after"]["ok"]) == (False, False, True)
    assert report["files"]["written"] == ["net.finn.pt"]
    # What was written is acceptable by itself, and is not changed again.
    again = cli("check", "net.finn.pt", "--target", "finn", "--fix")
    assert again.code == 0
    assert "No model was written: nothing is to be done." in again.out


@pytest.mark.parametrize("ending", ["pt2", "onnx"])
def test_what_helps_is_written_as_other_files(cli: Cli, tmp_path: Path, ending: str) -> None:
    path = save(tmp_path / "net.pt", nn.Sequential(nn.Conv2d(6, 15, 3, groups=3)))
    argv = ("check", path, "--input-shape", SHAPE, "--target", "vitis-ai", "--fix")
    done = cli(*argv, "-o", f"out.{ending}")
    assert done.code == 0, done.err
    assert f"Wrote out.{ending}" in done.out
    if ending == "onnx":
        nodes = onnx.load("out.onnx").graph.node
        assert sum(node.op_type == "Conv" for node in nodes) == 3


def test_what_no_pass_helps_is_told_and_nothing_is_written(cli: Cli, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(6, 12, 3, groups=3), nn.ConvTranspose2d(12, 6, 2, groups=2))
    path = save(tmp_path / "net.pt", model)
    done = cli("check", path, "--input-shape", SHAPE, "--target", "finn", "--fix", "-o", "o.pt")
    assert done.code == 1
    assert "1: nothing helps: a transposed convolution is inferred with one group alone" in done.out
    assert "No model was written: it would not be acceptable." in done.out
    assert f"groupfx rewrite {path} -p 'widen-groups:only=0' writes it all the same." in done.out
    assert not Path("o.pt").exists()


def test_a_second_fix_is_tried_where_the_first_does_not_do(cli: Cli, tmp_path: Path) -> None:
    mine = facts(
        tmp_path / "mine.toml",
        (
            "groups",
            "refused",
            "no groups",
            'where = { kind = ["grouped"] }\nfix = ["split-grouped-conv", "widen-groups"]',
        ),
        ("slice", "refused", "no slices", ""),
    )
    path = save(tmp_path / "net.pt", nn.Sequential(nn.Conv2d(6, 15, 3, groups=3)))
    done = cli("check", path, "--input-shape", SHAPE, "--target", mine, "--json", "-")
    report = check_json(done.out, SCHEMA)
    assert report["passes"] == ["widen-groups"]
    assert report["after"]["ok"] is True
    assert report["left"] == []
    # One that the pass itself refuses is told with the pass's reason.
    path = save(tmp_path / "net.pt", nn.Sequential(nn.Conv2d(6, 15, 3, groups=3)))
    text = mine.read_text().replace(
        '"split-grouped-conv", "widen-groups"', '"widen-groups:groups=2"'
    )
    mine.write_text(text)
    done = cli("check", path, "--input-shape", SHAPE, "--target", mine)
    assert "0: its 3 groups do not become groups=2 equal ones" in done.out


def test_the_largest_branch(cli: Cli, tmp_path: Path) -> None:
    mine = facts(
        tmp_path / "mine.toml",
        ("groups", "accepted", "taken", ""),
        (
            "branch",
            "refused",
            "8 channels",
            'where = { channels_above = 8 }\nfix = ["split-grouped-conv:max_channels=8"]',
        ),
    )
    path = save(tmp_path / "net.pt", nn.Sequential(nn.Conv2d(12, 12, 1, groups=6)))
    argv = ("check", path, "--input-shape", "2,12,5,7", "--target", mine, "--json", "-")
    report = check_json(cli(*argv).out, SCHEMA)
    assert report["passes"] == ["split-grouped-conv:max_channels=8"]
    shown = [(site["what"], site["verdict"]) for site in report["after"]["sites"]]
    assert shown == [
        ("Conv2d 8->8, kernel 1x1, groups 4", "accepted"),
        ("Conv2d 4->4, kernel 1x1, groups 2", "accepted"),
    ]


class Shuffled(nn.Module):
    """A channel shuffle between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(6, 12, 1), nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x.view(2, 3, 4, 9, 11).transpose(1, 2).reshape(2, 12, 9, 11))


def test_a_shuffle_is_folded_where_no_reshape_is_taken(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "shuffled.py"
    file.write_text("from tests.cli.test_check import Shuffled\n")
    argv = ("check", f"{file}:Shuffled", "--input-shape", SHAPE, "--target", "finn")
    report = check_json(cli(*argv, "--json", "-").out, SCHEMA)
    (view,) = report["before"]["operations"]
    assert (view["name"], view["verdict"]) == (".view", "refused")
    assert report["passes"] == ["fold-permutations"]
    assert report["after"]["operations"] == []
    assert cli(*argv, "--fix", "-o", "folded.pt").code == 0


def test_what_nobody_knows_has_a_code_of_its_own(cli: Cli, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv1d(6, 9, 3))
    path = save(tmp_path / "net.pt", model)
    argv = ("check", path, "--input-shape", "2,6,9", "--target", "vitis-ai")
    done = cli(*argv, "--junit", "j.xml")
    assert done.code == 4
    assert "of 1 nobody knows" in done.out
    suite = ElementTree.parse("j.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("1", "0", "1")


def test_junit_has_a_case_for_each_site(cli: Cli, tmp_path: Path) -> None:
    path = save(tmp_path / "net.pt", grouped_model())
    argv = ("check", path, "--input-shape", SHAPE, "--target", "finn")
    assert cli(*argv, "--junit", "j.xml", "-q").out == ""
    suite = ElementTree.parse("j.xml").getroot()[0]
    assert suite.get("name") == "groupfx check --target finn"
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("4", "2", "0")
    stem, deep = suite[0], suite[1]
    assert (stem.get("classname"), stem.get("name")) == ("groupfx.check.finn", "stem")
    failure = stem.find("failure")
    assert failure is not None
    assert (failure.get("message") or "").startswith("refused: LowerConvsToMatMul")
    assert "issues/918" in (failure.get("message") or "")
    assert len(deep) == 0
    # With --fix the cases are those of what was made.
    assert cli(*argv, "--fix", "-o", "o.pt", "--junit", "j.xml").code == 0
    assert ElementTree.parse("j.xml").getroot()[0].get("failures") == "0"


def test_names_that_xml_cannot_hold(cli: Cli, tmp_path: Path) -> None:
    path = grouped_onnx(tmp_path / "net.onnx", "a\x07<&")
    done = cli("check", path, "--target", "finn", "--junit", "-")
    suite = ElementTree.fromstring(done.out.encode())[0]
    assert suite[0].get("name") == "a\\x07<&"


def test_a_method_of_a_target(cli: Cli, tmp_path: Path) -> None:
    path = save(tmp_path / "net.pt", nn.Sequential(nn.Conv2d(6, 6, 3, groups=6)))
    argv = ("check", path, "--input-shape", SHAPE, "--target", "hls4ml")
    both = cli(*argv)
    assert both.code == 1
    assert both.row("0") == ["0", "Conv2d 6->6, kernel 3x3, groups 6", "refused", "ok"]
    assert cli(*argv, "--method", "qonnx").code == 0
    wrong = cli(*argv, "--method", "keras")
    assert wrong.code == 2
    assert "hls4ml has no method 'keras': it has PyTorch, QONNX" in wrong.err


def test_plinio_judges_every_operation(cli: Cli, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(6, 15, 3, groups=3), nn.GELU())
    path = save(tmp_path / "net.pt", model)
    argv = ("check", path, "--input-shape", SHAPE, "--target", "plinio")
    done = cli(*argv, "--json", "-")
    report = check_json(done.out, SCHEMA)
    assert done.code == 1
    (site,) = report["before"]["sites"]
    assert site["methods"] == {
        "PIT": "refused",
        "MPS per layer": "wrong",
        "MPS per channel": "wrong",
        "SuperNet": "wrong",
    }
    assert [each["operation"] for each in report["after"]["obstacles"]] == ["nn.GELU"]
    assert "Passes that would be run: all 16 of --target plinio\n" in cli(*argv).out
    # SuperNet takes it once it is split.
    done = cli(*argv, "--method", "SuperNet", "--json", "-")
    report = check_json(done.out, SCHEMA)
    assert report["after"]["ok"] is True
    assert report["after"]["obstacles"] == []


def test_a_model_without_a_convolution(cli: Cli, tmp_path: Path) -> None:
    path = save(tmp_path / "net.pt", nn.Sequential(nn.Linear(6, 5)))
    done = cli("check", path, "--input-shape", "2,6", "--target", "finn", "--junit", "j.xml")
    assert done.code == 0
    assert "There is no convolution." in done.out
    assert ElementTree.parse("j.xml").getroot()[0].get("tests") == "0"


BAD = {
    "no target": ((), "name a target: --target executorch, finn"),
    "unknown target": (("--target", "fin"), "no target 'fin': did you mean 'finn'? choose one of"),
    "no file of facts": (("--target", "gone.toml"), "gone.toml cannot be read: No such file"),
    "broken file": (("--target", "broken.toml"), "broken.toml: fact 1: topic: it is missing"),
    "output without fix": (("--target", "finn", "-o", "x.pt"), "give --fix as well"),
    "ending": (("--target", "finn", "--fix", "-o", "x.h5"), "must end in .pt, .pt2 or .onnx"),
    "no folder": (("--target", "finn", "--fix", "-o", "no/x.pt"), "there is no folder no"),
    "no folder for junit": (("--target", "finn", "--junit", "no/j.xml"), "there is no folder no"),
    "somebody's file": (("--target", "finn", "--fix", "-o", "theirs.pt"), "did not write it"),
    "one file twice": (
        ("--target", "finn", "--junit", "r", "--json", "r"),
        "--json and --junit both name r",
    ),
    "the model": (("--target", "finn", "--fix", "-o", "net.pt"), "MODEL and -o both name net.pt"),
}


@pytest.mark.parametrize(("argv", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input(cli: Cli, tmp_path: Path, argv: tuple[str, ...], message: str) -> None:
    save(tmp_path / "net.pt", dense_model())
    (tmp_path / "broken.toml").write_text(HEAD.replace("mine", "broken", 1) + "[[fact]]")
    (tmp_path / "theirs.pt").write_text("not ours")
    before = contents(tmp_path)
    done = cli("check", "net.pt", "--input-shape", SHAPE, *argv)
    assert done.code == 2
    assert message in done.err
    assert contents(tmp_path) == before


def grouped_onnx(path: Path, name: str = "stem") -> Path:
    """An ONNX file with one grouped convolution, built by hand."""
    torch.manual_seed(2)
    weight = onnx.numpy_helper.from_array(torch.randn(9, 2, 3, 3).numpy(), "w")
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], name=name, group=3)
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("x", [1, 6, 5, 7]), ("y", [1, 9, 3, 5]))
    ]
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:], [weight])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


@pytest.mark.parametrize(
    ("target", "convs", "passes"),
    [("finn", [1], "widen-groups"), ("vitis-ai", [1, 1, 1], "split-grouped-conv")],
)
def test_onnx_files(cli: Cli, tmp_path: Path, target: str, convs: list[int], passes: str) -> None:
    path = grouped_onnx(tmp_path / "net.onnx")
    done = cli("check", path, "--target", target, "--json", "-")
    assert done.code == 1
    report = check_json(done.out, SCHEMA)
    assert (report["passes"], report["files"]["written"]) == ([passes], [])
    done = cli("check", path, "--target", target, "--fix")
    assert done.code == 0, done.out
    made = onnx.load(f"net.{target}.onnx").graph.node
    groups = [
        {a.name: a.i for a in node.attribute}.get("group", 1)
        for node in made
        if node.op_type == "Conv"
    ]
    assert groups == convs
    assert cli("check", f"net.{target}.onnx", "--target", target).code == 0


def test_a_quantised_file(cli: Cli, tmp_path: Path) -> None:
    path = grouped_onnx(tmp_path / "net.onnx")
    model = onnx.load(path)
    graph, (conv,) = model.graph, model.graph.node
    scale = onnx.numpy_helper.from_array(torch.full((9,), 0.02).numpy(), "scale")
    stored = torch.randint(-99, 99, (9, 2, 3, 3), dtype=torch.int8)
    del graph.initializer[:]
    graph.initializer.extend([onnx.numpy_helper.from_array(stored.numpy(), "stored"), scale])
    node = onnx.helper.make_node("DequantizeLinear", ["stored", "scale"], ["w"], axis=0)
    graph.node.insert(0, node)
    onnx.save(model, path)
    done = cli("check", path, "--target", "onnxruntime", "--json", "-")
    report = check_json(done.out, SCHEMA)
    (site,) = report["before"]["sites"]
    assert (site["layout"], site["verdict"]) == ("weight only", "slow")
    # Of a layout that no fact is about nothing is claimed.
    assert cli("check", path, "--target", "qnn").code == 4
    assert conv.op_type == "Conv"


def test_the_library_says_the_same(tmp_path: Path) -> None:
    x = torch.randn(2, 6, 9, 11)
    found = groupfx.check(grouped_model(), (x,), target="finn", fix=True)
    assert (found.ok, found.last.ok) == (False, True)
    assert isinstance(found.result, groupfx.Result)
    assert found.result.report.ok
    assert found.result.report.verified
    assert json.dumps([fact.to_dict() for fact in found.before.sites[0].facts])


class ByMode(nn.Module):
    """A trace would freeze the mode that its forward asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 9, 3, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * (2 if self.training else 1)


def test_a_model_that_is_no_single_graph() -> None:
    found = groupfx.check(ByMode(), (torch.randn(2, 6, 9, 11),), target="finn", fix=True)
    assert (found.ok, found.last.ok) == (False, True)
    assert any("only its convolutions were looked at" in note for note in found.notes)


def test_learned_groups_are_frozen_and_then_judged() -> None:
    torch.manual_seed(0)
    layers = (nn.Conv2d(6, 16, 1), Flgc2d(16, 24, 3, group_num=4), nn.Conv2d(24, 12, 1, groups=4))
    x = torch.randn(2, 6, 7, 9)
    found = groupfx.check(nn.Sequential(*layers), (x,), target="finn", fix=True)
    verdicts = {each.subject.name: each.verdict for each in found.before.sites}
    assert verdicts == {"0": "accepted", "1": "unknown", "2": "refused"}
    assert [p.spelled() for p in found.passes] == [
        "freeze-learned-groups:form=dense",
        "widen-groups:only=2",
    ]
    assert found.last.ok
    assert isinstance(found.result, groupfx.Result)
    assert [m.groups for m in found.result.model.modules() if isinstance(m, nn.Conv2d)] == [1] * 3
