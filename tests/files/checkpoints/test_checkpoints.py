"""Checkpoints of any network, read as data; files that want to do something must not."""

import contextlib
import importlib
import io
import os
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import groupfx
from groupfx.errors import FileError, UsageError
from groupfx.files.checkpoints import (
    checkpoint_files,
    epoch_in_name,
    first_other_shape,
    read_checkpoint,
    read_series,
)
from tests.files.attacks import Call, zipped_pickle

FOREIGN = "a_training_script_elsewhere"


SOURCE = """
import torch
from torch import nn

class Stranger(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 5, 2, bias=False), nn.BatchNorm2d(5))
        self.twisted = nn.Parameter(torch.randn(7, 2).t())
        self.tied = self.inner[0].weight
        self.register_buffer("seen", torch.tensor([True, False, True]))
        self.register_buffer("passing", torch.ones(2), persistent=False)
        self.register_buffer("coarse", torch.randn(3).bfloat16())
        self.empty = nn.Parameter(torch.empty(0, 4))
        self.options = {"list": [1, 2], ("a", 1): {"set"}}
"""


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[nn.Module]]:
    """A class of a module that a test may take away before it reads the file."""
    folder = tmp_path / "script"
    folder.mkdir()
    (folder / f"{FOREIGN}.py").write_text(SOURCE)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(folder)
        module = importlib.import_module(FOREIGN)
    yield module.Stranger
    sys.modules.pop(FOREIGN, None)


def wrapped(net: nn.Module) -> nn.Module:
    # nn.DataParallel itself asks for a GPU in some versions.
    parallel = nn.Module()
    parallel.module = net
    return parallel


FORMS: dict[str, tuple[Callable[[nn.Module], Any], str, int | None]] = {
    "module": (lambda net: net, "module", None),
    "net": (lambda net: {"net": net}, "module", None),
    "net-and-epoch": (lambda net: {"epoch": 4, "net": net, "loss": 0.25}, "module", 4),
    "parallel": (lambda net: {"net": wrapped(net)}, "module", None),
    "state-dict": (lambda net: net.state_dict(), "state_dict", None),
    "state-dict-parallel": (lambda net: wrapped(net).state_dict(), "state_dict", None),
    "training": (
        lambda net: {
            "state_dict": net.state_dict(),
            "optimizer_state_dict": torch.optim.SGD(net.parameters(), 0.1).state_dict(),
            "best_accuracy": 0.5,
            "last_epoch": 12,
        },
        "state_dict",
        12,
    ),
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before-1.6"])
@pytest.mark.parametrize(("make", "kind", "epoch"), FORMS.values(), ids=FORMS)
def test_a_checkpoint_is_read_without_its_class(
    foreign: type[nn.Module],
    tmp_path: Path,
    make: Callable[[nn.Module], Any],
    kind: str,
    epoch: int | None,
    legacy: bool,
) -> None:
    net = foreign()
    expected = {key: value.clone() for key, value in net.state_dict().items()}
    path = tmp_path / "net.pth"
    torch.save(make(net), path, _use_new_zipfile_serialization=not legacy)
    del sys.modules[FOREIGN]
    if kind == "module":
        with pytest.raises(ModuleNotFoundError):
            torch.load(path, weights_only=False)
    found = read_checkpoint(path)
    assert FOREIGN not in sys.modules
    assert (found.kind, found.epoch) == (kind, epoch)
    assert found.tensors.keys() == found.shapes.keys() == expected.keys()
    for key, value in expected.items():
        assert found.shapes[key] == tuple(value.shape)
        assert found.tensors[key].dtype == value.dtype
        assert torch.equal(found.tensors[key], value)


def test_the_class_is_named(foreign: type[nn.Module], tmp_path: Path) -> None:
    torch.save(foreign(), tmp_path / "net.pth")
    assert read_checkpoint(tmp_path / "net.pth").network == f"{FOREIGN}.Stranger"


def test_only_wanted_tensors_are_read(foreign: type[nn.Module], tmp_path: Path) -> None:
    torch.save(foreign(), tmp_path / "net.pth")
    found = read_checkpoint(tmp_path / "net.pth", wanted=lambda name: name.endswith("weight"))
    assert found.tensors.keys() == {"inner.0.weight", "inner.1.weight"}
    assert found.shapes["twisted"] == (2, 7)


def test_safetensors_come_in_natural_order(tmp_path: Path) -> None:
    tensors = {f"layers.{i}.weight": torch.randn(2, 3) for i in (2, 10, 1)}
    save_file(tensors, tmp_path / "net.safetensors")
    found = read_checkpoint(tmp_path / "net.safetensors")
    assert list(found.shapes) == [f"layers.{i}.weight" for i in (1, 2, 10)]
    assert all(torch.equal(found.tensors[key], value) for key, value in tensors.items())
    with pytest.raises(UsageError, match="has no keys"):
        read_checkpoint(tmp_path / "net.safetensors", key="net")


def test_tensors_of_a_gpu_as_torch_once_wrote_them(tmp_path: Path) -> None:
    net, path = nn.Linear(2, 3), tmp_path / "net.pth"
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False)
    written = path.read_bytes()
    path.write_bytes(written.replace(b"ctorch\nFloatStorage\n", b"ctorch.cuda\nFloatStorage\n"))
    assert path.read_bytes() != written
    assert torch.equal(read_checkpoint(path).tensors["weight"], net.weight)


# Hostile files


def text(value: Path) -> bytes:
    return f"V{value}\n".encode()


def by_reduce(target: Path) -> bytes:
    return pickle.dumps({"net": Call(os.mkdir, str(target))})


def by_exec(target: Path) -> bytes:
    return pickle.dumps([Call(exec, f"__import__('os').mkdir({str(target)!r})")])


def by_old_instance(target: Path) -> bytes:
    return b"(" + text(target) + b"ios\nmkdir\n."


def by_object(target: Path) -> bytes:
    return b"(cos\nmkdir\n" + text(target) + b"o."


def by_new_object(target: Path) -> bytes:
    # An argument of the new object is the result of a call.
    return b"\x80\x02cbuiltins\nlist\n(cos\nmkdir\n(" + text(target) + b"tRt\x81."


def by_state(target: Path) -> bytes:
    # The state of an unpickled object, computed by a call.
    state = b"(Vfile\ncos\nmkdir\n(" + text(target) + b"tRd"
    return b"\x80\x02ccollections\nOrderedDict\n)R" + state + b"b."


def by_tensor_rebuilder(target: Path) -> bytes:
    call = b"ctorch._tensor\n_rebuild_from_type_v2\n"
    return b"\x80\x02" + call + b"(cos\nmkdir\ncio\nStringIO\n(" + text(target) + b"tNtR."


def by_dotted_name(target: Path) -> bytes:
    return pickle.dumps(Call(Path.touch, target), protocol=4)


ATTACKS = (
    by_reduce,
    by_exec,
    by_old_instance,
    by_object,
    by_new_object,
    by_state,
    by_tensor_rebuilder,
    by_dotted_name,
)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_nothing_of_a_file_is_called(tmp_path: Path, attack: Callable[[Path], bytes]) -> None:
    # The attack works on one that trusts it, or this would test nothing.
    armed = tmp_path / "armed"
    with contextlib.suppress(TypeError, AttributeError, ValueError):
        pickle.loads(attack(armed))
    assert armed.exists()
    target = tmp_path / "target"
    for write in (zipped_pickle, legacy_file):
        assert read_checkpoint(write(tmp_path / "net.pth", EMPTY_MODULE)).tensors == {}
        with pytest.raises(FileError, match=r"holds no network|inconsistent"):
            read_checkpoint(write(tmp_path / "net.pth", attack(target)))
    assert not target.exists()


def legacy_file(path: Path, data: bytes) -> Path:
    system = {"protocol_version": 1001, "little_endian": True}
    before = [pickle.dumps(p, 2) for p in (torch.serialization.MAGIC_NUMBER, 1001, system)]
    path.write_bytes(b"".join([*before, data, pickle.dumps([], 2)]))
    return path


def test_an_attack_beside_a_network_is_not_called_and_the_network_is_read(tmp_path: Path) -> None:
    target = tmp_path / "target"
    net = nn.Linear(2, 3)
    torch.save({"net": net, "extra": Call(os.mkdir, str(target))}, tmp_path / "net.pth")
    found = read_checkpoint(tmp_path / "net.pth")
    assert not target.exists()
    assert torch.equal(found.tensors["weight"], net.weight)


def test_no_module_that_a_file_names_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    (tmp_path / "imported_by_attack.py").write_text(f"open({str(target)!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    data = b"\x80\x02cimported_by_attack\nThing\n)\x81."
    assert read_checkpoint(zipped_pickle(tmp_path / "net.pth", EMPTY_MODULE)).tensors == {}
    with pytest.raises(FileError, match="holds no network"):
        read_checkpoint(zipped_pickle(tmp_path / "net.pth", data))
    assert not target.exists()
    assert "imported_by_attack" not in sys.modules


def module_pickle(fields: bytes) -> bytes:
    return b"\x80\x02cnet\nNet\n)\x81}(" + fields + b"ub."


def tensor(size: bytes = b"K\x02", offset: bytes = b"K\x00", stride: bytes = b"K\x01") -> bytes:
    storage = b"(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nK\x02tQ"
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + offset
        + size
        + b"\x85"
        + stride
        + b"\x85"
        + hooks
        + b"tR"
    )


def module_with(value: bytes) -> bytes:
    return module_pickle(b"V_parameters\n}Vw\n" + value + b"sV_buffers\n}V_modules\n}")


EMPTY_MODULE = module_pickle(b"V_parameters\n}V_buffers\n}V_modules\n}")
GIANT = b"\x8a\x07\x00\x00\x00\x00\x00\x00\x40"
LIES = {
    "many-elements": (module_with(tensor(size=GIANT)), "w claims .* elements and has 2"),
    "expanded": (module_with(tensor(size=GIANT, stride=b"K\x00")), "w claims .* and has 2"),
    "outside": (module_with(tensor(offset=b"K\x01")), "w claims 2 elements and has 2"),
    "negative": (module_with(tensor(offset=b"J\xff\xff\xff\xff")), "is no number"),
    "no-storage": (
        module_with(b"ctorch._utils\n_rebuild_tensor_v2\n(NK\x00(K\x02t(K\x01ttR"),
        "has no storage",
    ),
    "memo": (b"\x80\x02Nr\xff\xff\xff\x7fh\x00.", "inconsistent"),
    "mark": (b"\x80\x02(.", "inconsistent"),
    "empty-stack": (b"\x80\x02R.", "inconsistent"),
    "frame": (b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7fN.", "cannot be read|no network"),
    "unfinished": (b"\x80\x02}", "damaged"),
}


@pytest.mark.parametrize(("data", "words"), LIES.values(), ids=LIES)
def test_a_file_that_claims_more_than_it_has_is_refused(
    tmp_path: Path, data: bytes, words: str
) -> None:
    storage = {"data/0": bytes(8)}
    path = zipped_pickle(tmp_path / "net.pth", module_with(tensor()), **storage)
    assert read_checkpoint(path).tensors["w"].tolist() == [0, 0]
    zipped_pickle(path, data, **storage)
    with pytest.raises(FileError, match=words):
        read_checkpoint(path)


def test_what_is_nested_or_shared_without_end_takes_no_time(tmp_path: Path) -> None:
    empty = b"V_parameters\n}V_buffers\n}V_modules\n"
    inner = b"cnet\nNet\n)\x81}(V_parameters\n}Vw\n" + tensor() + b"sV_buffers\n}V_modules\n}ub"
    # Each module holds the one before twice: as a tree it would have 2**60 leaves.
    shared = inner + b"q\x00"
    for level in range(60):
        twice = b"}(Va\nh%cVb\nh%cu" % (level, level)
        shared += b"0cnet\nNet\n)\x81}(" + empty + twice + b"ubq%c" % (level + 1)
    path = zipped_pickle(
        tmp_path / "shared.pth", b"\x80\x02" + shared + b".", **{"data/0": bytes(8)}
    )
    assert len(read_checkpoint(path).tensors) == 1
    cycle = b"\x80\x02cnet\nNet\n)\x81q\x00}(" + empty + b"}Va\nh\x00sub."
    assert read_checkpoint(zipped_pickle(tmp_path / "cycle.pth", cycle)).tensors == {}
    deep = inner
    for _ in range(5000):
        deep = b"cnet\nNet\n)\x81}(" + empty + b"}Va\n" + deep + b"sub"
    with pytest.raises(FileError, match="nested more than 200 deep"):
        read_checkpoint(zipped_pickle(tmp_path / "deep.pth", b"\x80\x02" + deep + b"."))
    # A key whose hash would take 2**60 steps.
    key = b"\x80\x02}Nq\x00" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60))
    with pytest.raises(FileError, match="holds no network"):
        read_checkpoint(zipped_pickle(tmp_path / "key.pth", b"\x80\x02}(" + key[3:] + b"Nu."))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before-1.6"])
def test_a_damaged_file_is_an_error_of_ours(
    foreign: type[nn.Module], tmp_path: Path, legacy: bool
) -> None:
    buffer = io.BytesIO()
    torch.save({"net": foreign()}, buffer, _use_new_zipfile_serialization=not legacy)
    whole = buffer.getvalue()
    path = tmp_path / "net.pth"
    path.write_bytes(whole)
    read_checkpoint(path)
    generator = torch.Generator().manual_seed(3)
    refused = 0
    places = torch.randint(len(whole), (80,), generator=generator).tolist()
    for number, place in enumerate(places):
        data = bytearray(whole)
        if number % 2:
            del data[place:]
        else:
            data[place] ^= 1 << number % 8
        path.write_bytes(data)
        try:
            read_checkpoint(path)
        except FileError:
            refused += 1
    assert refused >= 40


def archive(path: Path) -> None:
    groupfx.rewrite(nn.Sequential(nn.Conv2d(4, 4, 1, groups=2)), torch.randn(2, 4, 3, 3)).save(path)


OTHERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "there is no file"),
    "folder": (lambda path: path.mkdir(), "is a folder: name the file in it"),
    "empty": (lambda path: path.touch(), "is empty"),
    "text": (
        lambda path: path.write_text("epoch 4"),
        "text file .*, not a model that torch.save wrote",
    ),
    "ours": (archive, "is a file of groupfx, whose learned groups are frozen"),
    "script": (
        lambda path: torch.jit.save(torch.jit.script(nn.Linear(2, 3)), path),
        "is a TorchScript file",
    ),
    "pickle": (lambda p: p.write_bytes(pickle.dumps({"w": 1})), "that torch.save did not write"),
    "zip": (lambda p: zipfile.ZipFile(p, "w").writestr("a", "b"), "torch.save did not write"),
    "big-endian": (
        lambda p: zipped_pickle(p, module_with(tensor()), byteorder=b"big"),
        "big-endian",
    ),
}


@pytest.mark.parametrize(("make", "words"), OTHERS.values(), ids=OTHERS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_other_files_are_refused(
    tmp_path: Path, make: Callable[[Path], object], words: str
) -> None:
    path = tmp_path / "net.pt"
    torch.save(nn.Linear(2, 3), path)
    read_checkpoint(path)
    path.unlink()
    make(path)
    with pytest.raises(FileError, match=words):
        read_checkpoint(path)


def test_a_python_file_is_told_how_it_is_named(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text("class Net: ...")
    with pytest.raises(FileError, match=r"name what makes the model in it, such as .*net.py:Net$"):
        read_checkpoint(path)


# Series


@pytest.mark.parametrize(
    ("name", "epoch"),
    [
        ("net_epoch_12.pth", 12),
        ("mobilenetv2_epoch12_acc98.pth", 12),
        ("Epoch=7-step=900.ckpt", 7),
        ("ep003.pt", 3),
        ("checkpoint-40.safetensors", 40),
        ("ckpt_5.pth.tar", 5),
        ("best.pth", None),
    ],
)
def test_the_epoch_in_a_name(name: str, epoch: int | None) -> None:
    assert epoch_in_name(Path("folder_99") / name) == epoch


def test_the_checkpoints_of_a_folder_come_by_their_epochs(tmp_path: Path) -> None:
    for name in ("net_epoch_10.pth", "net_epoch_9.pth", "best.pth", "log_3.txt", ".net_1.pth"):
        (tmp_path / name).touch()
    (tmp_path / "net_epoch_9.groupfx.pt").touch()
    (tmp_path / "net_epoch_11.pth").mkdir()
    found, left = checkpoint_files(tmp_path)
    assert [path.name for path in found] == ["net_epoch_9.pth", "net_epoch_10.pth"]
    assert [path.name for path in left] == ["best.pth"]


def test_a_file_without_a_number_in_its_name_is_placed_by_the_epoch_that_it_keeps(
    tmp_path: Path,
) -> None:
    def save(name: str, *, features: int = 2, **extra: int) -> None:
        torch.save({"net": nn.Linear(features, 3), **extra}, tmp_path / name)

    save("net_epoch_9.pth")
    save("net_epoch_30.pth")
    save("between.pth", last_epoch=20)
    save("last.pth", epoch=31)
    save("same.pth", last_epoch=30)
    save("teacher.pth", last_epoch=25, features=5)
    save("none.pth")
    (tmp_path / "damaged.pth").write_bytes(b"no")
    found, left = checkpoint_files(tmp_path)
    names = ["net_epoch_9.pth", "between.pth", "net_epoch_30.pth", "last.pth"]
    assert [path.name for path in found] == names
    assert [path.stem for path in left] == ["damaged", "none", "same", "teacher"]
    series = read_series(found)
    assert series.epochs == (9, 20, 30, 31)
    assert checkpoint_files(tmp_path, key="other")[0] == (found[0], found[2])


def test_a_folder_without_numbers_or_without_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileError, match="has no checkpoints: no file in it ends in one of"):
        checkpoint_files(tmp_path)
    (tmp_path / "best.pth").touch()
    assert checkpoint_files(tmp_path) == ((tmp_path / "best.pth",), ())


def test_a_series_is_in_the_order_of_its_epochs(tmp_path: Path) -> None:
    contents = {"a.pth": {"last_epoch": 20}, "net_epoch_3.pth": {"epoch": 99}, "b.pth": {}}
    for name, extra in contents.items():
        torch.save({"net": nn.Linear(2, 3), **extra}, tmp_path / name)
    first, second, third = (tmp_path / name for name in contents)
    series = read_series([first, second])
    assert [checkpoint.path for checkpoint in series.checkpoints] == [second, first]
    assert (series.epochs, series.labels) == ((3, 20), ("epoch 3", "epoch 20"))
    series = read_series([first, third, second])
    assert (series.epochs, series.labels) == (None, ("a.pth", "b.pth", "net_epoch_3.pth"))


def test_the_first_weight_of_another_shape_is_named(tmp_path: Path) -> None:
    def stored(name: str, *sizes: int) -> Any:
        net = nn.Sequential(OrderedDict(one=nn.Linear(2, sizes[0]), head=nn.Linear(3, sizes[1])))
        torch.save(net, tmp_path / name)
        return read_checkpoint(tmp_path / name)

    mine, same, other = stored("a", 3, 4), stored("b", 3, 4), stored("c", 3, 5)
    assert first_other_shape(mine, same) is None
    words = "head.weight is [4, 3] in one and [5, 3] in the other"
    assert first_other_shape(mine, other) == words
