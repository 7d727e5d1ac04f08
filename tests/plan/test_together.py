"""Forms chosen beside their neighbours': what lies between is counted once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import pytest

from groupfx.plan.cost import OnnxRuntime, Work
from groupfx.plan.machine import Machine
from groupfx.plan.streams import End, Step, Stream
from groupfx.plan.together import Option, Together, choose_together, site_options
from tests.plan.alone import chosen
from tests.plan.test_cost import structure_of

CHANNELS, SIDE = 64, 32
VALUES = CHANNELS * SIDE**2
CONV = {"blocked": True, "fuses": True}


def stream(writers: Sequence[End], steps: Sequence[Step], readers: Sequence[End]) -> Stream:
    return Stream(CHANNELS, SIDE**2, True, tuple(steps), tuple(writers), tuple(readers))


def price(batch: int = 1) -> OnnxRuntime:
    return OnnxRuntime(Work(1, SIDE**2, batch=batch))


def options(batches: Sequence[int] = (1,), groups: int = 2) -> tuple[Option, ...]:
    structure = structure_of(CHANNELS, CHANNELS, groups, equal=False)
    works = [Work(9, SIDE**2, batch=batch, model_weights=44 << 20) for batch in batches]
    return site_options(structure, works, learned=True)


DENSE, *OTHERS = options()
BINS = next(own for own in OTHERS if own.recipe.startswith("bins of 16: "))
ACTIVATION = [Step((0,), 1)]


def between(first: Option | None, second: Option | None, *, stays: bool = True) -> float:
    """Microseconds between two convolutions, each a site or not."""
    writers = [End(0, "a") if first else End(0, **CONV)]
    readers = [End(1, "b") if second else End(1, **CONV)]
    sides = {name: own for name, own in (("a", first), ("b", second)) if own is not None}
    return stream(writers, [Step((0,), 1, stays)], readers).cost(price(), sides)


def test_between_dense_convolutions_is_nothing() -> None:
    for first, second in product((None, DENSE), repeat=2):
        assert between(first, second) == 0


def test_what_leaves_the_layout_pays_its_way_there_and_back() -> None:
    leaves, enters = price().leaves(VALUES, SIDE**2), price().enters(VALUES)
    copy = price().copy(VALUES)
    # The activation is fused into a convolution, and a node of its own behind a gather.
    assert between(DENSE, BINS) == between(None, BINS) == leaves
    assert between(BINS, DENSE) == between(BINS, None) == copy + enters
    # Both gather: one gather for both, behind a concatenation in the blocked layout. So the
    # activation goes into the convolutions that are joined there.
    assert BINS.joined[0] < BINS.inside[0]
    assert between(BINS, BINS) == between(BINS, BINS, stays=False) == leaves


def test_a_hard_swish_is_taken_along_in_the_blocked_layout_alone() -> None:
    """A MobileNetV3 with learned groups took 1.08 of masked dense where it was taken for free."""
    swish = Step((0,), 1, stays=False, along="blocked", passes=2)
    blocked, bins, plain = (
        stream([end], [swish], [End(1, **CONV)]).cost(price(), {"a": BINS})
        for end in (End(0, **CONV), End(0, "a"), End(0, fuses=True))
    )
    assert blocked == 0
    assert bins == plain == 2 * price().copy(VALUES) + price().enters(VALUES)


def test_a_norm_in_front_is_a_convolution_in_the_blocked_layout() -> None:
    """A dense block of a DenseNet: no convolution takes its norm along, but that its activation."""
    steps = [Step((0,), 1, along="one", convolves=True), Step((1,), 2)]
    copy, enters = price().copy(VALUES), price().enters(VALUES)
    blocked, plain = (
        stream([End(0, blocked=own)], steps, [End(2, **CONV)]).cost(price(), {})
        for own in (True, False)
    )
    assert blocked == copy
    assert plain == 2 * copy + enters


def test_a_product_of_tensors_stays_in_the_layout_of_both_and_is_a_pass() -> None:
    steps = [Step((0,), 1), Step((0, 1), 2, along="none")]
    found = stream([End(0, **CONV)], steps, [End(2, **CONV)]).cost(price(), {})
    assert found == 2 * price().copy(VALUES)


def test_what_is_interpolated_takes_longer_in_the_plain_layout() -> None:
    """Bilinear, 128 channels of 16x16 to 32x32: 641 us against 150."""
    resize = End(0, blocked=True, interpolates=4 * VALUES)
    blocked, plain = (
        stream([End(0, blocked=own)], [], [resize]).cost(price(), {}) for own in (True, False)
    )
    assert blocked == 0
    assert plain > 4 * VALUES * 0.5e-3
    assert stream([End(0)], [], [End(0, blocked=True)]).cost(price(), {}) < plain / 5


@pytest.mark.parametrize("first", [DENSE, BINS], ids=["dense", "bins"])
@pytest.mark.parametrize("second", [DENSE, BINS], ids=["dense", "bins"])
def test_a_sum_is_where_both_of_its_sides_are(first: Option, second: Option) -> None:
    residual = stream(
        [End(0, "before"), End(1, "site")],
        [Step((0, 1), 2), Step((2,), 3)],
        [End(0, "site"), End(3, blocked=True)],
    )
    found = residual.cost(price(), {"before": first, "site": second})
    leaves, enters = price().leaves(VALUES, SIDE**2), price().enters(VALUES)
    copy = price().copy(VALUES)
    # Sum and activation are fused into a dense convolution that only they read.
    expected = {
        (False, False): 0,
        # What the site reads is brought there once, for the sum too.
        (False, True): leaves + 2 * copy + enters,
        # The site brings its input back, and its output there.
        (True, False): enters + leaves + 2 * copy + enters,
        (True, True): 2 * copy + enters,
    }
    assert found == pytest.approx(expected[first is BINS, second is BINS])


def test_a_residual_stream_of_sites_stays_in_the_plain_layout() -> None:
    """Two blocks of a ResNet-18, 2 groups; measured: 0.82 to 0.89 of dense for one sample and 0.86
    to 0.91 for 16, where one such site by itself took 0.98 and more than 1.
    """
    batches = (1, 16)
    structure = structure_of(CHANNELS, CHANNELS, 2, equal=False)
    works = [Work(9, SIDE**2, batch=batch, model_weights=44 << 20) for batch in batches]
    assert chosen(structure, *works).recipe == "dense"
    sites = dict.fromkeys("abcd", options(batches))
    streams = [
        stream([End(0, **CONV)], [], [End(0, "a")]),
        stream([End(0, "a")], ACTIVATION, [End(1, "b")]),
        stream([End(0, "b"), End(1, **CONV)], [Step((0, 1), 2), Step((2,), 3)], [End(3, "c")]),
        stream([End(0, "c")], ACTIVATION, [End(1, "d")]),
        stream([End(0, "d"), End(1, **CONV)], [Step((0, 1), 2), Step((2,), 3)], [End(3)]),
    ]
    found = together(sites, streams, batches)
    assert "dense" not in {choice.recipe for choice in found.choices.values()}
    assert 0.8 < found.time / found.untouched < 0.95


def together(
    sites: Mapping[str, Sequence[Option]],
    streams: Sequence[Stream],
    batches: Sequence[int],
    machine: Machine | None = None,
) -> Together:
    machine = machine or Machine()
    priced = [
        (own, [OnnxRuntime(Work(1, own.positions, batch=batch), machine) for batch in batches])
        for own in streams
    ]
    return choose_together(sites, priced)


@pytest.mark.parametrize("groups", [2, 8])
def test_a_chain_is_as_fast_as_the_best_of_all_ways(groups: int) -> None:
    own = options(groups=groups)
    sites = dict.fromkeys("abc", own)
    streams = [
        stream([End(0, **CONV)], [], [End(0, "a")]),
        stream([End(0, "a")], ACTIVATION, [End(1, "b")]),
        stream([End(0, "b")], ACTIVATION, [End(1, "c")]),
        stream([End(0, "c")], ACTIVATION, [End(1, **CONV)]),
    ]

    def time(taken: Sequence[Option]) -> float:
        sides = dict(zip("abc", taken, strict=True))
        writers = (own.writers[0].site for own in streams)
        inside = sum(
            (sides[name].joined if own.joined(sides) else sides[name].inside)[0]
            for own, name in zip(streams, writers, strict=True)
            if name is not None
        )
        return inside + sum(own.cost(price(), sides) for own in streams)

    found = together(sites, streams, (1,))
    assert found.untouched == pytest.approx(time([DENSE] * 3))
    best = min(time(taken) for taken in product(own, repeat=3))
    # What saves too little to be sure of is left out.
    assert best <= found.time <= 1.05 * best
    assert found.time < found.untouched


def test_a_site_of_which_no_stream_is_known_stays() -> None:
    found = together({"a": options()}, [], (1,))
    assert found.choices["a"].recipe == "dense"
    beside = stream([End(0, "b")], [], [End(0, "a")])
    found = together({"a": options(), "b": options(groups=8)}, [beside], (1,))
    assert found.choices["a"].recipe == "dense"
    assert found.choices["b"].recipe != "dense"


def test_two_that_pay_only_beside_each_other_pay_together_in_every_batch() -> None:
    """The two 1x1 kernels of a ConvNeXt's block, with a GELU between: for 16 samples they took 1.14
    of masked dense, for one 0.96.
    """
    batches, positions = (16, 1), 24 * 24
    works = [
        Work(1, positions, batch=batch, model_values=240 * positions * batch) for batch in batches
    ]
    sites = {
        name: site_options(structure_of(*sides, 4, equal=False), works, learned=True)
        for name, sides in (("a", (48, 192)), ("b", (192, 48)))
    }
    between = (Step((0,), 1, along="none"),)
    streams = [
        Stream(48, positions, True, (), (End(0),), (End(0, "a"),)),
        Stream(192, positions, True, between, (End(0, "a"),), (End(1, "b"),)),
        Stream(48, positions, True, (), (End(0, "b"),), (End(0, blocked=True),)),
    ]
    found = together(sites, streams, batches)
    assert found.time <= found.untouched
