"""What a probe found is the machine of the cost model, where it can be believed."""

from typing import Any

import pytest

from groupfx.plan.machine import Machine
from groupfx.tuning import probe as probing
from groupfx.tuning.probe import is_machine, machine_of


def test_a_narrow_machine_has_its_own_rates() -> None:
    factors = dict.fromkeys(probing._MEASURED, 1.0)
    assert machine_of({**factors, "block": 8}) == Machine.avx2()
    assert machine_of({**factors, "block": 0}) == Machine(block=0)
    # Half as fast as the model's own.
    slow = machine_of({**factors, "block": 8, "plain": 0.5})
    assert slow.plain == Machine.avx2().plain / 2


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_not_taken_from_a_cache(wrong: float) -> None:
    factors = dict.fromkeys(probing._MEASURED, 1.0)
    assert machine_of({**factors, "block": 8, "cold": wrong}) == Machine()


@pytest.mark.parametrize("wrong", [-16, 7, 1 << 40, float("inf"), float("nan"), None, [16]])
def test_a_width_that_no_runtime_has_is_not_taken_from_a_cache(wrong: Any) -> None:
    factors = dict.fromkeys(probing._MEASURED, 1.0)
    assert is_machine({**factors, "block": 8})
    assert not is_machine({**factors, "block": wrong})
    assert machine_of({**factors, "block": wrong}) == Machine()
