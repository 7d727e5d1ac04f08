"""Folding takes as many steps a node in a large graph as in a small one."""

from groupfx.deploy.forms.folding import problem_of
from groupfx.deploy.forms.static_shapes import static_shapes
from groupfx.folding.fold import fold
from tests.benchmarks.fold_time import chain_file
from tests.step_counts import steps_of


def test_the_steps_of_a_fold_are_linear_in_the_nodes() -> None:
    counts = []
    for nodes in (50, 100, 200):
        model = chain_file(nodes)
        shapes = static_shapes(model)

        def work(model=model, shapes=shapes):  # type: ignore[no-untyped-def]
            made = fold(problem_of(model, shapes)[0])
            assert made.exact

        work()
        counts.append(steps_of(work))
    first, second = counts[1] - counts[0], counts[2] - counts[1]
    # Twice the nodes between them; a step for each pair of nodes would make it four times.
    assert 1.8 <= second / first <= 2.2, counts
