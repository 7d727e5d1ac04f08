"""`export`, `validate`, and the other commands on ONNX files, as a user meets them."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import groupfx
from groupfx.cli.commands.export import SCHEMA as EXPORT_SCHEMA
from groupfx.cli.text.onnx_text import SCHEMA as ONNX_SCHEMA
from groupfx.deploy.validate.verdict import SCHEMA as VALIDATION_SCHEMA
from groupfx.rewriting.report import SCHEMA as REPORT_SCHEMA
from tests.cli.runs import SHAPE, Cli, check_json, contents, grouped_model, save


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its export, and copies of it with something wrong."""
    folder = tmp_path_factory.mktemp("onnx")
    model = grouped_model().eval()
    save(folder / "net.pt", model)
    sizes = [int(size) for size in SHAPE.split(",")]
    groupfx.export(model, (_zeros(sizes),), folder / "net.onnx")
    whole = (folder / "net.onnx").read_bytes()
    (folder / "truncated.onnx").write_bytes(whole[: len(whole) // 2])
    (folder / "picture.onnx").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    (folder / "empty.onnx").write_bytes(b"")
    _save(folder / "old.onnx", whole, _old)
    _save(folder / "custom.onnx", whole, _custom)
    _save(folder / "external.onnx", whole, _external)
    _save(folder / "wrong.onnx", whole, _wrong)
    _save(folder / "renamed.onnx", whole, _renamed)
    return folder


def _zeros(sizes: list[int]) -> object:
    import torch

    return torch.zeros(sizes)


def _save(path: Path, data: bytes, change: object) -> None:
    model = onnx.load_from_string(data)
    change(model)  # type: ignore[operator]
    path.write_bytes(model.SerializeToString())


def _old(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 7


def _custom(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Relu")
    node.domain, node.op_type = "my.company", "Odd"
    model.opset_import.append(onnx.helper.make_opsetid("my.company", 1))


def _external(model: onnx.ModelProto) -> None:
    held = model.graph.initializer[0]
    onnx.external_data_helper.set_external_data(held, "gone.data")
    held.ClearField("raw_data")


def _wrong(model: onnx.ModelProto) -> None:
    held = next(t for t in model.graph.initializer if t.name == "wide.weight")
    array = numpy_helper.to_array(held).copy()
    array[1] *= -1
    held.CopyFrom(numpy_helper.from_array(array, held.name))


def _renamed(model: onnx.ModelProto) -> None:
    extra = model.graph.output.add()
    extra.CopyFrom(model.graph.output[0])
    extra.name = "extra"
    name = model.graph.output[0].name
    model.graph.node.append(onnx.helper.make_node("Identity", [name], ["extra"]))


@pytest.fixture
def files(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_export_writes_a_validated_file(cli: Cli, files: Path) -> None:
    done = cli("export", "net.pt", "--input-shape", SHAPE, "-o", "out.onnx", "--json", "r.json")
    assert done.code == 0
    assert "Same function, to rounding." in done.out
    assert "Wrote out.onnx" in done.out
    assert done.row("stem")[1] == "one convolution, groups 3"
    assert "no change: nothing is expected to be faster than" in done.out
    assert done.err == ""
    report = check_json(Path("r.json").read_text(), EXPORT_SCHEMA)
    assert report["ok"]
    assert report["files"]["written"] == ["out.onnx"]
    assert report["export"]["inputs"][0]["shape"] == ["batch", 6, 9, 11]
    assert report["validation"]["ok"]
    onnx.checker.check_model("out.onnx", full_check=True)
    # It replaces what it wrote, and the file of nobody else.
    assert cli("export", "net.pt", "--input-shape", SHAPE, "-o", "out.onnx").code == 0


def test_export_has_a_usual_name_and_options(cli: Cli, files: Path) -> None:
    Path("net.onnx").unlink()
    options = ["--dtype", "float16", "--opset", "21", "--dynamic-sizes", "--input-name", "image"]
    more = ["--output-name", "map", "--external-data", "-p", "split-grouped-conv"]
    done = cli("export", "net.pt", "--input-shape", SHAPE, *options, *more)
    assert done.code == 0
    model = onnx.load("net.onnx", load_external_data=False)
    assert model.opset_import[0].version == 21
    assert [value.name for value in model.graph.input] == ["image"]
    assert [value.name for value in model.graph.output] == ["map"]
    assert list(Path().glob("net.onnx.*.data"))
    assert ["stem", "split into 3", "3"] in done.rows
    assert "compared in float16" in done.out


def test_rewrite_writes_an_onnx_file(cli: Cli, files: Path) -> None:
    done = cli("rewrite", "net.pt", "--input-shape", SHAPE, "-o", "split.onnx", "--json", "r.json")
    assert done.code == 0
    assert "Wrote split.onnx" in done.out
    check_json(Path("r.json").read_text(), REPORT_SCHEMA)
    convs = [n for n in onnx.load("split.onnx").graph.node if n.op_type == "Conv"]
    marks = [{p.key: p.value for p in node.metadata_props} for node in convs]
    assert [m["groupfx.group"] for m in marks if m["groupfx.site"] == "stem"] == ["0", "1", "2"]
    assert cli("validate", "net.pt", "split.onnx", "--input-shape", SHAPE).code == 0


def test_rewrite_of_an_onnx_file(cli: Cli, files: Path) -> None:
    done = cli("rewrite", "net.onnx", "--json", "r.json")
    assert done.code == 0
    assert "Same function, to rounding." in done.out
    report = check_json(Path("r.json").read_text(), ONNX_SCHEMA)
    assert report["files"]["written"] == ["net.groupfx.onnx"]
    assert {site["name"] for site in report["sites"]} == {"stem", "wide"}
    assert [site["name"] for site in report["skipped"]] == ["deep"]
    assert report["validation"]["ok"]
    again = cli("rewrite", "net.groupfx.onnx", "-o", "again.onnx")
    assert "Nothing to rewrite" in again.out


def test_rewrite_of_an_onnx_file_names_what_it_cannot(cli: Cli, files: Path) -> None:
    before = contents(files)
    named = cli("rewrite", "net.onnx", "-p", "split-grouped-conv:only=deep", "--dry-run")
    assert named.code == 1
    assert "deep cannot be rewritten: 2-d depthwise" in named.err
    assert contents(files) == before


def test_inspect_of_an_onnx_file(cli: Cli, files: Path) -> None:
    done = cli("inspect", "net.onnx", "--json", "i.json")
    assert done.code == 0
    assert done.row("stem")[1] == "grouped"
    assert "of which a rewrite would take 2" in done.out
    report = check_json(Path("i.json").read_text(), ONNX_SCHEMA)
    assert [site["reason"] is None for site in report["sites"]] == [True, False, True]


def test_validate_names_the_guilty_site(cli: Cli, files: Path) -> None:
    shape = ["--input-shape", SHAPE]
    assert cli("validate", "net.pt", "net.onnx", *shape).code == 0
    done = cli("validate", "net.pt", "wrong.onnx", *shape, "--json", "v.json", "-v")
    assert done.code == 1
    assert "NOT the same function." in done.out
    assert "first wrong site: wide" in done.out
    assert "wrong.onnx is not the same function: the site wide" in done.err
    report = check_json(Path("v.json").read_text(), VALIDATION_SCHEMA)
    assert not report["ok"]
    assert report["first_site"]["name"] == "wide"
    assert [site["name"] for site in report["sites"] if not site["ok"]] == ["wide"]
    # Two files of which neither is a torch model.
    assert cli("validate", "net.onnx", "net.onnx").code == 0
    assert cli("validate", "net.onnx", "wrong.onnx").code == 1


def test_validate_on_the_users_own_inputs(cli: Cli, files: Path) -> None:
    np.savez("data.npz", input=np.ones((4, 6, 9, 11), np.float32))
    done = cli(
        "validate", "net.pt", "net.onnx", "--input-shape", SHAPE, "--inputs", "data.npz",
        "--atol", "output:1e-3",
    )  # fmt: skip
    assert done.code == 0
    assert "data" in done.out
    row = next(row for row in done.rows if row and row[0] == "output" and "on" in row[1])
    assert row[-1] == "ok"


def test_a_failed_check_writes_nothing(
    cli: Cli, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import groupfx.deploy.export.onnx_graph as onnx_graph
    from groupfx.deploy.forms.splitting import split_conv

    def wrong(model: object, conv: object, *rest: object, **options: object) -> None:
        split_conv(model, conv, *rest, **options)  # type: ignore[arg-type]
        splits = [n for n in model.graph if n.op_type == "Split"]  # type: ignore[attr-defined]
        (node,) = [n for n in splits if n.metadata_props["groupfx.site"] == conv.name]  # type: ignore[attr-defined]
        first, second = node.outputs[:2]
        users = [next(iter(value.uses())).node for value in (first, second)]
        users[0].replace_input_with(0, second)
        users[1].replace_input_with(0, first)

    monkeypatch.setattr(onnx_graph, "split_conv", wrong)
    before = contents(files)
    done = cli("rewrite", "net.pt", "--input-shape", SHAPE, "-o", "out.onnx")
    assert done.code == 1
    assert "first wrong site: stem" in done.out
    assert "No file was written." in done.out
    assert contents(files) == before


ON_NET = ["export", "net.pt", "--input-shape", SHAPE]
VALIDATE = ["validate", "net.pt"]
BAD = {
    "truncated": (["inspect", "truncated.onnx"], ["truncated.onnx"]),
    "picture": (["rewrite", "picture.onnx"], ["picture.onnx", "PNG"]),
    "empty": (["inspect", "empty.onnx"], ["empty.onnx", "empty"]),
    "old": (["rewrite", "old.onnx"], ["opset", "7"]),
    "external": (["rewrite", "external.onnx"], ["gone.data"]),
    "missing": (["inspect", "nat.onnx"], ["no file nat.onnx", "did you mean net.onnx?"]),
    "custom": (
        [*VALIDATE, "custom.onnx", "--input-shape", SHAPE],
        ["my.company.Odd", "ONNX Runtime"],
    ),
    "outputs": (
        [*VALIDATE, "renamed.onnx", "--input-shape", SHAPE],
        ["1 outputs", "candidate 2"],
    ),
    "shape": ([*VALIDATE, "net.onnx", "--input-shape", "2,6,4,4"], ["[2, 6, 4, 4]"]),
    "atol": ([*VALIDATE, "net.onnx", "--atol", "1e-4"], ["names no output", "logits:1e-4"]),
    "atol_number": ([*VALIDATE, "net.onnx", "--atol", "y:much"], ["'much' is not a number"]),
    "atol_name": (
        [*VALIDATE, "net.onnx", "--input-shape", SHAPE, "--atol", "logit:1"],
        ["logit", "output"],
    ),
    "data": ([*VALIDATE, "net.onnx", "--inputs", "net.pt"], ["net.pt", ".npz"]),
    "suffix": ([*ON_NET, "-o", "out.pt"], ["must end in .onnx"]),
    "export_onnx": (["export", "net.onnx", "-o", "out.onnx"], ["ONNX file already"]),
    "onnx_to_pt": (["rewrite", "net.onnx", "-o", "out.pt"], ["end the name in .onnx"]),
    "onnx_pass": (
        ["rewrite", "net.onnx", "-p", "freeze-learned-groups"],
        ["freeze-learned-groups works on torch models"],
    ),
    "onnx_key": (["rewrite", "net.onnx", "--key", "ema"], ["--key is for files of torch's"]),
    "onnx_arch": (["inspect", "net.onnx", "--arch", "a:b"], ["--arch is for files of torch's"]),
    "opset": ([*ON_NET, "--opset", "9", "-o", "o.onnx"], ["opset 9", "from 11 to"]),
    "dtype": ([*ON_NET, "--dtype", "float64"], ["'float64'", "'float32'"]),
    "names": (
        [*ON_NET, "--output-name", "a", "--output-name", "b", "-o", "o.onnx"],
        ["2 output names", "has 1 output"],
    ),
    "not_ours": ([*ON_NET, "-o", "picture.onnx"], ["picture.onnx exists", "--force"]),
    "no_folder": ([*ON_NET, "-o", "no/o.onnx"], ["no folder no"]),
}


@pytest.mark.parametrize(("argv", "parts"), BAD.values(), ids=BAD)
def test_bad_input(cli: Cli, files: Path, argv: list[str], parts: list[str]) -> None:
    before = contents(files)
    done = cli(*argv)
    assert done.code == 2, done.err
    assert done.err.startswith("groupfx: error: ")
    for part in parts:
        assert part in done.err
    assert "Traceback" not in done.err
    assert contents(files) == before


def test_a_custom_operator_can_be_looked_at_and_split(cli: Cli, files: Path) -> None:
    assert cli("inspect", "custom.onnx").code == 0
    assert cli("rewrite", "custom.onnx", "--no-verify").code == 0
    names = [node.op_type for node in onnx.load("custom.groupfx.onnx").graph.node]
    assert "Odd" in names
    assert "Split" in names
