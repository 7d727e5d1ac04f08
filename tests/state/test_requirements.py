"""What a checkpoint must meet: zeros where weights were left out, and tensors that decided."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from groupfx.errors import UsageError
from groupfx.state import register_check
from groupfx.state.map import Entry, Fixed, Part, Picked, Requirement, Rows, StateDictMap, Zeros

PLAIN: dict[str, Entry | Requirement] = {"n": Rows("w")}
# A pruned weight: two blocks of a linear layer hold all that is not zero.
PRUNED: dict[str, Entry | Requirement] = {
    "0.weight": Picked("weight", (Part((3, 0), (1, 4, 2)),), (5, 6)),
    "1.weight": Picked("weight", (Part((1, 4), (0, 5, 3)),), (5, 6)),
    "zeros": Zeros(Rows("weight")),
}


def pruned_weight() -> Tensor:
    w = torch.zeros(5, 6)
    for row, columns in ((3, (1, 4, 2)), (0, (1, 4, 2)), (1, (0, 5, 3)), (4, (0, 5, 3))):
        w[row, list(columns)] = torch.rand(3) + 1
    return w


def test_zeros_come_back_without_fill() -> None:
    mapping, w = StateDictMap(PRUNED), pruned_weight()
    again = StateDictMap.from_dict(json.loads(json.dumps(mapping.to_dict())))
    assert again.requires == mapping.requires
    assert torch.equal(again.to_original(again.convert({"weight": w}))["weight"], w)


def test_another_checkpoint_must_have_the_zeros() -> None:
    mapping, w = StateDictMap(PRUNED), pruned_weight()
    w[2] = 1
    w[0, 1] = 0  # a zero where the model has a weight is fine
    with pytest.raises(UsageError, match=r"weight: 6 elements are not 0, .* left them out"):
        mapping.convert({"weight": w})


def test_zeros_only_where_they_were_asked_for() -> None:
    # Rows 2 ... 4 were left out by something else, which does not need them to be zero.
    mapping = StateDictMap({**PRUNED, "zeros": Zeros(Rows("weight", 0, 2))})
    w = pruned_weight()
    w[2] = 1
    converted = mapping.convert({"weight": w})
    with pytest.raises(UsageError, match="12 of the 30 elements of 'weight' were masked off"):
        mapping.to_original(converted)
    fill = {"weight": torch.full((5, 6), 9.0)}
    back = mapping.to_original(converted, fill=fill)["weight"]
    assert torch.equal(back[:2], w[:2])
    assert int((back == 9).sum()) == 12


def test_zeros_behind_another_rewrite() -> None:
    first = StateDictMap({"m": Rows("w", 2, 7), "k": Rows("w", 0, 2)})
    table = {
        new: Picked("m", e.parts, e.size) if isinstance(e, Picked) else Zeros(Rows("m"))
        for new, e in PRUNED.items()
    }
    both = first.then(StateDictMap({**table, "k": Rows("k")}))
    w = torch.cat([torch.ones(2, 6), pruned_weight()])
    assert torch.equal(both.to_original(both.convert({"w": w}))["w"], w)
    w[4, 0] = 1
    with pytest.raises(UsageError, match="w: 1 elements are not 0"):
        both.convert({"w": w})


def test_a_tensor_that_must_be_what_it_was() -> None:
    mask = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    mapping = StateDictMap({**PLAIN, "mask": Fixed.exactly("layer.mask", mask)})
    w = torch.ones(2)
    for good in (mask, mask.half(), mask.bool(), torch.where(mask == 0, -0.0, mask)):
        assert mapping.convert({"w": w, "layer.mask": good}).keys() == {"n"}
    for bad in (1 - mask, mask.flatten(), mask * 2):
        with pytest.raises(UsageError, match=r"layer: its values \[.*\] are not those"):
            mapping.convert({"w": w, "layer.mask": bad})


def signs(tensors: Any, value: Any) -> str | None:
    found = tuple((tensors[0] > 0).tolist())
    return None if found == value else f"its gates are {found}, not {value}"


def test_a_check_of_someone_else() -> None:
    register_check("test-signs", signs)
    register_check("test-signs", signs)
    with pytest.raises(UsageError, match="'test-signs' is registered already"):
        register_check("test-signs", lambda tensors, value: None)
    mapping = StateDictMap({**PLAIN, "x": Fixed(("gate",), "test-signs", (True, False))})
    mapping = StateDictMap.from_dict(json.loads(json.dumps(mapping.to_dict())))
    w = torch.ones(2)
    assert mapping.convert({"w": w, "gate": torch.tensor([0.3, -2.0])}).keys() == {"n"}
    with pytest.raises(UsageError, match=r"gate: its gates are \(True, True\)"):
        mapping.convert({"w": w, "gate": torch.ones(2)})


def test_a_check_that_nobody_knows() -> None:
    mapping = StateDictMap({**PLAIN, "x": Fixed(("gate",), "who-knows")})
    with pytest.raises(UsageError, match="'who-knows', which is not known here"):
        mapping.convert({"w": torch.ones(2), "gate": torch.ones(2)})


@pytest.mark.parametrize(
    "fields",
    [{}, [], {"keys": "ab"}, {"keys": [1], "kind": "k", "value": 0}, {"zeros": ["w", 0]}],
    ids=str,
)
def test_other_data_is_no_requirement(fields: Any) -> None:
    data = {"format": 1, "entries": {}, "requires": {"x": fields}, "dropped": []}
    with pytest.raises(UsageError):
        StateDictMap.from_dict(data)


def test_requirements_of_two_rewrites_stay_both() -> None:
    tables = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])]
    first = StateDictMap({"m": Rows("w"), "k": Rows("k"), "x": Fixed.exactly("a", tables[0])})
    both = first.then(StateDictMap({"n": Rows("m"), "x": Fixed.exactly("k", tables[1])}))
    state = {"w": torch.ones(2), "a": tables[0], "k": tables[1]}
    assert both.convert(state).keys() == {"n"}
    for key, wrong in (("a", tables[1]), ("k", tables[0])):
        with pytest.raises(UsageError, match=f"frozen: {key}: its values"):
            both.convert({**state, key: wrong})
