"""The identities of rules for any number of channels, for an SMT solver (z3).

A tensor is an uninterpreted function of its positions, an order a bijection with its inverse, and
what an operation does to elements an uninterpreted function: what holds for those holds for any.
One fact about sums is given and not proved: a sum over all channels is the same in any order.

Each claim is built with the order that a parameter is put in, `right` or one that is wrong (its
inverse), so that the proof itself can be seen to fail.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import z3

Function = Callable[..., Any]
VALUE = z3.DeclareSort("Value")


@dataclass
class Setting:
    """What is assumed, and `wrong`: whether parameters are put in the inverse of their order."""

    wrong: bool = False
    assumed: list[Any] = field(default_factory=list)

    def tensor(self, name: str, axes: int = 1) -> Function:
        return z3.Function(name, *[z3.IntSort()] * axes, VALUE)

    def index(self, name: str, size: Any) -> Any:
        """Any position of an axis."""
        made = z3.FreshInt(name)
        self.assumed += [made >= 0, made < size]
        return made

    def size(self, name: str) -> Any:
        made = z3.Int(name)
        self.assumed.append(made >= 1)
        return made

    def order(self, name: str, size: Any, before: int = 0) -> tuple[Function, Function]:
        """A bijection of an axis and its inverse; one for each value of `before` other indices."""
        sorts = [z3.IntSort()] * (before + 2)
        there, back = z3.Function(name, *sorts), z3.Function(f"{name}_inverse", *sorts)
        c, others = z3.FreshInt("c"), [z3.FreshInt("o") for _ in range(before)]
        inside = z3.And(c >= 0, c < size)
        facts = [back(*others, there(*others, c)) == c, there(*others, back(*others, c)) == c]
        facts += [z3.And(f(*others, c) >= 0, f(*others, c) < size) for f in (there, back)]
        self.assumed.append(z3.ForAll([*others, c], z3.Implies(inside, z3.And(*facts))))
        return there, back

    def given(self, order: tuple[Function, Function]) -> Function:
        """The order that a parameter is put in."""
        return order[1] if self.wrong else order[0]

    def sum(self, term: Function) -> Any:
        """The sum of `term(c)` over an axis."""
        total = z3.Function("sum", z3.ArraySort(z3.IntSort(), VALUE), VALUE)
        c = z3.FreshInt("c")
        return total(z3.Lambda([c], term(c)))

    def any_order(self, term: Function, order: Function) -> None:
        """What is given of sums: this one is the same in this order."""
        self.assumed.append(self.sum(lambda c: term(order(c))) == self.sum(term))


def call(name: str, *values: Any) -> Any:
    """What an operation makes of elements."""
    return z3.Function(name, *[VALUE] * (len(values) + 1))(*values)


def _each(at: Setting) -> Any:
    """`f(x[:, s]; w[s]) = f(x; w)[:, s]`, whatever f does to each channel."""
    n = at.size("n")
    s, i = at.order("s", n), at.index("i", n)
    x, w, put = at.tensor("x"), at.tensor("w"), at.given(s)
    return call("f", x(s[0](i)), w(put(i))) == call("f", x(s[0](i)), w(s[0](i)))


def _over_all(at: Setting) -> Any:
    """`f(x[:, s], sum x[:, s]; w[s]) = f(x, sum x; w)[:, s]`, as softmax and LayerNorm are."""
    n = at.size("n")
    s, i = at.order("s", n), at.index("i", n)
    x, w, put = at.tensor("x"), at.tensor("w"), at.given(s)
    at.any_order(x, s[0])
    found = call("f", x(s[0](i)), at.sum(lambda c: x(s[0](c))), w(put(i)))
    return found == call("f", x(s[0](i)), at.sum(x), w(s[0](i)))


def _weighted(at: Setting) -> Any:
    """`y(o) = sum W(o, c) x(c)`: columns follow the input, rows the output."""
    n, m = at.size("n"), at.size("m")
    s, t, o = at.order("s", n), at.order("t", m), at.index("o", m)
    x, w, put = at.tensor("x"), at.tensor("w", 2), at.given(s)
    row = t[0](o)
    at.any_order(lambda c: call("times", w(row, c), x(c)), s[0])
    found = at.sum(lambda c: call("times", w(row, put(c)), x(s[0](c))))
    return found == at.sum(lambda c: call("times", w(row, c), x(c)))


def _in_groups(at: Setting) -> Any:
    """Groups of n in the order `whole`, the channels of each in an order of their own.

    Position (g, k) holds channel (whole(g), within(g, k)), and the sum over a group is the same.
    """
    n, m = at.size("n"), at.size("m")
    whole, within = at.order("whole", m), at.order("within", n, before=1)
    x, w = at.tensor("x", 2), at.tensor("w", 2)
    g, put = at.index("g", m), at.given(within)
    group = whole[0](g)
    at.any_order(lambda k: call("times", w(group, k), x(group, k)), lambda k: within[0](g, k))
    found = at.sum(lambda k: call("times", w(group, put(g, k)), x(group, within[0](g, k))))
    return found == at.sum(lambda k: call("times", w(group, k), x(group, k)))


def _link(at: Setting) -> Any:
    """Position i of a gather p in order t, of a tensor in order s, is read at `s^-1[p[t[i]]]`."""
    n, m = at.size("n"), at.size("m")
    s, t, i = at.order("s", n), at.order("t", m), at.index("i", m)
    p, x = z3.Function("p", z3.IntSort(), z3.IntSort()), at.tensor("x")
    read = p(t[0](i))
    at.assumed += [read >= 0, read < n]
    place = s[0] if at.wrong else s[1]
    return x(s[0](place(read))) == x(read)


def _beside(at: Setting) -> Any:
    """`cat(a[:, s], b[:, t])` at i is `cat(a, b)` at s(i), or behind n at n + t(i - n)."""
    n, m = at.size("n"), at.size("m")
    s, t, i = at.order("s", n), at.order("t", m), at.index("i", n + m)
    a, b = at.tensor("a"), at.tensor("b")
    joint = z3.If(i < n, s[0](i), (m if at.wrong else n) + t[0](i - n))
    there = z3.If(joint < n, a(joint), b(joint - n))
    return there == z3.If(i < n, a(s[0](i)), b(t[0](i - n)))


def _flat(at: Setting) -> Any:
    """Position `(o * n + u) * k + j` of a flattened axis holds the channel `s(u)` of block o."""
    n, k, outer = at.size("n"), at.size("k"), at.size("outer")
    s = at.order("s", n)
    o, u, j = at.index("o", outer), at.index("u", n), at.index("j", k)
    x = at.tensor("x", 3)
    flat = z3.Function("flat", *[z3.IntSort()] * 3, z3.IntSort())
    a, b, c = z3.Ints("a b c")
    unflat = at.tensor("unflat")
    at.assumed.append(z3.ForAll([a, b, c], unflat(flat(a, b, c)) == x(a, b, c)))
    moved = flat(o, s[1](u), j) if at.wrong else flat(o, s[0](u), j)
    return unflat(moved) == x(o, s[0](u), j)


CLAIMS: dict[str, Callable[[Setting], Any]] = {
    **dict.fromkeys(("elementwise", "binary", "per channel", "prelu", "quantize"), _each),
    **dict.fromkeys(("depthwise", "constant", "transpose"), _each),
    **dict.fromkeys(("normalise", "layer norm", "reduce"), _over_all),
    **dict.fromkeys(("convolution", "linear", "product", "attention layer"), _weighted),
    **dict.fromkeys(("grouped", "group norm", "attention"), _in_groups),
    **dict.fromkeys(("select", "pick", "barrier"), _link),
    **dict.fromkeys(("reshape", "pixel shuffle"), _flat),
    "concat": _beside,
}
"""The claim of each rule that speaks of orders; `size` speaks of none."""


def proved(claim: Callable[[Setting], Any], *, wrong: bool = False) -> bool:
    """Whether the solver finds no case in which the claim does not hold."""
    at = Setting(wrong)
    statement = claim(at)
    solver = z3.Solver()
    # Steps, not time: a claim that holds takes a few thousand; one that does not may take any.
    solver.set("rlimit", 200_000)
    solver.add(*at.assumed, z3.Not(statement))
    return bool(solver.check() == z3.unsat)
