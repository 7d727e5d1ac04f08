"""Files of ONNX Runtime's own quantiser, whole networks: split, merged, and proved."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import groupfx
from tests.deploy.quantised.kernels_run import results, whole_kernels
from tests.deploy.quantised.quantizer_files import SIZE, by_quantizer, network
from tests.deploy.quantised.test_merging import held, merge, nodes
from tests.deploy.quantised.test_splitting import split

KINDS = {
    "pairs, opset 13": (13, {}),
    "pairs, opset 21": (21, {"per_channel": False}),
    "pairs, int8": (17, {"data": "int8"}),
    "operators": (17, {"operators": True}),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_network_is_split_and_comes_back(name: str, tmp_path: Path) -> None:
    opset, options = KINDS[name]
    quantised = by_quantizer(network(opset=opset), tmp_path, **options)
    made = split(quantised)
    assert [site.branches for site in made.sites] == [4, 4]
    assert all(site.macs for site in made.sites)
    after = ir.to_proto(made.model)
    x = np.random.default_rng(1).normal(size=(3, 3, SIZE, SIZE)).astype(np.float32)
    for one, other in zip(results(quantised, x), results(after, x), strict=True):
        np.testing.assert_array_equal(one, other)
    before = whole_kernels(quantised, tmp_path)
    # ONNX Runtime makes fewer of them of int8 data, before and after alike.
    assert before == (4 if "int8" in name else 7)
    assert whole_kernels(after, tmp_path) == before + 2 * 3
    back = ir.to_proto(merge(after).model)
    assert held(back) == held(quantised)
    assert nodes(back) == nodes(quantised)


def test_the_rewrite_of_a_network_is_validated(tmp_path: Path) -> None:
    onnx.save(by_quantizer(network(blocks=1), tmp_path), tmp_path / "m.onnx")
    made = groupfx.rewrite_onnx(tmp_path / "m.onnx", tmp_path / "out.onnx")
    assert made.validation is not None
    assert made.validation.verdict == "same"
    assert [check.ok for check in made.validation.sites] == [True] * 4


def test_a_tie_that_the_optimised_original_turns_over_is_no_mistake(tmp_path: Path) -> None:
    # Of 40 seeds the one whose sums on whole numbers and in floats round to different numbers.
    model = network(blocks=3, seed=32, opset=19)
    onnx.save(by_quantizer(model, tmp_path, per_channel=False), tmp_path / "m.onnx")
    found = groupfx.validate(tmp_path / "m.onnx", tmp_path / "m.onnx")
    assert found.verdict == "same", found.blame
