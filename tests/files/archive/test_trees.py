"""Outputs in classes of the user's: found again by name where they are known, never imported."""

import collections
import dataclasses
import json
import sys
from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from groupfx.errors import FileError
from groupfx.files.archive import decode_graph, encode_graph


class Halves(NamedTuple):
    first: Tensor
    second: Tensor


@dataclasses.dataclass
class Registered:
    """Refuses what is no tensor, as the place of one is not."""

    logits: Tensor
    hidden: Any = None

    def __post_init__(self) -> None:
        assert isinstance(self.logits, Tensor)


torch.export.register_dataclass(Registered)
X = torch.randn(2, 3)

OUTPUTS = {
    "named-tuple": Halves(X, X),
    "dataclass": Registered(X, X),
    "dataclass-with-none": Registered(X),
    "nested": {
        "pairs": [Halves(X, X), (X,)],
        "output": OrderedDict(deep=Registered(X, Halves(X, X))),
    },
    "plain": {"a": (X, [X, {"b": X}]), 3: None},
}


def giving(output: object) -> fx.GraphModule:
    """A graph that gives `output`, with its input in each place."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    leaves, given = pytree.tree_flatten(output)
    taken = pytree.tree_structure(((X,), {}))
    graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(["x"], taken, given)))
    graph.output([x] * len(leaves))
    return fx.GraphModule(nn.Module(), graph)


def stored(output: object) -> dict[str, Any]:
    """As a file holds it: nothing but plain data."""
    data = encode_graph(giving(output))
    json.dumps(data["modules"])
    return data


@pytest.mark.parametrize("output", OUTPUTS.values(), ids=OUTPUTS)
def test_an_output_comes_back_in_its_classes(output: object) -> None:
    again = decode_graph(stored(output))(X)
    assert pytree.tree_structure(again) == pytree.tree_structure(giving(output)(X))
    assert all(leaf is X for leaf in pytree.tree_leaves(again) if leaf is not None)


def renamed(data: Any, old: str, new: str) -> Any:
    return eval(repr(data).replace(old, new), {"OrderedDict": OrderedDict, "tensor": torch.tensor})


def test_a_named_tuple_that_nobody_knows_is_made_of_its_names() -> None:
    data = renamed(stored(OUTPUTS["named-tuple"]), f"{__name__}:Halves", "gone.models:Made.Halves")
    again = decode_graph(data)(X)
    assert type(again).__name__ == "Halves"
    assert type(again) is not Halves
    assert again.first is again.second is X


def test_a_class_that_is_not_registered_is_not_imported() -> None:
    data = renamed(stored(OUTPUTS["dataclass"]), f"{__name__}:Registered", "antigravity:Registered")
    with pytest.raises(FileError, match=r"in a antigravity:Registered, which is not imported"):
        decode_graph(data)
    assert "antigravity" not in sys.modules


class Impostor(tuple):
    """Has the fields of a named tuple, and a constructor of its own."""

    __slots__ = ()
    _fields = ("first", "second")

    def __new__(cls, *values: object) -> "Impostor":
        raise AssertionError("a file made this run")


HOSTILE = {
    "not-a-named-tuple": (f"{__name__}:Halves", f"{__name__}:Impostor"),
    "a-module": (f"{__name__}:Halves", "os:path"),
    "a-function": (f"{__name__}:Halves", "os:system"),
}


@pytest.mark.parametrize(("old", "new"), HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_named_tuple_is_not_called(old: str, new: str) -> None:
    again = decode_graph(renamed(stored(OUTPUTS["named-tuple"]), old, new))(X)
    assert isinstance(again, tuple)
    assert not isinstance(again, Impostor)
    assert again._fields == ("first", "second")


DAMAGED = {
    "names": ("'second'", "'class'", "reserved"),
    "number-of-names": ("['first', 'second']", "['first']", "not one value a name"),
    "twice": ("['first', 'second']", "['first', 'first']", "duplicate"),
    "no-module": (f"{__name__}:Halves", "", "not a name"),
    "kind": ("'named_tuple'", "'module'", "unknown kind"),
    "leaf": ("[0, 0]", "[0, 1]", "more than places"),
}


@pytest.mark.parametrize(("old", "new", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_structure_is_refused(old: str, new: str, message: str) -> None:
    with pytest.raises(FileError, match=message):
        decode_graph(renamed(stored(OUTPUTS["named-tuple"]), old, new))


@pytest.mark.parametrize("name", ["collections:defaultdict", "collections:namedtuple", "os:path"])
def test_what_makes_other_things_is_not_read(name: str) -> None:
    data = renamed(stored(OUTPUTS["dataclass"]), f"{__name__}:Registered", name)
    with pytest.raises(FileError, match="is not imported, or not registered"):
        decode_graph(data)


def local_class() -> object:
    @dataclasses.dataclass
    class Local:
        logits: Tensor

    torch.export.register_dataclass(Local)
    return Local(X)


@pytest.mark.parametrize("output", [local_class(), collections.defaultdict(list, a=X)])
def test_a_class_that_cannot_be_found_again_cannot_be_written(output: object) -> None:
    with pytest.raises(FileError, match=r"cannot be found by that name: define the class at the"):
        encode_graph(giving(output))
