"""The asserts of a forward in a graph: what is asserted of values is asserted there as well."""

from __future__ import annotations

import dis
import operator
import sys
from types import CodeType
from typing import Any

import torch
from torch import fx
from torch.fx._symbolic_trace import _assert_is_none

_RAISES = "LOAD_ASSERTION_ERROR"


class AssertingTracer(fx.Tracer):
    """A tracer that goes on behind an assert, and writes it into the graph."""

    def to_bool(self, obj: fx.Proxy) -> bool:
        """What an assert wants to be true of a value; else what torch does, which refuses."""
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_globals.get("__name__", "") == fx.proxy.__name__:
            frame = frame.f_back
        asserted = _asserted(frame.f_code, frame.f_lasti)
        if asserted is None:
            return super().to_bool(obj)
        message = f"assertion failed in {frame.f_code.co_qualname}"
        holds = obj
        if not asserted:
            holds = self.create_proxy("call_function", operator.not_, (obj,), {})
        self.create_proxy("call_function", torch._assert, (holds, message), {})
        return asserted

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **named: Any
    ) -> fx.Proxy:
        """As torch does, but for an argument that was left out, which it asserts to be None.

        For that it has a function of its own, and a pickled graph that calls it can be read once:
        whatever is traced afterwards, anywhere in the process, then ends with a KeyError (torch
        2.13).
        """
        if target is _assert_is_none:
            value, message = args
            is_none = super().create_proxy(kind, operator.eq, (value, None), {})
            target, args = torch._assert, (is_none, message)
        return super().create_proxy(kind, target, args, kwargs, *more, **named)


def _asserted(code: CodeType, offset: int) -> bool | None:
    """What the truth test at `offset` must give for an `assert` to go on; None if it is not of one.

    A conditional jump with the raise on one side: the value that leads to the other side.
    """
    instructions = list(dis.get_instructions(code))
    position = next((k for k, i in enumerate(instructions) if i.offset == offset), None)
    if position is None or position + 1 == len(instructions):
        return None
    test = instructions[position]
    if "JUMP" not in test.opname or not test.opname.endswith(("IF_TRUE", "IF_FALSE")):
        return None
    jumps_on = test.opname.endswith("IF_TRUE")
    if instructions[position + 1].opname == _RAISES:
        return jumps_on
    target = next((i for i in instructions if i.offset == test.argval), None)
    return None if target is None or target.opname != _RAISES else not jumps_on
