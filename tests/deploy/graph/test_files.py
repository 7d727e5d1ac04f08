"""ONNX files: what is no such file is refused in one sentence, and a file is written whole."""

import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from groupfx.deploy.graph.files import check_onnx, proto_of, read_onnx, write_onnx
from groupfx.errors import FileError, InternalError, UsageError

Spoil = Callable[[Path, onnx.ModelProto], None]


def small_model(opset: int = 17) -> onnx.ModelProto:
    """A grouped convolution of 6 to 10 channels, groups 2, its weight of 1,080 bytes."""
    weight = np.arange(10 * 3 * 3 * 3, dtype=np.float32).reshape(10, 3, 3, 3)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "conv.weight"], ["y"], name="conv", group=2)],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 6, 7, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10, 5, 3])],
        [numpy_helper.from_array(weight, "conv.weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def save(proto: onnx.ModelProto, path: Path) -> None:
    path.write_bytes(proto.SerializeToString())


def save_external(proto: onnx.ModelProto, path: Path, **entries: str) -> None:
    """With the weight in `w.bin` beside it; `entries` replace what the file says of it."""
    tensor = proto.graph.initializer[0]
    (path.parent / "w.bin").write_bytes(tensor.raw_data)
    values = {"location": "w.bin", "offset": "0", "length": str(len(tensor.raw_data))} | entries
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in values.items():
        tensor.external_data.add(key=key, value=value)
    save(proto, path)


def test_a_good_file_is_read(tmp_path: Path) -> None:
    save(small_model(), tmp_path / "m.onnx")
    model = read_onnx(tmp_path / "m.onnx")
    assert [node.name for node in model.graph] == ["conv"]
    assert model.graph.opset_imports == {"": 17}


def test_an_unknown_operator_does_not_hinder_reading(tmp_path: Path) -> None:
    proto = small_model()
    proto.graph.node.append(helper.make_node("Strange", ["y"], ["z"], domain="com.example"))
    save(proto, tmp_path / "m.onnx")
    assert read_onnx(str(tmp_path / "m.onnx")).graph[-1].op_type == "Strange"


def test_the_long_name_of_the_default_domain_is_known(tmp_path: Path) -> None:
    proto = small_model()
    proto.opset_import[0].domain = "ai.onnx"
    save(proto, tmp_path / "m.onnx")
    assert read_onnx(tmp_path / "m.onnx").graph.opset_imports == {"": 17}


def test_nodes_out_of_order_are_sorted(tmp_path: Path) -> None:
    proto = small_model()
    proto.graph.node.insert(0, helper.make_node("Relu", ["y"], ["z"], name="relu"))
    save(proto, tmp_path / "m.onnx")
    assert [node.name for node in read_onnx(tmp_path / "m.onnx").graph] == ["conv", "relu"]


def _zip(path: Path, _: onnx.ModelProto) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data.pkl", b"")


def _node(op_type: str, inputs: list[str], outputs: list[str]) -> Spoil:
    def spoil(path: Path, proto: onnx.ModelProto) -> None:
        proto.graph.node.append(helper.make_node(op_type, inputs, outputs))
        save(proto, path)

    return spoil


def _twice(path: Path, proto: onnx.ModelProto) -> None:
    proto.graph.initializer.append(proto.graph.initializer[0])
    save(proto, path)


def _output(path: Path, proto: onnx.ModelProto) -> None:
    proto.graph.output[0].name = "nobody"
    save(proto, path)


def _short_tensor(path: Path, proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].raw_data = b"1234"
    save(proto, path)


def _short_list(path: Path, proto: onnx.ModelProto) -> None:
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.float_data.append(1.0)
    save(proto, path)


def _sparse(path: Path, proto: onnx.ModelProto) -> None:
    proto.graph.sparse_initializer.add().dims.append(2)
    save(proto, path)


def _cleared(field: str) -> Spoil:
    def spoil(path: Path, proto: onnx.ModelProto) -> None:
        (proto if hasattr(proto, field) else proto.graph).ClearField(field)
        save(proto, path)

    return spoil


def _opset(version: int) -> Spoil:
    return lambda path, _: save(small_model(version), path)


def _data(*, size: int | None = None, **entries: str) -> Spoil:
    def spoil(path: Path, proto: onnx.ModelProto) -> None:
        save_external(proto, path, **entries)
        if size is not None:
            os.truncate(path.parent / "w.bin", size)

    return spoil


def _missing_data(path: Path, proto: onnx.ModelProto) -> None:
    save_external(proto, path)
    (path.parent / "w.bin").unlink()


def _link_outside(path: Path, proto: onnx.ModelProto) -> None:
    save_external(proto, path)
    outside = path.parent.parent / f"{path.parent.name}-outside.bin"
    (path.parent / "w.bin").rename(outside)
    (path.parent / "w.bin").symlink_to(outside)


def _hard_link(path: Path, proto: onnx.ModelProto) -> None:
    save_external(proto, path)
    (path.parent / "w2.bin").hardlink_to(path.parent / "w.bin")


def _bytes(data: bytes) -> Spoil:
    return lambda path, _: path.write_bytes(data) and None


def _cut(share: float) -> Spoil:
    def spoil(path: Path, proto: onnx.ModelProto) -> None:
        data = proto.SerializeToString()
        path.write_bytes(data[: int(len(data) * share)])

    return spoil


BAD: dict[str, tuple[Spoil, str]] = {
    "missing": (lambda path, _: None, "there is no file"),
    "a folder": (lambda path, _: path.mkdir(), "is a folder: name the .onnx file in it"),
    "empty": (_bytes(b""), "is empty: 0 bytes"),
    "cut off": (_cut(0.6), r"is cut off: it has \d+ bytes and \d+ or more are missing"),
    "cut after the graph": (_cleared("opset_import"), "does not say which opset it uses"),
    "random": (_bytes(np.random.default_rng(7).bytes(3001)), "is not an ONNX file"),
    "zeros": (_bytes(bytes(64)), "is not an ONNX file"),
    "text": (_bytes(b"hello, this is no model\n" * 9), "is not an ONNX file"),
    "png": (_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99)), "it looks like a PNG image"),
    "zip": (_zip, "it looks like a zip archive, such as torch.save writes"),
    "pickle": (_bytes(b"\x80\x02}q\x00."), "it looks like a pickle"),
    "lfs": (_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "Git LFS pointer"),
    "tflite": (_bytes(b"\x1c\0\0\0TFL3" + bytes(64)), "TensorFlow Lite"),
    "no ir_version": (_cleared("ir_version"), "it has no ir_version"),
    "no graph": (_cleared("graph"), "it has no graph"),
    "no nodes": (_cleared("node"), "a graph of 0 nodes"),
    "no outputs": (_cleared("output"), "a graph of 0 outputs"),
    "old opset": (_opset(10), r"opset 10, which is too old \(the oldest is 11\): convert it with "),
    "unknown input": (_node("Relu", ["nobody"], ["z"]), "'Relu' reads 'nobody', made by no node"),
    "made twice": (_node("Relu", ["x"], ["y"]), "two of kind value are called 'y'"),
    "a circle": (_node("Relu", ["z"], ["z"]), "is damaged: "),
    "two initializers": (_twice, "two of kind initializer are called 'conv.weight'"),
    "unknown output": (_output, "no node makes the output 'nobody'"),
    "short tensor": (_short_tensor, "'conv.weight' takes 1,080 bytes and has 4"),
    "short list": (_short_list, "is damaged: 'conv.weight'"),
    "sparse": (_sparse, "1 sparse initializers, which are not supported"),
    "no data": (_missing_data, r"weights in w.bin, .* \(1 of 1 tensors are missing\)"),
    "short data": (_data(size=1000), "is too short: it has 1,000 bytes .* ends at 1,080"),
    "wrong length": (_data(length="1000"), "takes 1,080 bytes and has 1,000 in w.bin"),
    "negative offset": (_data(offset="-4"), r"is damaged: '\S+' has the offset '-4'"),
    "no number": (_data(offset="far"), r"is damaged: '\S+' has the offset 'far'"),
    "negative length": (_data(length="-1"), r"is damaged: '\S+' has the length '-1'"),
    "thousands of digits": (_data(length="9" * 5000), r"is damaged: '\S+' has the length '999"),
    "far behind the end": (_data(offset="9" * 19), "is too short"),
    "absolute": (_data(location="/etc/passwd"), "leads outside its folder"),
    "dots": (_data(location="../w.bin"), "'../w.bin', which leads outside its folder"),
    "dots inside": (_data(location="a/../../w.bin"), "leads outside its folder"),
    "backslashes": (_data(location="..\\w.bin"), "leads outside its folder"),
    "link outside": (_link_outside, "a link that leads outside its folder"),
    "hard link": (_hard_link, "has 2 hard links and is not read"),
}


@pytest.mark.parametrize(("spoil", "message"), BAD.values(), ids=BAD)
def test_a_bad_file_is_refused(tmp_path: Path, spoil: Spoil, message: str) -> None:
    path = tmp_path / "m.onnx"
    spoil(path, small_model())
    with pytest.raises(FileError, match=message) as caught:
        read_onnx(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_every_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    data = small_model().SerializeToString()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(FileError):
            read_onnx(path)


def test_noise_in_a_good_file_is_no_other_error(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    data = small_model().SerializeToString()
    generator = np.random.default_rng(11)
    refused = 0
    for _ in range(500):
        noisy = bytearray(data)
        # The weight fills most of the file: noise there would go unseen.
        noisy[generator.choice([*range(120), *range(1200, len(data))])] = generator.integers(256)
        path.write_bytes(noisy)
        try:
            proto_of(read_onnx(path))
        except FileError:
            refused += 1
    assert 50 < refused < 500


def test_external_data_is_read_from_any_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = small_model().graph.initializer[0].raw_data
    save_external(small_model(), tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    model = read_onnx("m.onnx")
    monkeypatch.chdir("/")
    assert proto_of(model).graph.initializer[0].raw_data == expected


def test_what_is_written_is_the_same_to_the_byte(tmp_path: Path) -> None:
    model = ir.from_proto(small_model())
    first = write_onnx(model, tmp_path / "a.onnx", overwrite=False)
    second = write_onnx(model, tmp_path / "b.onnx", overwrite=False)
    assert first == (tmp_path / "a.onnx",)
    assert first[0].read_bytes() == second[0].read_bytes()
    check_onnx(read_onnx(first[0]))


def test_external_data_is_written_beside_the_file(tmp_path: Path) -> None:
    proto = small_model()
    raw = proto.graph.initializer[0].raw_data
    bias = numpy_helper.from_array(np.arange(1009, dtype=np.float32), "more")
    proto.graph.initializer.append(bias)
    model = ir.from_proto(proto)
    path, data = write_onnx(model, tmp_path / "m.onnx", overwrite=False, external=True)
    assert re.fullmatch(r"m\.onnx\.[0-9a-f]{12}\.data", data.name)
    assert data.read_bytes() == raw.ljust(4096, b"\0") + bias.raw_data
    written = onnx.load(path, load_external_data=False)
    entries = [{e.key: e.value for e in t.external_data} for t in written.graph.initializer]
    assert entries == [
        {"location": data.name, "offset": "0", "length": "1080"},
        {"location": data.name, "offset": "4096", "length": "4036"},
    ]
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", data.name]
    # The model of the caller still holds its own numbers, and the files are read by anyone.
    assert proto_of(model).graph.initializer[0].raw_data == raw
    assert onnx.load(path).graph.initializer[0].raw_data == raw
    onnx.checker.check_model(str(path), full_check=True)


def test_a_file_can_replace_the_one_its_weights_are_read_from(tmp_path: Path) -> None:
    first = ir.from_proto(small_model())
    first.producer_name = "groupfx"
    path, data = write_onnx(first, tmp_path / "m.onnx", overwrite=False, external=True)
    model = read_onnx(path)
    value = model.graph.initializers["conv.weight"]
    other = model.clone()
    doubled = ir.Tensor(value.const_value.numpy() * 2, name="conv.weight")
    other.graph.initializers["conv.weight"].const_value = doubled
    # Written over the file that `model` has not read yet, from a model that holds none of it.
    value.const_value.numpy()
    write_onnx(other, path, overwrite=False, external=True)
    write_onnx(model, path, overwrite=False, external=True)
    write_onnx(model, path, overwrite=False, external=True)
    expected = small_model().graph.initializer[0].raw_data
    assert data.read_bytes() == expected
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", data.name]
    assert value.const_value.numpy().tobytes() == expected


def test_a_model_with_external_data_is_written_in_one_file(tmp_path: Path) -> None:
    save_external(small_model(), tmp_path / "m.onnx")
    (tmp_path / "other").mkdir()
    model = read_onnx(tmp_path / "m.onnx")
    (path,) = write_onnx(model, tmp_path / "other" / "m.onnx", overwrite=False)
    written, read = onnx.load(path, load_external_data=False).graph, model.graph
    assert written.initializer[0].raw_data == small_model().graph.initializer[0].raw_data
    assert [node.op_type for node in written.node] == [node.op_type for node in read]


def test_a_foreign_file_is_replaced_only_on_demand(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    save(small_model(), path)
    before = path.read_bytes()
    model = ir.from_proto(small_model())
    model.producer_name = "groupfx"
    with pytest.raises(FileError, match=r"m.onnx exists: choose another name, .* --force"):
        write_onnx(model, path, overwrite=False)
    assert path.read_bytes() == before
    write_onnx(model, path, overwrite=True)
    # Now it is ours, and may be replaced.
    write_onnx(model, path, overwrite=False)
    assert read_onnx(path).producer_name == "groupfx"


@pytest.mark.parametrize("name", ["best.onnx", "m.onnx.bak"])
@pytest.mark.parametrize("external", [True, False])
@pytest.mark.parametrize("data_name", [None, "m.onnx.data"], ids=["by-content", "by-name"])
def test_weights_that_another_file_has_too_stay(
    tmp_path: Path, name: str, external: bool, data_name: str | None
) -> None:
    first, second = (ir.from_proto(small_model()) for _ in range(2))
    first.producer_name = second.producer_name = "groupfx"
    value = second.graph.initializers["conv.weight"]
    value.const_value = ir.Tensor(value.const_value.numpy() * 2, name="conv.weight")
    path, data = write_onnx(first, tmp_path / "m.onnx", overwrite=False, external=True)
    if data_name is not None:
        # As versions before this one named them.
        proto = onnx.load(path, load_external_data=False)
        proto.graph.initializer[0].external_data[0].value = data_name
        path.write_bytes(proto.SerializeToString())
        data = data.rename(tmp_path / data_name)
    kept = tmp_path / name
    kept.write_bytes(path.read_bytes())
    (tmp_path / "empty.onnx").touch()
    write_onnx(second, path, overwrite=False, external=external)
    weight = onnx.load(kept).graph.initializer[0].raw_data
    assert weight == small_model().graph.initializer[0].raw_data
    kept.unlink()
    write_onnx(second, path, overwrite=False, external=external)
    assert data.exists() is (data_name is not None)


def test_a_foreign_data_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "m.onnx.data").write_bytes(b"mine")
    write_onnx(ir.from_proto(small_model()), tmp_path / "m.onnx", overwrite=False, external=True)
    assert len(os.listdir(tmp_path)) == 3
    assert (tmp_path / "m.onnx.data").read_bytes() == b"mine"


@pytest.mark.parametrize("external", [False, True])
def test_nothing_half_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, external: bool
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    model = ir.from_proto(small_model())
    with pytest.raises(FileError, match="No space left"):
        write_onnx(model, tmp_path / "m.onnx", overwrite=False, external=external)
    assert os.listdir(tmp_path) == []


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    model = ir.from_proto(small_model())
    with pytest.raises(FileError, match="is a folder: name a file in it"):
        write_onnx(model, tmp_path, overwrite=True)
    with pytest.raises(FileError, match="cannot be written"):
        write_onnx(model, tmp_path / "no" / "m.onnx", overwrite=True)


def test_a_large_model_gets_a_second_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("groupfx.deploy.graph.files._MOST_WEIGHT_BYTES", 1079)
    model = ir.from_proto(small_model())
    paths = write_onnx(model, tmp_path / "m.onnx", overwrite=False)
    assert [path.suffix for path in paths] == [".onnx", ".data"]
    check_onnx(model)
    monkeypatch.setattr("groupfx.deploy.graph.files._MOST_WEIGHT_BYTES", 1080)
    assert len(write_onnx(model, tmp_path / "n.onnx", overwrite=False)) == 1


def test_the_checker_speaks_with_the_error_that_is_asked_for() -> None:
    proto = small_model()
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 11
    with pytest.raises(InternalError, match=r"onnx.checker refuses the model: .*"):
        check_onnx(ir.from_proto(proto))
    with pytest.raises(UsageError, match=r"onnx.checker refuses") as caught:
        check_onnx(ir.from_proto(proto), UsageError)
    assert "\n" not in str(caught.value)
