"""Zip files that were made to harm, or that were damaged: refused, or read as they were.

Nothing in them runs, fills the memory or hangs.
"""

import contextlib
import io
import os
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

from groupfx.errors import FileError, UsageError
from groupfx.files.archive import Archive, write
from groupfx.files.models import read_model
from tests.files.attacks import Call

GIGABYTE = 2**30


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


def made(make: Callable[[Path], None], path: Path) -> dict[str, Any]:
    """Make the file, and say how it is read."""
    make(path)
    if make is not GOOD["state_dict"]:
        return {}
    factory = path.parent / "nets.py"
    factory.write_text(
        "from torch import nn\ndef build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()\n"
    )
    return {"arch": f"{factory}:build"}


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
    options = made(make, path)
    path.write_bytes(rezip(records(path)))
    read_model(path, **options)
    path.write_bytes(change(records(path)))
    with pytest.raises(FileError, match=message):
        read_model(path, **options)


def test_a_container_that_is_only_zipped_anew_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    our_file(path)
    path.write_bytes(rezip(records(path)))
    assert read_model(path).report == {"a": [1, 2]}


def test_a_pickle_inside_a_pt2_is_not_run(tmp_path: Path) -> None:
    place, path = tmp_path / "harm", tmp_path / "model.pt2"
    torch.export.save(torch.export.export(small(), (torch.ones(2, 3, 8, 8),)), path)
    read_model(path, trust_pickle=True)
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
    path = folder / "model.pt"
    options = made(make, path)
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
    options: dict[str, Any] = {"arch": "torch.nn:PReLU", "arch_args": {"num_parameters": 7}}
    read_model(path, **options)
    data = path.read_bytes()
    # BININT1 7: the storage's size, then the tensor's.
    path.write_bytes(data.replace(b"K\x07", b"J\xff\xff\xff\x7f"))
    with pytest.raises(FileError, match=r"damaged|more than the numbers|bytes in a file"):
        read_model(path, **options)
