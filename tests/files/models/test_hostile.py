"""Files that were made to harm: nothing in them runs, fills the memory or hangs.

An attack that runs code is shown to be real: read with trust, it does what it wants.
"""

import contextlib
import functools
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn

from groupfx.errors import FileError, GroupfxError
from groupfx.files.archive import read
from groupfx.files.models import read_model
from tests.files.attacks import Call, zipped_pickle

GIGABYTE = 2**30


def zipped(found: object, path: Path) -> None:
    torch.save(found, path)


def newest_protocol(found: object, path: Path) -> None:
    torch.save(found, path, pickle_protocol=5)


def old_format(found: object, path: Path) -> None:
    torch.save(found, path, _use_new_zipfile_serialization=False)


def plain_pickle(found: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(found))


def graph_module(place: str) -> object:
    code = f"import os\nos.mkdir({place!r})\ndef forward(self, x):\n    return x\n"
    return Call(fx.graph_module.reduce_graph_module, {"_code": code}, "")


def mkdir(place: str) -> object:
    return Call(os.mkdir, place)


def linear(**fields: object) -> nn.Module:
    module = nn.Linear(2, 3)
    module.__dict__.update(fields)
    return module


# Where the attack lies, and the same without it.
WRAPPED: dict[str, tuple[Callable[[str], object], object]] = {
    "bare": (mkdir, linear()),
    "in_a_dict": (
        lambda place: {"model": linear(), "extra": mkdir(place)},
        {"model": linear(), "extra": 7},
    ),
    "in_a_module": (lambda place: linear(extra=mkdir(place)), linear(extra=7)),
    "in_a_state_dict": (
        lambda place: linear().state_dict() | {"bias": mkdir(place)},
        linear().state_dict(),
    ),
    "graph_module": (graph_module, linear()),
}
FORMATS = (zipped, newest_protocol, old_format, plain_pickle)
SIZE = {"in_features": 2, "out_features": 3}


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("save", FORMATS, ids=lambda save: save.__name__)
@pytest.mark.parametrize(("wrap", "harmless"), WRAPPED.values(), ids=WRAPPED.keys())
def test_a_pickle_that_makes_a_folder_is_not_run(
    wrap: Callable[[str], object],
    harmless: object,
    save: Callable[[object, Path], None],
    tmp_path: Path,
) -> None:
    place, path = tmp_path / "harm", tmp_path / "model.pt"
    save(harmless, path)
    is_weights = isinstance(harmless, OrderedDict)
    options = {"arch": "torch.nn:Linear", "arch_args": SIZE} if is_weights else {}
    # Without trust, no plain pickle and no newer protocol is read, of the old format weights only.
    trusted = save not in (zipped, old_format) or (save is old_format and not is_weights)
    assert isinstance(read_model(path, trust_pickle=trusted, **options).model, nn.Linear)
    save(wrap(str(place)), path)
    asked = "reduce_graph_module" if wrap is graph_module else r"posix\.mkdir"
    with pytest.raises(FileError, match=asked):
        read_model(path, **options)
    with pytest.raises(FileError):
        read(path)
    assert not place.exists()
    with contextlib.suppress(GroupfxError):
        read_model(path, trust_pickle=True)
    assert place.exists(), "the attack is none, and the test shows nothing"


# ---- pickles of torch.nn modules only ----------------------------------------------------------


def raw(*parts: bytes) -> bytes:
    """A pickle of these instructions."""
    return b"\x80\x02" + b"".join(parts) + b"."


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def number(value: int) -> bytes:
    data = pickle.encode_long(value)
    return b"\x8a" + bytes([len(data)]) + data


MANY = number(10 * GIGABYTE)
BY_HAND: dict[str, tuple[bytes, str]] = {
    "constructor": (
        raw(named("torch.nn.modules.linear", "Linear"), number(10**5), number(10**5), b"\x86R"),
        r"a call of torch\.nn\.modules\.linear\.Linear",
    ),
    "bytearray": (
        raw(named("builtins", "bytearray"), MANY, b"\x85R"),
        r"builtins\.bytearray",
    ),
    "tensor": (raw(named("torch", "Tensor"), MANY, b"\x85R"), r"a call of torch\.Tensor"),
    "storage": (
        raw(named("torch.storage", "UntypedStorage"), MANY, b"\x85R"),
        r"a call of torch\.storage\.UntypedStorage",
    ),
    "rebuilt_by_a_class": (
        raw(
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
        raw(named("torch.nn.functional", "relu"), b"N\x85R"),
        r"a call of torch\.nn\.functional\.relu",
    ),
    "renamed_builtin": (raw(named("__builtin__", "eval"), b"N\x85R"), r"builtins\.eval"),
    "instance_opcode": (raw(b"(ios\nsystem\n"), r"os\.system"),
    "object_opcode": (raw(b"(", named("os", "system"), b"o"), r"os\.system"),
    "extension_opcode": (raw(b"\x82\x01"), "extension 1"),
    "computed_call": (raw(b"}N\x85R"), "a call of a computed object"),
    "unbalanced": (raw(b"000"), "inconsistent"),
    "memo": (raw(b"h\x07"), "inconsistent"),
    "long_string": (raw(b"X\xff\xff\xff\x7f"), "truncated or damaged"),
}


@pytest.mark.parametrize(("data", "message"), BY_HAND.values(), ids=BY_HAND.keys())
def test_a_pickle_written_by_hand_is_refused(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    zipped_pickle(path, pickle.dumps(nn.ReLU(), 2))
    assert isinstance(read_model(path).model, nn.ReLU)
    zipped_pickle(path, data)
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


def hooked(*hooks: nn.Module) -> nn.Module:
    module = nn.Linear(2, 3)
    module._forward_hooks.update(enumerate(hooks))
    return module


def within_itself(*, itself: bool) -> nn.Module:
    module = nn.Sequential(nn.ReLU())
    module._modules["1"] = module if itself else nn.ReLU()
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


def expanded(size: int) -> nn.Module:
    module = nn.Linear(1, 1)
    module.weight = nn.Parameter(torch.ones(1).expand(size))
    return module


def in_dicts(depth: int) -> object:
    return functools.reduce(lambda found, _: {"a": found}, range(depth), linear())


# fx would paste this name of a child into the source of `forward`.
QUOTE = '1"), getattr(__import__("os"), "mkdir")("harm"), getattr(self, "1'
RELU = nn.functional.relu
# How it is built, of what it is refused, and of what it is read.
BUILT: dict[str, tuple[Callable[[Any], object], Any, Any, str]] = {
    "quote_in_a_child": (child_named, QUOTE, "1", "a forbidden name"),
    "line_in_a_child": (child_named, "a\nimport os\nb", "a", "a forbidden name"),
    "method_as_a_child": (child_named, "state_dict", "state", "already has an attribute"),
    "reserved_child": (child_named, "__class__", "class", "reserved"),
    "internal_child": (child_named, "_parameters", "parameters_", "already has an attribute"),
    "quote_in_a_parameter": (parameter_named, QUOTE, "scale", "is not a name"),
    "method_as_a_field": (
        lambda name: linear(**{name: RELU}),
        "forward",
        "activation",
        "'forward' cannot be a field",
    ),
    "compiled_call": (lambda name: linear(**{name: RELU}), "_compiled_call_impl", "activation", ""),
    "module_as_a_field": (lambda value: linear(extra=value), nn.ReLU(), 7, "torch.nn.*ReLU"),
    "hook": (lambda hooks: hooked(*hooks), [nn.ReLU()], [], "a hook on the module"),
    "within_itself": (lambda itself: within_itself(itself=itself), True, False, "contains itself"),
    "doubling": (doubling, 40, 4, "nested too often"),
    "deep": (deep, 150, 15, "contains itself|recursion|nested"),
    "expanded": (expanded, 10 * GIGABYTE, 1, "more than the numbers given"),
    "expanded_field": (
        lambda size: linear(extra=torch.ones(1).expand(size)),
        10 * GIGABYTE,
        1,
        "more than the numbers given",
    ),
    "expanded_state": (
        lambda size: {"weight": torch.ones(1).expand(size)},
        10 * GIGABYTE,
        1,
        "more than the numbers given",
    ),
    "nested_dict": (in_dicts, 300, 1, "no network"),
}


@pytest.mark.parametrize(("make", "bad", "good", "message"), BUILT.values(), ids=BUILT.keys())
def test_a_module_of_torch_nn_that_would_do_harm_is_refused(
    make: Callable[[Any], object], bad: Any, good: Any, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.pt"
    found = make(good)
    torch.save(found, path)
    is_weights = isinstance(found, dict) and "weight" in found
    read_model(path, arch="torch.nn:PReLU" if is_weights else None)
    torch.save(make(bad), path)
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
