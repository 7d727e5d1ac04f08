"""A wrong operator between the convolutions is found, in whatever file, and named.

250 files of five models are the long tests: one of the models is blind end to end, and a good part
of the mistakes do not show on ordinary inputs (`operator_draws` says what is wrong before).
"""

import copy
import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from onnx import helper, numpy_helper

from groupfx.deploy import Validation
from tests.deploy.validate.corruption_draws import locked
from tests.deploy.validate.corruption_models import TINY
from tests.deploy.validate.operator_draws import OperatorDraws, is_named
from tests.deploy.validate.operator_models import OPERATOR_MODELS

EACH = 50
LEAST_SHARE = 0.94


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> OperatorDraws:
    return OperatorDraws(TINY, tmp_path_factory.mktemp("tiny"))


def test_wrong_operators_of_a_small_model_are_named(tiny: OperatorDraws) -> None:
    wrong = tiny.wrong_operators(8)
    assert len(wrong) == 8
    assert {"leaky-relu", "clipped", "wrong-at-batch"} <= {file.kind for file in wrong}
    verdicts = [tiny.verdict(file.proto) for file in wrong]
    assert not any(verdict.ok for verdict in verdicts)
    assert [
        file.kind for file, v in zip(wrong, verdicts, strict=True) if not is_named(file, v)
    ] == []


def test_operators_of_the_honest_file_are_right(tiny: OperatorDraws) -> None:
    verdict = tiny.verdict(tiny.honest)
    assert verdict.ok, verdict.blame
    assert [check.kind for check in verdict.operators] == ["Relu", "Relu"]
    assert all(check.ratio <= 1 for check in verdict.operators)


def behind_a_product_with_1(tiny: OperatorDraws, kind: str) -> tuple[str, Validation]:
    """The name of a ReLU that is of another kind, and the verdict."""
    proto = copy.deepcopy(tiny.honest)
    nodes = list(proto.graph.node)
    wrong = next(node for node in nodes if node.op_type == "Relu")
    proto.graph.initializer.append(numpy_helper.from_array(np.float32(1), "one"))
    product = helper.make_node("Mul", [wrong.input[0], "one"], ["same"], name="product")
    wrong.op_type, wrong.input[0] = kind, "same"
    nodes.insert(nodes.index(wrong), product)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return wrong.name, tiny.verdict(proto)


def test_a_product_with_1_is_not_named_for_what_is_behind_it(tiny: OperatorDraws) -> None:
    name, verdict = behind_a_product_with_1(tiny, "Selu")
    assert verdict.first_operator is not None
    assert verdict.first_operator.name == name


def test_what_is_left_out_behind_a_product_with_1_is_said(tiny: OperatorDraws) -> None:
    _, verdict = behind_a_product_with_1(tiny, "Identity")
    assert "it gives what it reads, not what relu" in str(verdict.blame)


@dataclass(frozen=True)
class OperatorOutcome:
    """What was said of one model's files; `missed` and `misnamed` say which, kinds how many."""

    honest: bool
    kinds: dict[str, int]
    missed: list[str]
    misnamed: list[str]


Outcomes = Callable[[str], OperatorOutcome]


def outcome_of(draws: OperatorDraws) -> OperatorOutcome:
    kinds: Counter[str] = Counter()
    missed, misnamed = [], []
    for file in draws.wrong_operators(EACH):
        verdict = draws.verdict(file.proto)
        kinds[file.kind] += 1
        text = f"{file.kind} at {file.node}: {file.text}; {verdict.blame}"
        if verdict.ok:
            missed.append(text)
        elif not is_named(file, verdict):
            misnamed.append(text)
    return OperatorOutcome(draws.verdict(draws.honest).ok, dict(kinds), missed, misnamed)


@pytest.fixture
def outcomes(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Outcomes:
    """The outcome of a model, worked out by whichever test asks first, in whatever process."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent

    def outcome(name: str) -> OperatorOutcome:
        kept = shared / f"wrong-operators-{name}.json"
        with locked(kept.with_suffix(".lock")):
            if not kept.exists():
                case = OPERATOR_MODELS[name]
                found = outcome_of(OperatorDraws(case, tmp_path_factory.mktemp(name)))
                kept.write_text(json.dumps(dataclasses.asdict(found)))
            return OperatorOutcome(**json.loads(kept.read_text()))

    return outcome


@pytest.mark.long
@pytest.mark.parametrize("name", OPERATOR_MODELS)
def test_every_wrong_operator_is_detected(name: str, outcomes: Outcomes) -> None:
    outcome = outcomes(name)
    assert outcome.honest
    assert outcome.missed == []


@pytest.mark.long
def test_two_hundred_and_fifty_wrong_operators(outcomes: Outcomes) -> None:
    found = {name: outcomes(name) for name in OPERATOR_MODELS}
    number = sum(sum(outcome.kinds.values()) for outcome in found.values())
    assert number == EACH * len(OPERATOR_MODELS) == 250
    misnamed = [text for outcome in found.values() for text in outcome.misnamed]
    assert len(misnamed) <= (1 - LEAST_SHARE) * number, misnamed
