"""What a validation says, of right and of wrong candidates. First, that it can say no."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import groupfx
from groupfx.convs.spec import fields_of
from groupfx.deploy import OnnxSide, ValidationOptions, read_onnx, validate_sides
from groupfx.deploy.graph.pads import Window
from groupfx.deploy.running.runtime import Session
from groupfx.deploy.validate import validating
from groupfx.deploy.validate.onnx_sites import Region
from groupfx.deploy.validate.operator_runs import OperatorReport
from groupfx.deploy.validate.opinions import EVALUATOR, OFF, ON, TORCH
from groupfx.deploy.validate.output_checks import OutputRun, check_output
from groupfx.deploy.validate.runs import Open, make_runs
from groupfx.deploy.validate.sides import TorchSide
from groupfx.deploy.validate.site_checks import check_site
from groupfx.deploy.validate.site_functions import SiteFunction
from groupfx.errors import FileError, UsageError
from groupfx.running.inputs import ExampleInputs
from tests.models import zoo

SHAPE = (2, 6, 11, 7)


class Net(nn.Module):
    """Two sites with a BatchNorm each, a branch around them, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stem = nn.Conv2d(6, 10, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(10)
        self.mix = nn.Conv2d(10, 10, 3, padding=1, groups=5)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.stem(x)).relu()
        return self.head((y + self.mix(y)).mean((2, 3)))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    model = Net()
    zoo.give_statistics(model)
    return model.eval()


@pytest.fixture(scope="module")
def honest(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("honest") / "net.onnx"
    result = groupfx.rewrite(net, (torch.randn(SHAPE),), verify=False)
    groupfx.export(result, (torch.randn(SHAPE),), path)
    return path


def changed(path: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    """A copy of a file with one initialiser changed."""
    model = onnx.load(path)
    (held,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    array = change(numpy_helper.to_array(held).copy())
    held.CopyFrom(numpy_helper.from_array(array.astype(np.float32), name))
    out = path.with_name(f"changed_{name}.onnx")
    onnx.save(model, out)
    return out


def negated_first(array: np.ndarray) -> np.ndarray:
    array.flat[0] = -array.flat[0]
    return array


@pytest.mark.parametrize(
    ("weight", "site"), [("stem.weight", "stem"), ("mix.2.weight", "mix"), ("mix.4.bias", "mix")]
)
def test_one_wrong_number_is_found_and_its_site_named(
    net: nn.Module, honest: Path, weight: str, site: str
) -> None:
    found = groupfx.validate(net, changed(honest, weight, negated_first), (torch.randn(SHAPE),))
    assert not found.ok
    assert found.first_site is not None
    assert found.first_site.name == site
    assert [check.name for check in found.sites if not check.ok] == [site]
    assert found.blame is not None
    assert site in found.blame
    assert found.first_site.expected != found.first_site.found


def test_the_right_file_passes_in_every_runtime(net: nn.Module, honest: Path) -> None:
    found = groupfx.validate(net, honest, (torch.randn(SHAPE),))
    assert found.ok
    assert found.blame is None
    assert set(found.runtimes) == {OFF, ON, EVALUATOR}
    assert {check.runtime for check in found.outputs} == {OFF, ON, EVALUATOR}
    assert {"random batch 1", "random batch 2", "random batch 7", "the given inputs"} <= set(
        found.runs
    )
    assert {"large", "tiny", "zero", "negative", "denormal"} <= set(found.runs)
    assert [check.name for check in found.sites] == ["stem", "mix"]
    assert all(0 < check.ratio < 1 and check.seen for check in found.sites)


def test_a_wrong_layer_between_the_sites_is_no_site(net: nn.Module, honest: Path) -> None:
    found = groupfx.validate(
        net, changed(honest, "head.weight", negated_first), (torch.randn(SHAPE),)
    )
    assert not found.ok
    assert found.first_site is None
    assert found.first_operator is not None
    assert (found.first_operator.kind, found.first_operator.ok) == ("Gemm", False)
    assert found.blame == str(found.first_operator)


def test_a_lost_activation_is_the_operator_in_its_place(net: nn.Module, honest: Path) -> None:
    model = onnx.load(honest)
    (relu,) = [node for node in model.graph.node if node.op_type == "Relu"]
    relu.op_type = "Identity"
    lost = honest.with_name("lost.onnx")
    onnx.save(model, lost)
    found = groupfx.validate(net, lost, (torch.randn(SHAPE),))
    assert not found.ok
    assert found.first_site is None
    assert found.first_operator is not None
    assert found.first_operator.name == relu.name
    assert "relu relu of the reference" in str(found.blame)


@pytest.mark.parametrize(("factor", "share"), [(1.0011, "0.0011"), (1.00002, "2e-05")])
def test_a_place_is_judged_by_the_rounding_of_the_original(
    net: nn.Module, honest: Path, factor: float, share: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong in front of a site is never said to lie behind the last one.

    It is asked where operators cannot be looked at.
    """
    monkeypatch.setattr(validating, "look_at_operators", lambda *given: OperatorReport())
    model = onnx.load(honest)
    relu = next(k for k, node in enumerate(model.graph.node) if node.op_type == "Relu")
    result = model.graph.node[relu].output[0]
    model.graph.node[relu].output[0] = "plain"
    model.graph.initializer.append(numpy_helper.from_array(np.float32(factor), "factor"))
    scaled = onnx.helper.make_node("Mul", ["plain", "factor"], [result])
    model.graph.node.insert(relu + 1, scaled)
    wrong = honest.with_name(f"scaled_{factor}.onnx")
    onnx.save(model, wrong)
    found = groupfx.validate(net, wrong, (torch.randn(SHAPE),))
    assert found.first_site is None
    assert str(found.blame).startswith(
        f"what lies in front of mix and behind stem: what goes in there is off by {share} of it;"
    )


def test_a_site_that_the_output_cannot_see_is_found(tmp_path: Path) -> None:
    case = zoo.CASES["resnext-blind"]
    model, inputs = case.build(), case.inputs()
    path = tmp_path / "blind.onnx"
    groupfx.export(groupfx.rewrite(model, inputs, verify=False), inputs, path)
    wrong = changed(path, "layer1.0.conv2.3.weight", lambda weight: -weight)
    found = groupfx.validate(model, wrong, inputs)
    assert all(check.ok for check in found.outputs)
    assert not found.ok
    assert found.first_site is not None
    assert found.first_site.name == "layer1.0.conv2"


def test_branches_that_read_each_others_slices(net: nn.Module, honest: Path) -> None:
    model = onnx.load(honest)
    (split,) = [node for node in model.graph.node if node.op_type == "Split"]
    split.output[0], split.output[1] = split.output[1], split.output[0]
    wrong = honest.with_name("crossed.onnx")
    onnx.save(model, wrong)
    found = groupfx.validate(net, wrong, (torch.randn(SHAPE),))
    assert found.first_site is not None
    assert found.first_site.name == "mix"


def test_a_site_whose_nodes_are_torn_apart_is_named(net: nn.Module, honest: Path) -> None:
    model = onnx.load(honest)
    (split,) = [node for node in model.graph.node if node.op_type == "Split"]
    branch = next(node for node in model.graph.node if node.input[0] == split.output[0])
    other = next(node for node in model.graph.node if node.op_type == "Relu")
    branch.input[0] = split.output[1]
    model.graph.node.remove(branch)
    made = onnx.helper.make_node("Slice", [other.output[0], "s", "e", "a"], ["torn"])
    for name, value in (("s", 0), ("e", 2), ("a", 1)):
        held = numpy_helper.from_array(np.array([value]), name)
        model.graph.initializer.append(held)
    branch.input[0] = "torn"
    place = next(k for k, node in enumerate(model.graph.node) if node.op_type == "Split")
    model.graph.node.insert(place + 1, made)
    model.graph.node.insert(place + 2, branch)
    torn = honest.with_name("torn.onnx")
    onnx.save(model, torn)
    found = groupfx.validate(net, torn, (torch.randn(SHAPE),))
    assert not found.ok
    assert found.first_site is not None
    assert found.first_site.name == "mix"
    assert found.first_site.reason == (
        "its nodes take 2 values (relu, torn) and give 1 values (conv2d_1), where one value is "
        "expected"
    )


def test_a_file_without_marks_is_paired_in_order(net: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "foreign.onnx"
    # torch's own export, which folds the BatchNorm and knows nothing of sites.
    with pytest.warns():
        torch.onnx.export(
            net, (torch.randn(SHAPE),), path, dynamo=True, verbose=False, external_data=False
        )
    fine = groupfx.validate(net, path, (torch.randn(SHAPE),))
    assert fine.ok
    assert [check.name for check in fine.sites] == ["stem", "mix"]
    assert any("in order" in note for note in fine.notes)
    model = onnx.load(path)
    name = next(node.input[1] for node in model.graph.node if node.op_type == "Conv")
    found = groupfx.validate(net, changed(path, name, negated_first), (torch.randn(SHAPE),))
    assert found.first_site is not None
    assert found.first_site.name == "stem"


def test_only_the_optimised_run_differs(
    net: nn.Module, honest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = read_onnx(changed(honest, "mix.2.weight", lambda weight: 2 * weight))
    sides = (
        TorchSide.of(net, ExampleInputs.of(torch.randn(SHAPE)), "net"),
        OnnxSide("net.onnx", read_onnx(honest)),
    )
    monkeypatch.setitem(sides[1].__dict__, "optimised", Session(wrong, "on", source="other"))
    found = validate_sides(*sides, ValidationOptions())
    assert not found.ok
    assert found.first_site is None
    assert found.blame is not None
    assert "optimiser" in found.blame


def test_atol_replaces_the_yardstick(net: nn.Module, honest: Path) -> None:
    wrong = changed(honest, "head.bias", lambda bias: bias + 1e-3)
    x = (torch.randn(SHAPE),)
    assert not groupfx.validate(net, wrong, x).ok
    assert groupfx.validate(net, wrong, x, atol={"output": 1.1e-3}).ok
    tight = groupfx.validate(net, wrong, x, atol={"output": 9e-4})
    assert not tight.ok
    assert "0.0009 is allowed" in str(tight.outputs[0].reason)
    # As it is given on ordinary runs; the large ones have rows of their own.
    for check in tight.outputs:
        assert check.limit_is_absolute
        assert check.adversarial or check.limit == 9e-4
    assert "large" in {check.run for check in tight.outputs if check.limit > 9e-4}


def test_the_users_own_inputs(net: nn.Module, honest: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.npz"
    np.savez(data, x=np.full((3, 6, 11, 7), 0.25, np.float32))
    found = groupfx.validate(net, honest, (torch.randn(SHAPE),), data=data)
    assert "data" in found.runs
    assert found.ok


def test_what_numpy_saves_by_itself_is_float64(net: nn.Module, honest: Path) -> None:
    found = groupfx.validate(net, honest, (torch.randn(SHAPE),), data={"x": np.ones((3, 6, 11, 7))})
    assert "data" in found.runs
    assert found.ok, found.blame
    with pytest.raises(UsageError, match=r"\[3, 6, 4, 7\]"):
        groupfx.validate(net, honest, (torch.randn(SHAPE),), data={"x": np.ones((3, 6, 4, 7))})


def test_the_measures_are_what_they_say() -> None:
    generator = np.random.default_rng(0)
    wide = generator.standard_normal((3, 5, 7))
    original = wide.astype(np.float32)
    candidate = original.copy()
    candidate[1, 2, 3] += 0.5
    (found,) = [
        check_output("y", OFF, [OutputRun("r", True, wide, original, candidate)], torch.float32)
    ]
    error = np.abs(candidate.astype(np.float64) - wide)
    assert not found.ok
    assert found.index == (1, 2, 3)
    assert found.max_abs == error.max()
    assert found.max_rel == error.max() / np.abs(wide).max()
    assert found.mean_abs == pytest.approx(error.mean(), rel=1e-12)
    assert found.quantile_999 == pytest.approx(np.quantile(error, 0.999), rel=1e-12)
    assert found.rms == pytest.approx(math.sqrt((error**2).mean()), rel=1e-12)
    noise = 10 * math.log10((wide**2).sum() / (error**2).sum())
    assert found.snr_db == pytest.approx(noise, rel=1e-9)
    together = (wide * candidate).sum()
    norms = math.sqrt((wide**2).sum() * (candidate.astype(np.float64) ** 2).sum())
    assert found.cosine == pytest.approx(together / norms, rel=1e-12)
    assert found.expected == wide[1, 2, 3]
    assert found.found == candidate[1, 2, 3]


def test_an_output_that_is_close_by_luck_in_one_run_is_judged_by_all() -> None:
    """The original is exact in one run; a candidate that is off by its usual error passes."""
    unit = 2.0**-24
    lucky = OutputRun("a", True, np.array([1.0]), np.array([1.0]), np.array([1 + 8 * unit]))
    usual = OutputRun("b", True, np.array([1.0]), np.array([1 + 4 * unit]), np.array([1.0]))
    assert not check_output("y", OFF, [lucky], torch.float32).ok
    assert check_output("y", OFF, [lucky, usual], torch.float32).ok


@pytest.mark.parametrize(("share", "ok"), [(3.99, True), (4.01, False)])
def test_an_exact_original_is_judged_by_its_error_nearby(share: float, ok: bool) -> None:
    wide, nearby = np.array([1.0, -1.0]), 2.0**-12
    run = OutputRun("r", True, wide, wide, wide + share * nearby, nearby)
    assert check_output("y", OFF, [run], torch.float32).ok is ok


def test_integers_must_be_equal() -> None:
    wide = np.array([1, 2, 3])
    right = check_output("y", OFF, [OutputRun("r", True, wide, wide, wide)], torch.float32)
    wrong = OutputRun("r", True, wide, wide, np.array([1, 2, 4]))
    found = check_output("y", OFF, [wrong], torch.float32)
    assert right.ok
    assert not found.ok
    assert "1 of 3 values" in str(found.reason)


class Doubled(nn.Module):
    """Net with an output more, or none alike."""

    def __init__(self, net: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.net = net
        self.names = names

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: self.net(x) for name in self.names}


@pytest.mark.parametrize(
    ("mine", "theirs", "words"),
    [
        (("a",), ("a", "b"), "1 outputs (a), the candidate 2 (a, b)"),
        (("a", "c"), ("a", "b"), "different names: a, c in the reference, a, b"),
    ],
    ids=["number", "names"],
)
def test_outputs_that_cannot_be_paired(
    net: nn.Module, tmp_path: Path, mine: tuple[str, ...], theirs: tuple[str, ...], words: str
) -> None:
    x = torch.randn(SHAPE)
    groupfx.export(Doubled(net, theirs).eval(), (x,), tmp_path / "other.onnx")
    with pytest.raises(UsageError) as caught:
        groupfx.validate(Doubled(net, mine).eval(), tmp_path / "other.onnx", (x,))
    assert words in str(caught.value)


def test_an_output_of_another_shape_is_a_mismatch(net: nn.Module, tmp_path: Path) -> None:
    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)[:, :2]

    x = torch.randn(SHAPE)
    groupfx.export(Narrow().eval(), (x,), tmp_path / "narrow.onnx")
    found = groupfx.validate(net, tmp_path / "narrow.onnx", (x,))
    assert not found.ok
    assert {check.runtime: check.reason for check in found.outputs} == dict.fromkeys(
        (OFF, ON, EVALUATOR), "has the shape [2, 2] instead of [2, 3]"
    )


def test_a_yardstick_of_another_shape_is_not_taken(net: nn.Module, honest: Path) -> None:
    class Torn(TorchSide):
        def _native(self, *given: Any) -> dict[str, Any]:
            return {name: value[:, :2] for name, value in super()._native(*given).items()}

    torn = Torn.of(net, ExampleInputs.of(torch.randn(SHAPE)), "net")
    found = validate_sides(torn, OnnxSide("net.onnx", read_onnx(honest)), ValidationOptions())
    assert found.verdict == "different"
    assert {check.reason for check in found.outputs} == {"has the shape [1, 3] instead of [1, 2]"}
    assert (
        "the yardstick is net in its own dtype, not in float64: there output has the shape "
        "[1, 3], and [1, 2] as it is"
    ) in found.notes


def test_a_site_of_another_rank_is_a_mismatch() -> None:
    spec = fields_of(nn.Conv1d(2, 3, 5), 1, transposed=False)
    function = SiteFunction("c", spec, torch.ones(3, 2, 5).double(), None, Window.of(spec))
    values = {"x": np.ones((1, 2, 7)), "image": np.ones((1, 2, 7, 7)), "y": np.full((1, 3, 3), 10)}
    right = check_site(function, Region("c", "x", "y"), values, torch.float32, "r")
    wrong = check_site(function, Region("c", "image", "y"), values, torch.float32, "r")
    assert right.ok
    assert not wrong.ok
    assert wrong.reason == ("an input of shape [1, 2, 7, 7] does not fit a Conv1d 2->3, kernel 5")


def test_inputs_that_do_not_fit(net: nn.Module, honest: Path) -> None:
    with pytest.raises(UsageError) as caught:
        groupfx.validate(net, honest, (torch.randn(2, 5, 11, 7),))
    assert str(caught.value).startswith(
        f"input x has the shape [2, 5, 11, 7], and {honest} takes [any, 6, 11, 7]: "
    )


def test_a_custom_operator_cannot_be_run(net: nn.Module, honest: Path) -> None:
    model = onnx.load(honest)
    model.graph.node[-1].domain, model.graph.node[-1].op_type = "my.company", "Head"
    model.opset_import.append(onnx.helper.make_opsetid("my.company", 1))
    path = honest.with_name("custom.onnx")
    onnx.save(model, path)
    with pytest.raises(FileError) as caught:
        groupfx.validate(net, path, (torch.randn(SHAPE),))
    assert "my.company.Head" in str(caught.value)
    assert "ONNX Runtime says" in str(caught.value)


def test_torch_candidates(net: nn.Module) -> None:
    x = torch.randn(SHAPE)
    result = groupfx.rewrite(net, (x,), verify=False)
    fine = groupfx.validate(net, result.model, (x,))
    assert fine.ok
    assert fine.runtimes == (TORCH,)
    assert {check.name for check in fine.sites} == {"stem", *(f"mix.{k}" for k in range(5))}
    with torch.no_grad():
        result.model.get_parameter("mix.3.weight")[1] *= 1.01
    wrong = groupfx.validate(net, result.model, (x,))
    assert wrong.first_site is not None
    assert wrong.first_site.name == "mix.3"


def test_the_original_is_the_reference_of_a_result(net: nn.Module, honest: Path) -> None:
    result = groupfx.rewrite(net, (torch.randn(SHAPE),), verify=False)
    with torch.no_grad():
        result.model.get_parameter("mix.3.weight").mul_(2)
    assert groupfx.validate(result, honest).ok


def test_two_files(honest: Path, tmp_path: Path) -> None:
    whole, split = tmp_path / "whole.onnx", tmp_path / "split.onnx"
    model = Net().eval()
    groupfx.export(model, (torch.randn(SHAPE),), whole)
    result = groupfx.rewrite_onnx(whole, split)
    assert [site.name for site in result.rewrite.sites] == ["mix"]
    assert result.validation is not None
    assert result.validation.ok
    again = groupfx.validate(whole, split)
    assert again.ok
    assert {check.name for check in again.sites} == {"stem", "mix"}
    wrong = changed(split, "mix.1.weight", negated_first)
    found = groupfx.validate(whole, wrong)
    assert found.first_site is not None
    assert found.first_site.name == "mix"


def test_runs_are_different_and_reproducible() -> None:
    example = {"x": np.zeros((2, 3, 16, 16), np.float32), "ids": np.array([[1], [4]])}
    runs = list(make_runs(example, False, Open(True, True)))
    again = list(make_runs(example, False, Open(True, True)))
    assert [run.name for run in runs] == [run.name for run in again]
    for one, other in zip(runs, again, strict=True):
        assert all(np.array_equal(one.feeds[name], other.feeds[name]) for name in example)
    batches = {run.feeds["x"].shape[0] for run in runs}
    assert batches == {1, 2, 7}
    sizes = {run.feeds["x"].shape[2:] for run in runs}
    assert len(sizes) > 1
    by_name = {run.name: run for run in runs}
    assert not by_name["zero"].feeds["x"].any()
    assert (by_name["negative"].feeds["x"] <= 0).all()
    denormal = np.abs(by_name["denormal"].feeds["x"])
    assert 0 < denormal.max() < np.finfo(np.float32).smallest_normal
    assert np.abs(by_name["large"].feeds["x"]).max() > 1e4
    fixed = list(make_runs(example, True, Open(False, False)))
    assert {run.feeds["x"].shape for run in fixed} == {(2, 3, 16, 16)}
    assert fixed[0].name == "the given inputs"
