"""A quantised file against the float one: what its steps explain is noise, the rest has a name."""

from __future__ import annotations

import math
import re
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper
from onnxruntime.quantization import QuantType
from torch import nn

import groupfx
from groupfx.deploy import OnnxSide, Validation, ValidationOptions, validate_sides
from groupfx.deploy.forms.rewrite_onnx import rewrite_graph
from groupfx.deploy.graph.files import proto_of
from groupfx.deploy.validate.quantised.belonging import check_weight
from groupfx.deploy.validate.quantised.rows import FloatRows, Rows
from groupfx.errors import MismatchError, UsageError
from groupfx.passes import SplitGroupedConv
from tests.cli.runs import Cli, check_json
from tests.deploy.validate.quantised_faults import (
    CHANGES,
    Faulty,
    File,
    faulty_files,
    honest_file,
)
from tests.deploy.validate.quantised_files import (
    Scheme,
    drawn_net,
    drawn_scheme,
    images_of,
    quantised,
    wide_net,
)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, tmp_path, monkeypatch)


UNIFORM = 1 / math.sqrt(12)
"""The root-mean-square error of rounding to the nearest, in steps."""


def compared(
    reference: onnx.ModelProto, candidate: onnx.ModelProto, *, drawn: bool = False
) -> Validation:
    """The verdict on images as the file was calibrated on, or on what is drawn without any."""
    sides = [OnnxSide(n, ir.from_proto(m)) for n, m in (("float", reference), ("int8", candidate))]
    data = () if drawn else ({"x": images_of(999)},)
    return validate_sides(sides[0], sides[1], ValidationOptions(data=data))


SCHEMES = {
    "qdq-per-channel": Scheme(),
    "qdq-per-tensor-uint8": Scheme(per_channel=False, weights=QuantType.QUInt8, opset=13),
    "qdq-int8-opset-21": Scheme(activations=QuantType.QInt8, opset=21),
    "int4-weights": Scheme(weights=QuantType.QInt4, opset=21),
    "qoperator": Scheme(qdq=False),
    "dynamic": Scheme(static=False, weights=QuantType.QUInt8),
}


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("drawn", [True, False])
def test_an_honest_file_is_as_far_off_as_its_steps_explain(scheme: Scheme, drawn: bool) -> None:
    model = drawn_net(np.random.default_rng(2), scheme.opset, norms=True)
    found = compared(model, quantised(model, scheme), drawn=drawn)
    assert found.ok, found.blame
    assert found.yardstick == "quantisation noise"
    assert found.noise
    for site in found.noise:
        # Twelve times the power is allowed: rounding to the nearest is at 1 / sqrt(12) of it.
        assert UNIFORM / 2 < site.ratio < 2 * UNIFORM
        assert site.weight_steps is not None
        assert site.weight_steps < 2 * UNIFORM
        assert site.snr_db is not None
        assert site.least_snr_db is not None
        assert 7 < site.snr_db - site.least_snr_db < 14
    assert any("not judged on these" in note for note in found.notes) == drawn


def test_fewer_bits_explain_more_noise() -> None:
    model = drawn_net(np.random.default_rng(2), 21, norms=False)
    ratios = {}
    for weights in (QuantType.QInt8, QuantType.QInt4):
        (found, *_) = compared(model, quantised(model, Scheme(opset=21, weights=weights))).outputs
        ratios[weights] = found.snr_db
    # 6.02 dB a bit, of the weights alone.
    assert 12 < ratios[QuantType.QInt8] - ratios[QuantType.QInt4] < 26


def named(case: Faulty, found: Validation) -> bool:
    """Whether the first thing said is the fault, at its site and of its kind."""
    first = next((site for site in found.noise if site.fault is not None), None)
    if first is not None:
        assert first.fault is not None
        return first.name in case.sites and first.fault.kind in case.kinds
    # A float convolution that reads quantised values is no quantised one.
    said = found.blame or ""
    return any(f" {site}: " in said for site in case.sites) and any(k in said for k in case.kinds)


def cases() -> Iterator[tuple[str, Faulty]]:
    """The first of each fault that a seed draws."""
    seen: Counter[str] = Counter()
    for case in faulty_files(5, 60):
        seen[case.fault] += 1
        if seen[case.fault] == 1:
            yield case.fault, case


def test_each_fault_is_named() -> None:
    found = {fault: (case, compared(case.float_model, case.model)) for fault, case in cases()}
    assert found.keys() == {change.__name__ for change in CHANGES}
    for fault, (case, verdict) in found.items():
        assert verdict.verdict == "different", fault
        assert named(case, verdict), (fault, verdict.blame)
        with pytest.raises(MismatchError):
            verdict.require_ok("int8.onnx")


def test_on_drawn_inputs_ranges_are_not_judged() -> None:
    case = next(case for fault, case in cases() if fault == "range_of_another")
    assert not compared(case.float_model, case.model).ok
    faults = [s.fault for s in compared(case.float_model, case.model, drawn=True).noise if s.fault]
    assert all(fault.kind != "range" for fault in faults)


@pytest.mark.long
@pytest.mark.parametrize("seed", [2, 20261])
def test_a_hundred_faults(seed: int) -> None:
    missed = [
        (case.fault, str(case.scheme))
        for case in faulty_files(seed, 100)
        if not named(case, compared(case.float_model, case.model))
    ]
    assert len(missed) <= 5, missed


@pytest.mark.long
@pytest.mark.parametrize("first", [0, 5000])
def test_fifty_honest_files(first: int) -> None:
    """None is called broken; the figures that the limits were held against."""
    for seed in range(first, first + 50):
        model, file, scheme = honest_file(seed)
        for drawn in (True, False):
            found = compared(model, file, drawn=drawn)
            assert found.ok, (seed, str(scheme), found.blame)
            assert max(check.rms / check.limit for check in found.outputs) < 0.7
            for site in found.noise:
                assert site.ratio < 0.6
                assert drawn or site.saturated < 0.01


@pytest.mark.long
def test_fifty_honest_files_of_other_networks() -> None:
    """With sums, pools, norms and other activations between, and 16 bits of activations too."""
    for seed in range(50):
        draw = np.random.default_rng(seed)
        scheme = drawn_scheme(draw)
        if seed % 7 == 0:
            scheme = Scheme(opset=21, activations=QuantType.QUInt16)
        elif scheme.opset < 17:  # HardSwish and its like are younger
            scheme = replace(scheme, opset=17)
        model = wide_net(draw, scheme.opset)
        found = compared(model, quantised(model, scheme, seed), drawn=bool(seed % 2))
        assert found.ok, (seed, str(scheme), found.blame)


def test_without_names_convolutions_are_paired_in_order() -> None:
    model = drawn_net(np.random.default_rng(2), 17, norms=True)
    file = quantised(model, Scheme())
    for node in file.graph.node:
        node.name = ""
    found = compared(model, file)
    assert found.ok
    assert len(found.noise) == sum("Conv" in node.op_type for node in model.graph.node)
    assert any("paired with the float ones in order" in note for note in found.notes)


@pytest.mark.parametrize("qdq", [True, False])
@pytest.mark.parametrize("change", ["shorter", "longer", "zero points", "bias"])
def test_what_does_not_fit_is_named(qdq: bool, change: str) -> None:
    model = drawn_net(np.random.default_rng(2), 17, norms=False)
    file = File(quantised(model, Scheme(qdq=qdq)))
    conv = list(file.convs())[1]
    name = {"bias": conv.bias, "zero points": conv.weight_zero}.get(change, conv.weight_scale)
    assert name is not None
    held = file.array(name)
    file.write(name, np.append(held, held[:1]) if change == "longer" else held[:-1])
    found = compared(model, file.model)
    assert found.verdict == "different"
    if change == "bias":
        return  # ONNX Runtime says so
    fault = found.noise[0].fault
    assert found.noise[0].name == conv.site
    assert fault is not None
    assert fault.kind == "shape"
    assert f"{held.size + (1 if change == 'longer' else -1)} numbers, and its weight" in fault.text
    assert any("was not run" in note for note in found.notes)


# The weight alone


def rows(float_rows: np.ndarray, scales: np.ndarray, zero: int = 0) -> Rows:
    """The numbers of a weight, rounded to the nearest, in uint8 or int8."""
    low, high = (0, 255) if zero else (-128, 127)
    steps = np.broadcast_to(scales[:, None], float_rows.shape)
    numbers = np.clip(np.round(float_rows / steps) + zero, low, high)
    return Rows(numbers, steps, np.full(float_rows.shape, float(zero)), low, high)


def weight() -> tuple[FloatRows, np.ndarray]:
    draw = np.random.default_rng(1)
    found = draw.normal(size=(8, 18)) * np.exp(draw.normal(0, 0.7, 8))[:, None]
    return FloatRows("a", found, np.zeros(8), folded=False), np.abs(found).max(axis=1) / 127


def test_the_nearest_numbers_belong_and_the_other_neighbours_too() -> None:
    own, scales = weight()
    made = rows(own.weight, scales)
    check = check_weight(made, own, [own])
    assert check.fault is None
    assert check.steps <= 0.5
    # As AdaRound may: each number below or above, whichever.
    above = np.random.default_rng(2).random(made.numbers.shape) < 0.5
    numbers = np.clip(np.floor(own.weight / made.steps) + above, made.low, made.high)
    either = Rows(numbers, made.steps, made.zeros, made.low, made.high)
    assert check_weight(either, own, [own]).fault is None


def test_a_zero_point_that_was_lost() -> None:
    own, scales = weight()
    made = rows(own.weight, scales, zero=128)
    lost = Rows(made.numbers, made.steps, np.zeros_like(made.zeros), made.low, made.high)
    fault = check_weight(lost, own, [own]).fault
    assert fault is not None
    assert fault.kind == "zero point"
    assert "the zero point is 0, and 128 fits" in fault.text
    assert "it was lost" in fault.text


def test_whose_scale_it_is() -> None:
    own, scales = weight()
    made = rows(own.weight, scales)
    moved = scales.copy()
    moved[3] = scales[4]
    cut = np.tile(scales[:4], 2)
    for wrong, text in (
        (moved, "channel 3: the scale is .* that there belongs to channel 4"),
        (cut, "channels 4 to 7: .* belongs to channels 0 to 3: scales that were not cut along"),
        (scales * 2, "all are 2 times what fits"),
    ):
        steps = np.broadcast_to(wrong[:, None], made.steps.shape)
        fault = check_weight(Rows(made.numbers, steps, made.zeros, -128, 127), own, [own]).fault
        assert fault is not None
        assert fault.kind == "scale"
        assert re.search(text, fault.text), fault.text


def test_whose_weight_it_is() -> None:
    own, scales = weight()
    other = FloatRows("b", own.weight[::-1] + 0.3, np.zeros(8), folded=False)
    swapped = rows(own.weight[[1, 0, *range(2, 8)]], scales[[1, 0, *range(2, 8)]])
    fault = check_weight(swapped, own, [own, other]).fault
    assert fault is not None
    assert fault.text == "channel 0 holds that of channel 1, channel 1 holds that of channel 0"
    elsewhere = rows(other.weight, np.abs(other.weight).max(axis=1) / 127)
    fault = check_weight(elsewhere, own, [own, other]).fault
    assert fault is not None
    assert fault.text.startswith("channel 0 holds that of channel 0 of b")
    assert fault.kind == "weight"


def test_numbers_of_nothing() -> None:
    own, scales = weight()
    noise = rows(np.random.default_rng(5).normal(size=(8, 18)), scales)
    fault = check_weight(noise, own, [own]).fault
    assert fault is not None
    assert "are not those of the float weight" in fault.text


# Torch models, the command line, files that are not comparable


def in_torch(model: onnx.ModelProto) -> nn.Module:
    """A drawn network as a torch module, with the names that its convolutions have there."""
    held = {t.name: torch.tensor(numpy_helper.to_array(t)) for t in model.graph.initializer}
    layers: dict[str, nn.Module] = {}
    for node in model.graph.node:
        if node.op_type == "Relu":
            layers[node.name] = nn.ReLU()
        elif node.op_type == "Clip":
            layers[node.name] = nn.ReLU6()
        else:
            transposed = node.op_type == "ConvTranspose"
            weight = held[f"{node.name}.weight"]
            groups = next(a.i for a in node.attribute if a.name == "group")
            outs, ins = weight.shape[0], weight.shape[1] * groups
            kind, sizes = nn.Conv2d, (ins, outs)
            if transposed:
                kind, sizes = nn.ConvTranspose2d, (outs, ins)
            size = weight.shape[-1]
            conv = kind(*sizes, size, padding=size // 2, groups=groups)
            conv.load_state_dict({"weight": weight, "bias": held[f"{node.name}.bias"]})
            layers[node.name] = conv
    return nn.Sequential(OrderedDict(layers)).eval()


def test_a_torch_model_against_the_quantised_file(tmp_path: Path) -> None:
    exact = drawn_net(np.random.default_rng(4), 17, norms=False)
    onnx.save(quantised(exact, Scheme()), tmp_path / "int8.onnx")
    model, x = in_torch(exact), torch.from_numpy(images_of(3))
    found = groupfx.validate(model, tmp_path / "int8.onnx", (x,))
    assert found.ok, found.blame
    names = [node.name for node in exact.graph.node if "Conv" in node.op_type]
    assert sorted(site.name for site in found.noise) == names
    with torch.no_grad():
        model.get_submodule(names[0]).weight[:2] = model.get_submodule(names[0]).weight[:2].flip(0)
    wrong = groupfx.validate(model, tmp_path / "int8.onnx", (x,))
    assert wrong.first_site is not None
    assert wrong.first_site.name == names[0]
    assert "channel 0 holds that of channel 1" in (wrong.blame or "")


def test_the_command_line_says_which_yardstick(cli: Cli) -> None:
    model, file, _ = honest_file(5)
    onnx.save(model, "float.onnx")
    onnx.save(file, "int8.onnx")
    np.savez("images.npz", x=images_of(999))
    command = ["validate", "float.onnx", "int8.onnx", "--inputs", "images.npz", "--json", "r.json"]
    run = cli(*command)
    assert run.code == 0
    text = " ".join(run.out.split())
    assert "held against the noise that the steps of whole numbers explain, not against" in text
    assert "Same network, to the noise of its whole numbers." in text
    told = check_json(Path("r.json").read_text(), "groupfx.validation/1")
    assert told["yardstick"] == "quantisation noise"
    ratios = [site["ratio"] for site in told["noise"]]
    assert ratios == sorted(ratios, reverse=True)
    tensor = next(t for t in file.graph.initializer if t.name.endswith("weight_quantized"))
    array = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array[::-1]), tensor.name))
    onnx.save(file, "int8.onnx")
    assert cli(*command).code == 1
    told = check_json(Path("r.json").read_text(), "groupfx.validation/1")
    assert told["noise"][0]["fault"]["kind"] == "weight"


def test_a_limit_of_ones_own() -> None:
    model, file, _ = honest_file(5)
    sides = [OnnxSide(n, ir.from_proto(m)) for n, m in (("float", model), ("int8", file))]
    for limit, ok in ((1.0, True), (1e-4, False)):
        found = validate_sides(sides[0], sides[1], ValidationOptions(atol={"y": limit}))
        assert found.ok == ok
        assert all(check.limit == limit for check in found.outputs)
    assert "atol is 0.0001" in (found.blame or "")
    with pytest.raises(UsageError, match="atol is given for z"):
        validate_sides(sides[0], sides[1], ValidationOptions(atol={"z": 1.0}))


def test_a_network_that_gives_zeros_is_not_comparable() -> None:
    model = drawn_net(np.random.default_rng(2), 17, norms=False)
    for tensor in model.graph.initializer:
        zeros = np.zeros_like(numpy_helper.to_array(tensor))
        if tensor.name.startswith("conv"):
            tensor.CopyFrom(numpy_helper.from_array(zeros, tensor.name))
    found = compared(model, quantised(model, Scheme()))
    assert found.verdict == "not comparable"
    assert "nothing but zeros" in (found.blame or "")


def test_pairs_around_floats_are_operators_as_others() -> None:
    """A file that rounds values, but holds floats, is held to what it says, to rounding."""
    model = drawn_net(np.random.default_rng(2), 17, norms=False)
    file = quantised(model, Scheme())
    assert compared(model, file).yardstick == "quantisation noise"
    assert compared(file, file).yardstick == "rounding"
    rounding = onnx.ModelProto()
    rounding.CopyFrom(model)
    scale = numpy_helper.from_array(np.float32(0.1), "s")
    zero = numpy_helper.from_array(np.uint8(128), "z")
    rounding.graph.initializer.extend([scale, zero])
    first = rounding.graph.node[0]
    first.input[0] = "back"
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", "s", "z"], ["there"], name="there"),
        onnx.helper.make_node("DequantizeLinear", ["there", "s", "z"], ["back"], name="back"),
    ]
    for place, node in enumerate(nodes):
        rounding.graph.node.insert(place, node)
    assert compared(model, rounding).yardstick == "rounding"


# Files that were split


def split(model: onnx.ModelProto, **options: object) -> onnx.ModelProto | None:
    """The file with its grouped convolutions split; None where it has none."""
    made = rewrite_graph(ir.from_proto(model), [SplitGroupedConv(depthwise="split", **options)])
    return proto_of(made.model) if made.sites else None


def split_files(
    seeds: Iterable[int], **options: object
) -> Iterator[tuple[int, onnx.ModelProto, File]]:
    for seed in seeds:
        model, file, _ = honest_file(seed)
        branches = split(file, **options)
        if branches is not None:
            yield seed, model, File(branches)


def branch_scales(file: File) -> list[list[str]]:
    """The names of the weight scales of each site that was split, which differ in numbers."""
    names: dict[str, list[str]] = {}
    for conv in file.convs():
        site, dot, number = conv.site.rpartition(".")
        if dot and number.isdigit() and conv.weight_scale and conv.weight_scale in file.held:
            names.setdefault(site, []).append(conv.weight_scale)
    return [found for found in names.values() if len(set(found)) > 1]


@pytest.mark.parametrize("branches", [None, 2])
def test_a_split_file_is_as_honest_as_before(branches: int | None) -> None:
    found = [(s, m, f) for s, m, f in split_files(range(8), branches=branches)]
    assert len(found) > 2
    for seed, model, file in found:
        verdict = compared(model, file.model)
        assert verdict.ok, (seed, verdict.blame)
        assert not verdict.notes


@pytest.mark.parametrize("seed", [13, 36, 46])
def test_a_branch_with_the_scales_of_the_first(seed: int) -> None:
    """What a rewrite would do that cuts the weight, and not its scales."""
    ((_, model, file),) = split_files([seed])
    (names, *_) = branch_scales(file)
    scales = [file.array(name) for name in names[:2]]
    assert np.ptp(scales[1] / scales[0]) > 0.2
    file.write(names[1], scales[0])
    fault = compared(model, file.model).noise[0].fault
    assert fault is not None
    assert fault.kind == "scale"
    assert "that there belongs to channels 0" in fault.text
