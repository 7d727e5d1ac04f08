"""The choice of orders, on abstract problems: exact where it says so, and never worse than nothing.

The oracle tries every order of every variable.
"""

from itertools import pairwise, permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groupfx.folding.edits import edits
from groupfx.folding.fold import fold
from groupfx.folding.orders import group_order, identity
from groupfx.folding.problem import Axis, Link, Place, Problem
from groupfx.folding.solving import Factor, minimise, moved_bytes, solve


def link(
    problem: Problem,
    target: int,
    sources: tuple[int, ...],
    reads: list[int],
    moved: int = 1,
    *,
    given: bool = True,
) -> None:
    """A link between plain axes, numbered by its place in the list."""
    number = len(problem.links)
    place = Place(number, None if given else 0, f"link {number}")
    axes = tuple(Axis(source) for source in sources)
    array = np.array(reads, dtype=np.intp)
    problem.link(Link(place, Axis(target), axes, sources, array, 1, moved))


def least(problem: Problem) -> int:
    """The fewest bytes over all orders that are allowed."""
    roots = problem.roots()
    choices = [
        [
            order
            for order in map(np.array, permutations(range(problem.units(root))))
            if problem.allows(root, order)
        ]
        for root in roots
    ]
    found = []
    for chosen in product(*choices):
        orders = dict(zip(roots, chosen, strict=True))
        sides = [
            [group_order(orders[problem.find(v)], pair.groups) for v in (pair.first, pair.second)]
            for pair in problem.pairs
        ]
        if all((first == second).all() for first, second in sides):  # type: ignore[union-attr]
            found.append(moved_bytes(problem, orders))
    return min(found)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Up to four variables of up to four channels, with links, groups and fixed ones."""
    problem, sizes = Problem(), draw(st.lists(st.sampled_from([2, 4]), min_size=2, max_size=3))
    variables = [problem.variable(size) for size in sizes]
    for variable, size in zip(variables, sizes, strict=True):
        kind = draw(st.sampled_from(["free", "free", "fixed", "groups"]))
        if kind == "fixed":
            problem.fix(variable, "fixed")
        elif kind == "groups" and size == 4:
            problem.keep_groups(variable, 2, "groups")
    same = [(a, b) for a in variables for b in variables if a < b and sizes[a] == sizes[b]]
    for first, second in same:
        if draw(st.integers(0, 3)) == 0:
            problem.together(first, second, 2, "conv")
    for _ in range(draw(st.integers(1, 4))):
        sources = tuple(draw(st.lists(st.sampled_from(variables), min_size=1, max_size=2)))
        target = draw(st.sampled_from(variables))
        total = sum(sizes[source] for source in sources)
        size = sizes[target]
        unique = draw(st.permutations(range(total)))[:size]
        if len(unique) == size:
            link(problem, target, sources, unique, draw(st.integers(1, 9)))
    return problem


SEEN = {"problems": 0, "missed": 0}


@settings(max_examples=150, deadline=None)
@given(problems())
def test_small_problems_are_solved(problem: Problem) -> None:
    solution = solve(problem)
    before = moved_bytes(problem, {root: identity(problem.units(root)) for root in problem.roots()})
    found = moved_bytes(problem, solution.orders)
    best = least(problem)
    assert best <= found <= before
    SEEN["problems"] += 1
    SEEN["missed"] += found > best


def test_most_small_problems_are_solved_as_well_as_can_be() -> None:
    if SEEN["problems"] < 100:
        pytest.skip("the problems were not tried in this run")
    # Of 150: candidates are what links wish for, one at a time, and a few need two wishes at once.
    assert SEEN["missed"] <= 0.05 * SEEN["problems"], SEEN


def test_a_permutation_between_free_tensors_is_gone() -> None:
    problem = Problem()
    a, b = problem.variable(4), problem.variable(4)
    link(problem, b, (a,), [2, 0, 3, 1])
    made = fold(problem)
    assert (made.before.count, made.after.count) == (1, 0)
    assert made.describe() == "permutations: 1 -> 0 (1 B -> 0 B a sample)"


def test_one_between_fixed_tensors_stays_with_both_reasons() -> None:
    problem = Problem()
    a, b = problem.variable(4, "an input"), problem.variable(4, "an output")
    link(problem, b, (a,), [2, 0, 3, 1])
    made = fold(problem)
    assert not made.changes
    assert [(kept.name, kept.reason) for kept in made.kept] == [
        ("link 0", "an input and an output")
    ]


def test_it_stays_where_it_costs_the_least() -> None:
    problem = Problem()
    a, b, c = problem.variable(4, "an input"), problem.variable(4), problem.variable(4, "an output")
    link(problem, b, (a,), [2, 0, 3, 1], moved=100)
    link(problem, c, (b,), [0, 1, 2, 3], moved=10, given=False)
    made = fold(problem)
    assert (made.before.moved, made.after.moved) == (100, 10)


def test_groups_stay_whole_and_move_together() -> None:
    problem = Problem()
    a, b = problem.variable(6), problem.variable(4)
    source, result = problem.variable(6, "an input"), problem.variable(4)
    problem.together(a, b, 2, "conv")
    link(problem, a, (source,), [3, 4, 5, 0, 1, 2])
    link(problem, result, (b,), [0, 1, 2, 3])
    made = fold(problem)
    assert made.after.count == 0
    assert made.order(Axis(a)).tolist() == [3, 4, 5, 0, 1, 2]
    assert made.order(Axis(b)).tolist() == [2, 3, 0, 1]


def test_the_order_within_a_block_is_chosen_for_the_next_slices() -> None:
    """Two layers with blocks in a row: at most blocks x blocks slices."""
    problem = Problem()
    first = [problem.variable(8) for _ in range(4)]
    joint, fixed = problem.variable(32), problem.variable(32, "a sum")
    link(problem, joint, tuple(first), list(range(32)))
    mixed = np.random.default_rng(3).permutation(32).reshape(4, 8)
    mixed.sort(axis=1)
    link(problem, fixed, (joint,), mixed.ravel().tolist())
    made = fold(problem)
    assert made.after.count == 1
    moving = next(folded for folded in made.links if folded.spelling.moves)
    positions = moving.spelling
    assert positions.gather is None or len(positions.pieces) <= 16


def test_a_long_chain_is_exact_and_a_clique_is_not_worse_than_before() -> None:
    rng = np.random.default_rng(5)
    chain, clique = Problem(), Problem()
    variables = [chain.variable(6) for _ in range(200)]
    for first, second in pairwise(variables):
        link(chain, second, (first,), rng.permutation(6).tolist())
    solution = solve(chain)
    assert solution.exact
    assert moved_bytes(chain, solution.orders) == 0
    nodes = [clique.variable(6) for _ in range(12)]
    for k, first in enumerate(nodes):
        for second in nodes[:k]:
            link(clique, first, (second,), rng.permutation(6).tolist())
    solution = solve(clique)
    assert not solution.exact
    assert moved_bytes(clique, solution.orders) <= 66 - 11


def test_elimination_finds_the_minimum() -> None:
    rng = np.random.default_rng(1)
    sizes = {0: 2, 1: 3, 2: 2, 3: 4}
    scopes = [(0, 1), (1, 2), (2, 3), (3, 0), (0, 1, 2)]
    tables = [rng.integers(0, 100, [sizes[v] for v in scope]) for scope in scopes]
    found = minimise(sizes, [Factor(s, t) for s, t in zip(scopes, tables, strict=True)])
    assert found is not None

    def total(places: dict[int, int]) -> int:
        pairs = zip(scopes, tables, strict=True)
        return int(sum(t[tuple(places[v] for v in s)] for s, t in pairs))

    every = product(*(range(n) for n in sizes.values()))
    assert total(found) == min(total(dict(zip(sizes, p, strict=True))) for p in every)


def test_a_parameter_follows_both_of_its_axes() -> None:
    problem = Problem()
    rows, columns = problem.variable(3, None), problem.variable(2, None)
    problem.absorb("w", 0, Axis(rows))
    problem.absorb("w", 1, Axis(columns, inner=2))
    orders = {rows: np.array([2, 0, 1]), columns: np.array([1, 0])}
    (edit,) = edits(problem, orders)
    weight = np.arange(12).reshape(3, 4)
    assert (edit.of(weight) == weight[[2, 0, 1]][:, [2, 3, 0, 1]]).all()
