"""Files that were made to harm: nothing in them runs, fills the memory or hangs.

An attack that runs code is shown to be real: read with trust, it does what it wants.
"""

import contextlib
import functools
import io
import os
import pickle
import random
import resource
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from groupfx.errors import FileError, GroupfxError, UsageError
from groupfx.files.archive import Archive, read, write
from groupfx.files.models import read_model

GIGABYTE = 2**30


class Call:
    """Unpickles to `function(*arguments)`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function = function
        self.arguments = arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def zipped(found: object, path: Path) -> None:
    torch.save(found, path)


def newest_protocol(found: object, path: Path) -> None:
    torch.save(found, path, pickle_protocol=5)


def old_format(found: object, path: Path) -> None:
    torch.save(found, path, _use_new_zipfile_serialization=False)


def plain_pickle(found: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(found))


def in_module(place: str) -> nn.Module:
    module = nn.Linear(2, 3)
    module.extra = Call(os.mkdir, place)
    return module


def graph_module(place: str) -> object:
    code = f"import os\nos.mkdir({place!r})\ndef forward(self, x):\n    return x\n"
    return Call(fx.graph_module.reduce_graph_module, {"_code": code}, "")


WRAPPED: dict[str, Callable[[str], object]] = {
    "bare": lambda place: Call(os.mkdir, place),
    "in_a_dict": lambda place: {"model": nn.Linear(2, 3), "extra": Call(os.mkdir, place)},
    "in_a_module": in_module,
    "in_a_state_dict": lambda place: nn.Linear(2, 3).state_dict() | {"x": Call(os.mkdir, place)},
    "graph_module": graph_module,
}
FORMATS = (zipped, newest_protocol, old_format, plain_pickle)


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("save", FORMATS, ids=lambda save: save.__name__)
@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED.keys())
def test_a_pickle_that_makes_a_folder_is_not_run(
    wrap: Callable[[str], object], save: Callable[[object, Path], None], tmp_path: Path
) -> None:
    place, path = tmp_path / "harm", tmp_path / "model.pt"
    save(wrap(str(place)), path)
    asked = "reduce_graph_module" if wrap is graph_module else r"posix\.mkdir"
    with pytest.raises(FileError, match=asked):
        read_model(path)
    with pytest.raises(FileError):
        read(path)
    assert not place.exists()
    with contextlib.suppress(GroupfxError):
        read_model(path, trust_pickle=True)
    assert place.exists(), "the attack is none, and the test shows nothing"


# ---- pickles of torch.nn modules only ----------------------------------------------------------


class Raw:
    """A pickle written by hand: opcodes, with `{name}` for a global."""

    def __init__(self, *parts: bytes) -> None:
        self.data = b"\x80\x02" + b"".join(parts) + b"."

    def save(self, path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("model/data.pkl", self.data)
            archive.writestr("model/version", "3\n")
            archive.writestr("model/byteorder", "little")


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def number(value: int) -> bytes:
    data = pickle.encode_long(value)
    return b"\x8a" + bytes([len(data)]) + data


MANY = number(10 * GIGABYTE)
BY_HAND: dict[str, tuple[Raw, str]] = {
    "constructor": (
        Raw(named("torch.nn.modules.linear", "Linear"), number(10**5), number(10**5), b"\x86R"),
        r"a call of torch\.nn\.modules\.linear\.Linear",
    ),
    "bytearray": (
        Raw(named("builtins", "bytearray"), MANY, b"\x85R"),
        r"builtins\.bytearray",
    ),
    "tensor": (Raw(named("torch", "Tensor"), MANY, b"\x85R"), r"a call of torch\.Tensor"),
    "storage": (
        Raw(named("torch.storage", "UntypedStorage"), MANY, b"\x85R"),
        r"a call of torch\.storage\.UntypedStorage",
    ),
    "rebuilt_by_a_class": (
        Raw(
            named("torch._tensor", "_rebuild_from_type_v2"),
            b"(",
            named("torch.nn.modules.linear", "Linear"),
            named("torch", "Tensor"),
            number(10**5),
            number(10**5),
            b"\x86}tR",
        ),
        r"a call of torch\.nn\.modules\.linear\.Linear",
    ),
    "function_called": (
        Raw(named("torch.nn.functional", "relu"), b"N\x85R"),
        r"a call of torch\.nn\.functional\.relu",
    ),
    "renamed_builtin": (Raw(named("__builtin__", "eval"), b"N\x85R"), r"builtins\.eval"),
    "instance_opcode": (Raw(b"(ios\nsystem\n"), r"os\.system"),
    "object_opcode": (Raw(b"(", named("os", "system"), b"o"), r"os\.system"),
    "extension_opcode": (Raw(b"\x82\x01"), "extension 1"),
    "computed_call": (Raw(b"}N\x85R"), "a call of a computed object"),
    "unbalanced": (Raw(b"000"), "inconsistent"),
    "memo": (Raw(b"h\x07"), "inconsistent"),
    "long_string": (Raw(b"X\xff\xff\xff\x7f"), "truncated or damaged"),
}


@pytest.mark.parametrize(("raw", "message"), BY_HAND.values(), ids=BY_HAND.keys())
def test_a_pickle_written_by_hand_is_refused(raw: Raw, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    raw.save(path)
    with pytest.raises(FileError, match=message):
        read_model(path)


def child_named(name: str) -> nn.Module:
    module = nn.Sequential(nn.ReLU())
    module._modules[name] = module._modules.pop("0")
    return module


def parameter_named(name: str) -> nn.Module:
    module = nn.Linear(2, 3)
    module._parameters[name] = module._parameters.pop("weight")
    return module


def field_named(name: str, value: object) -> nn.Module:
    module = nn.Linear(2, 3)
    module.__dict__[name] = value
    return module


def hooked() -> nn.Module:
    module = nn.Linear(2, 3)
    module._forward_hooks[0] = nn.ReLU()
    return module


def within_itself() -> nn.Module:
    module = nn.Sequential(nn.ReLU())
    module._modules["1"] = module
    return module


def doubling(depth: int) -> nn.Module:
    """Each level holds the one below twice: 2**depth modules for whoever walks them all."""
    module: nn.Module = nn.ReLU()
    for _ in range(depth):
        module = nn.Sequential(nn.Sequential(module), module)
    return module


def deep(depth: int) -> nn.Module:
    module: nn.Module = nn.ReLU()
    for _ in range(depth):
        module = nn.Sequential(module)
    return module


def expanded() -> nn.Module:
    module = nn.Linear(1, 1)
    module.weight = nn.Parameter(torch.ones(1).expand(10 * GIGABYTE))
    return module


# fx would paste this name of a child into the source of `forward`.
QUOTE = '1"), getattr(__import__("os"), "mkdir")("harm"), getattr(self, "1'
BUILT: dict[str, tuple[Callable[[], object], str]] = {
    "quote_in_a_child": (lambda: child_named(QUOTE), "a forbidden name"),
    "line_in_a_child": (lambda: child_named("a\nimport os\nb"), "a forbidden name"),
    "method_as_a_child": (lambda: child_named("state_dict"), "already has an attribute"),
    "reserved_child": (lambda: child_named("__class__"), "reserved"),
    "internal_child": (lambda: child_named("_parameters"), "already has an attribute"),
    "quote_in_a_parameter": (lambda: parameter_named(QUOTE), "is not a name"),
    "method_as_a_field": (
        lambda: field_named("forward", nn.functional.relu),
        "'forward' cannot be a field",
    ),
    "compiled_call": (lambda: field_named("_compiled_call_impl", nn.functional.relu), ""),
    "module_as_a_field": (lambda: field_named("extra", nn.ReLU()), "torch.nn.*ReLU"),
    "hook": (hooked, "a hook on the module"),
    "within_itself": (within_itself, "contains itself"),
    "doubling": (lambda: doubling(40), "nested too often"),
    "deep": (lambda: deep(150), "contains itself|recursion|nested"),
    "expanded": (expanded, "more than the numbers given"),
    "expanded_field": (
        lambda: field_named("extra", torch.ones(1).expand(10 * GIGABYTE)),
        "more than the numbers given",
    ),
    "expanded_state": (
        lambda: {"weight": torch.ones(1).expand(10 * GIGABYTE)},
        "more than the numbers given",
    ),
    "nested_dict": (lambda: functools.reduce(lambda d, _: {"a": d}, range(300), {}), "no network"),
}


@pytest.mark.parametrize(("make", "message"), BUILT.values(), ids=BUILT.keys())
def test_a_module_of_torch_nn_that_would_do_harm_is_refused(
    make: Callable[[], object], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.pt"
    torch.save(make(), path)
    if message:
        with pytest.raises(FileError, match=message):
            read_model(path)
    else:
        assert "_compiled_call_impl" not in read_model(path).model.__dict__


def test_fx_does_run_what_a_name_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Why names are checked at all: the same module, traced, makes the folder."""
    monkeypatch.chdir(tmp_path)
    module = child_named(QUOTE)
    module._modules["1"] = nn.ReLU()
    with contextlib.suppress(TypeError):
        fx.symbolic_trace(module)(torch.ones(1))
    assert (tmp_path / "harm").exists()


# ---- containers --------------------------------------------------------------------------------


@pytest.fixture
def memory_limit() -> Iterator[None]:
    """Fail where a file makes the process take two gigabytes more."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2 * GIGABYTE, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def records(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rezip(
    found: dict[str, bytes] | list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED
) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in found.items() if isinstance(found, dict) else found:
            archive.writestr(name, content)
    return stream.getvalue()


def bomb(found: dict[str, bytes]) -> bytes:
    """A record of zeros that is far larger than the file."""
    name = next(name for name in found if name.endswith("data/0"))
    return rezip(found | {name: bytes(GIGABYTE // 16)}, zipfile.ZIP_DEFLATED)


def claim(found: dict[str, bytes]) -> bytes:
    """A directory that says that one record has ten gigabytes."""
    data = bytearray(rezip(found))
    entry = data.rindex(b"PK\x01\x02")
    huge = (10 * GIGABYTE % 2**32).to_bytes(4, "little")
    data[entry + 20 : entry + 28] = huge * 2
    return bytes(data)


def swapped(found: dict[str, bytes]) -> bytes:
    """A wrong number in a tensor, with the checksum of the right one."""
    data = bytearray(rezip(found))
    name = next(name for name in found if name.endswith("data/0"))
    data[data.index(found[name]) + 2] ^= 1
    return bytes(data)


def renamed(found: dict[str, bytes], name: str) -> bytes:
    return rezip([*found.items(), (name, b"x")])


CONTAINERS: dict[str, tuple[Callable[[dict[str, bytes]], bytes], str]] = {
    "bomb": (bomb, "is compressed"),
    "claim": (claim, "claim|truncated or damaged|compressed"),
    "checksum": (swapped, "Bad CRC-32"),
    "escape": (lambda f: renamed(f, "../../harm"), "leads elsewhere"),
    "escape_below": (lambda f: renamed(f, "model/../../harm"), "leads elsewhere"),
    "absolute": (lambda f: renamed(f, "/tmp/harm"), "leads elsewhere"),
    "backslash": (lambda f: renamed(f, "model\\..\\harm"), "leads elsewhere"),
    "second_folder": (lambda f: renamed(f, "other/data.pkl"), "leads elsewhere"),
    "twice": (lambda f: rezip([*f.items(), *list(f.items())[:1]]), "the same name"),
}


def our_file(path: Path) -> None:
    write(path, Archive.of_graph(fx.symbolic_trace(small()), "trace", report={"a": [1, 2]}))


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()


GOOD: dict[str, Callable[[Path], None]] = {
    "ours": our_file,
    "module": lambda path: torch.save(small(), path),
    "state_dict": lambda path: torch.save(small().state_dict(), path),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("make", GOOD.values(), ids=GOOD.keys())
@pytest.mark.parametrize(("change", "message"), CONTAINERS.values(), ids=CONTAINERS.keys())
def test_a_hostile_container_is_refused(
    change: Callable[[dict[str, bytes]], bytes],
    message: str,
    make: Callable[[Path], None],
    tmp_path: Path,
    memory_limit: None,
) -> None:
    path = tmp_path / "model.pt"
    make(path)
    path.write_bytes(change(records(path)))
    with pytest.raises(FileError, match=message):
        read_model(path)


def test_a_container_that_is_only_zipped_anew_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    our_file(path)
    path.write_bytes(rezip(records(path)))
    assert read_model(path).report == {"a": [1, 2]}


def test_a_pickle_inside_a_pt2_is_not_run(tmp_path: Path) -> None:
    place, path = tmp_path / "harm", tmp_path / "model.pt2"
    torch.export.save(torch.export.export(small(), (torch.ones(2, 3, 8, 8),)), path)
    stream = io.BytesIO()
    torch.save(Call(os.mkdir, str(place)), stream)
    found = records(path)
    inputs = next(name for name in found if "sample_inputs" in name)
    path.write_bytes(rezip(found | {inputs: stream.getvalue()}))
    with pytest.raises(FileError, match=r"\.pt2 file.*its pickles ask for posix\.mkdir"):
        read_model(path)
    assert not place.exists()
    with contextlib.suppress(FileError):
        read_model(path, trust_pickle=True)
    assert place.exists(), "the attack is none, and the test shows nothing"


# ---- damage ------------------------------------------------------------------------------------

X = torch.linspace(-1, 1, 2 * 3 * 6 * 6).reshape(2, 3, 6, 6)


def damaged(data: bytes, chance: random.Random) -> bytes:
    if chance.random() < 0.3:
        return data[: chance.randrange(len(data))]
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 5])):
        changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def survives(make: Callable[[Path], None], folder: Path, times: int) -> tuple[int, int]:
    """Read `times` damaged copies; count the refusals and the models that are right."""
    path, factory = folder / "model.pt", folder / "nets.py"
    factory.write_text(
        "from torch import nn\ndef build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()\n"
    )
    make(path)
    options = {"arch": f"{factory}:build"} if make is GOOD["state_dict"] else {}
    data, expected = path.read_bytes(), read_model(path, **options).model(X)
    chance, refused, right = random.Random(11), 0, 0
    for _ in range(times):
        path.write_bytes(damaged(data, chance))
        try:
            model = read_model(path, **options).model
        except (FileError, UsageError):
            refused += 1
            continue
        assert torch.equal(model(X), expected)
        right += 1
    return refused, right


@pytest.mark.parametrize("make", GOOD.values(), ids=GOOD.keys())
def test_damage_is_an_error_or_does_not_matter(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    refused, right = survives(make, tmp_path, 200)
    assert refused > 100
    assert right > 0


@pytest.mark.long
@pytest.mark.parametrize("make", GOOD.values(), ids=GOOD.keys())
def test_damage_a_thousand_times(make: Callable[[Path], None], tmp_path: Path) -> None:
    refused, right = survives(make, tmp_path, 1000)
    assert refused + right == 1000


def test_a_storage_that_is_larger_than_the_file(tmp_path: Path, memory_limit: None) -> None:
    """In torch's old format a pickle says how large a storage is, before any of it is read."""
    path = tmp_path / "weights.pt"
    state: OrderedDict[str, Tensor] = OrderedDict(weight=torch.ones(7))
    torch.save(state, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    # BININT1 7: the storage's size, then the tensor's.
    path.write_bytes(data.replace(b"K\x07", b"J\xff\xff\xff\x7f"))
    with pytest.raises(FileError, match=r"damaged|more than the numbers|bytes in a file"):
        read_model(path, arch="torch.nn:ReLU")
