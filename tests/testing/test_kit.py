"""The kit's answers against other implementations, and its judge against mistakes."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch

from groupfx.errors import InternalError, UsageError
from groupfx.testing import Adapter, Answer, Case, all_cases, conformance, outputs_by_name
from groupfx.testing.adapters import adapter_for
from groupfx.testing.conformance.judging import judge
from groupfx.testing.kit.integers import Quantize
from groupfx.testing.kit.known import Known
from groupfx.testing.kit.sketch import Sketch

from .wrong_tools import CHANGES, outputs_of, wrong_programs, wrong_tool

CASES = all_cases()
KINDS = tuple(dict.fromkeys(case.kind for case in CASES))
# What the adapter says no to, rightly: SAME_UPPER with dilations.
REFUSED = ("auto-pad/1d-same-upper-dilated", "auto-pad/2d-same-upper-dilated")


def some(cases: tuple[Case, ...], share: int) -> list[Case]:
    """One in `share` of the cases, the same ones each time."""
    return [case for case in cases if zlib.crc32(case.name.encode()) % share == 0]


def test_there_are_some_three_hundred_cases_with_names_of_their_own() -> None:
    assert len(CASES) > 300
    assert len({case.name for case in CASES}) == len(CASES)
    assert {case.opset for case in CASES} >= {*range(11, 22)}
    assert sum(case.torch() is not None for case in some(CASES, 4)) > 60


def test_a_case_is_the_same_whenever_it_is_made() -> None:
    first, again = CASES[7], next(case for case in all_cases() if case.name == CASES[7].name)
    assert first.onnx.SerializeToString() == again.onnx.SerializeToString()
    np.testing.assert_array_equal(first.answers[0][0].value, again.answers[0][0].value)


def check_in_torch(case: Case) -> None:
    """The answer is what torch's kernels compute in float64."""
    model = case.torch()
    if model is None:
        return
    inputs = [torch.from_numpy(array.copy()) for array in case.feeds[0].values()]
    with torch.no_grad():
        found = model.double()(*(x.double() if x.is_floating_point() else x for x in inputs))
    for answer, value in zip(case.answers[0], found, strict=True):
        assert value.shape == answer.value.shape, case.name
        scale = max(1.0, float(np.abs(answer.value).max()))
        assert float(np.abs(value.numpy() - answer.value).max()) <= 1e-12 * scale, case.name


def test_answers_are_those_of_torch_in_float64() -> None:
    for case in some(CASES, 3):
        check_in_torch(case)


@pytest.mark.long
def test_all_answers_are_those_of_torch_in_float64() -> None:
    for case in CASES:
        check_in_torch(case)


def test_onnx_runtime_without_optimisations_conforms() -> None:
    third = [case for case in some(CASES, 3) if case.name not in REFUSED]
    chosen = [*third, *(case for case in CASES if case.name in REFUSED)]
    result = conformance(adapter_for("onnxruntime-off"), chosen)
    assert {each.case for each in result.judged if each.verdict == "refused"} == {*REFUSED}
    assert result.ok
    assert result.total.counts["pass"] == len(chosen) - len(REFUSED)
    # Bounds are no tighter than rounding, and not so wide that they say nothing.
    assert result.total.worst is not None
    assert 0.01 < result.total.worst < 0.5


def test_onnx_runtime_folds_a_pad_of_zeros_into_a_max_pool() -> None:
    # Its padding is minus infinity there. Where this fails, ONNX Runtime has been mended: take the
    # sentence from the page on conformance, and the work-around from the export.
    (case,) = (case for case in CASES if case.name == "pad-before/then-max-pool")
    assert not conformance(adapter_for("onnxruntime"), [case]).ok, onnxruntime.__version__
    assert conformance(adapter_for("onnxruntime-off"), [case]).ok


def wrong_ones(cases: tuple[Case, ...], each: int) -> Iterator[tuple[str, Case]]:
    """Every change with the first cases of each kind that it changes."""
    for name, change in CHANGES.items():
        for kind in KINDS:
            of_kind = (case for case in cases if case.kind == kind)
            able = [case for case in of_kind if next(wrong_programs(case, change), None)]
            yield from ((name, case) for case in able[:each])


def test_the_answers_themselves_pass() -> None:
    assert [case.name for case in CASES if judge(case, outputs_of(case.program))[0] != "pass"] == []


def test_a_mistake_is_caught_in_each_kind() -> None:
    sample = tuple(case for kind in KINDS for case in [c for c in CASES if c.kind == kind][:4])
    seen: dict[str, set[str]] = {}
    for name, case in wrong_ones(sample, 1):
        verdict, reason, _ = judge(case, wrong_tool(CHANGES[name]).run(case))
        assert (verdict, bool(reason)) == ("fail", True), (name, case.name)
        seen.setdefault(case.kind, set()).add(name)
    assert seen.keys() == {*KINDS}
    assert all(len(names) > 1 for names in seen.values())


@pytest.mark.long
def test_every_mistake_is_caught_in_every_case() -> None:
    tried, missed = 0, []
    for case in CASES:
        for name, change in CHANGES.items():
            for program in wrong_programs(case, change):
                tried += 1
                if judge(case, outputs_of(program))[0] != "fail":
                    missed.append((name, case.name))
    assert missed == []
    assert tried > 1500


@pytest.mark.parametrize("change", ["wrong groups", "dropped bias", "swapped concat"])
def test_a_wrong_tool_is_counted_kind_by_kind(change: str) -> None:
    cases = [case for case in CASES if case.kind in ("branches", "grouped")]
    wrong = [case for case in cases if next(wrong_programs(case, CHANGES[change]), None)]
    result = conformance(wrong_tool(CHANGES[change]), cases)
    assert not result.ok
    assert {each.case for each in result.judged if each.verdict == "fail"} == {
        c.name for c in wrong
    }
    assert sum(row.counts["fail"] for row in result.rows) == len(wrong) > 0


def answered(value: float, bound: float, dtype: str = "float32") -> tuple[Case, Answer]:
    case = next(case for case in CASES if len(case.feeds) == 1)
    array = np.full((2, 3), value)
    answer = Answer("y", array, np.full((2, 3), bound), dtype)
    changed = replace(case)
    changed.__dict__["answers"] = ((answer,),)
    return changed, answer


@pytest.mark.parametrize(("off", "verdict"), [(0.0, "pass"), (0.25, "pass"), (0.26, "fail")])
def test_the_bound_is_the_limit(off: float, verdict: str) -> None:
    case, answer = answered(1.0, 0.25)
    found = answer.value.astype("float32")
    found[1, 2] += np.float32(off)
    assert judge(case, [{"y": found}])[0] == verdict


REFUSALS = {
    "missing": ({}, "there is no output y"),
    "shape": ({"y": np.ones((3, 2), "float32")}, "shape [3, 2] instead of [2, 3]"),
    "dtype": ({"y": np.ones((2, 3))}, "float64 instead of float32"),
    "nan": ({"y": np.full((2, 3), np.nan, "float32")}, "has NaN"),
    "infinity": ({"y": np.full((2, 3), -np.inf, "float32")}, "has -infinity"),
}


@pytest.mark.parametrize(("outputs", "reason"), REFUSALS.values(), ids=REFUSALS.keys())
def test_what_is_no_number_to_compare_fails(outputs: dict[str, np.ndarray], reason: str) -> None:
    case, _ = answered(1.0, 0.25)
    verdict, said, ratio = judge(case, [outputs])
    assert (verdict, ratio) == ("fail", None)
    assert reason in said


def test_whole_numbers_have_no_bound() -> None:
    case, answer = answered(3.0, 0.0, "uint8")
    right = answer.value.astype("uint8")
    assert judge(case, [{"y": right}])[0] == "pass"
    right[0, 1] += 1
    verdict, reason, _ = judge(case, [{"y": right}])
    assert verdict == "fail"
    assert reason == "4 instead of 3 at [0, 1], 1 of 6 numbers"


def test_a_case_that_quantises_a_tie_is_refused() -> None:
    scale, zero = Known.exact(np.array(0.5, "float32")), Known.exact(np.array(0, "uint8"))
    with pytest.raises(InternalError, match="off a tie"):
        Quantize().define(Known.exact(np.array([1.25], "float32")), scale, zero)


def test_what_a_tool_raises_is_a_refusal_with_its_reason() -> None:
    def run(case: Case) -> list[dict[str, np.ndarray]]:
        raise NotImplementedError("groups are not supported")

    result = conformance(Adapter("picky", run), CASES[:2])
    assert [each.verdict for each in result.judged] == ["refused", "refused"]
    assert result.judged[0].reason == "NotImplementedError: groups are not supported"
    assert result.ok
    assert not result.compared


NO_ANSWERS = {
    "nothing": (None, "no arrays by name"),
    "one dict": ({"y": np.ones(3)}, "no arrays by name"),
    "too few sets": ([], "0 sets of outputs instead of 1"),
    "words": ([{"v0_0": ["a"]}], "shape [1] instead of"),
}


@pytest.mark.parametrize(("outputs", "reason"), NO_ANSWERS.values(), ids=NO_ANSWERS.keys())
def test_what_is_no_answer_fails(outputs: object, reason: str) -> None:
    result = conformance(Adapter("odd", lambda case: outputs), CASES[:1])  # type: ignore[arg-type]
    assert result.judged[0].verdict == "fail"
    assert reason in result.judged[0].reason


def test_another_number_of_outputs_fails() -> None:
    two = Adapter("two", lambda case: outputs_by_name(case, lambda feeds: [np.ones(1)] * 2))
    (judged,) = conformance(two, CASES[:1]).judged
    assert (judged.verdict, judged.reason) == ("fail", "2 outputs instead of 1")


def test_a_case_of_ones_own_needs_an_adapter() -> None:
    own = replace(CASES[0], variant="mine")
    with pytest.raises(UsageError, match="grouped/mine is no case of the kit"):
        conformance("onnxruntime", [own])
    assert conformance(adapter_for("onnxruntime"), [own]).ok


def test_numbers_are_drawn_by_the_name_and_held_by_float16() -> None:
    first, other = Sketch("a"), Sketch("b")
    assert (first.drawn(5) != other.drawn(5)).any()
    numbers = Sketch("a").drawn(1000)
    np.testing.assert_array_equal(numbers.astype("float16").astype("float32"), numbers)
    assert (numbers != 0).all()
