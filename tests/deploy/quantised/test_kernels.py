"""What a rewrite of a quantised file costs: int8 weights count, and lost kernels are named."""

import onnx_ir as ir
import pytest

from groupfx.deploy.forms.rewrite_onnx import rewrite_graph
from groupfx.passes import SplitGroupedConv
from tests.deploy.quantised.quantised_files import QuantisedCase, quantised_file

CASES = {
    "qdq": (QuantisedCase(), True),
    "relu": (QuantisedCase(activation="Relu"), True),
    "output in floats": (QuantisedCase(quantised_output=False), False),
    "weight only": (QuantisedCase(layout="weight only"), False),
    "transposed": (QuantisedCase(transposed=True), False),
    "int4": (QuantisedCase(weight="int4", opset=21), False),
}
OUTSIDE = SplitGroupedConv(qdq="outside")


@pytest.mark.parametrize("name", CASES)
def test_int8_weights_count_and_lost_kernels_are_named(name: str) -> None:
    case, lost = CASES[name]
    model = ir.from_proto(quantised_file(case))
    made = rewrite_graph(model, [OUTSIDE])
    (site,) = made.sites
    assert site.macs == made.before.macs == made.after.macs
    weights = case.channels[0] * case.outputs * 9
    assert made.before.parameters - weights < weights
    assert made.after.parameters == made.before.parameters
    told = [note for note in made.notes if "int8" in note]
    assert len(told) == lost
    assert all("1 of the sites are quantized (conv)" in note for note in told)
    inside = rewrite_graph(model, [SplitGroupedConv()])
    assert not inside.notes
    nothing = rewrite_graph(model, [SplitGroupedConv(qdq="outside", skip=("conv",))])
    assert not nothing.sites
    assert not nothing.notes


def test_pairs_stay_where_a_runtime_would_round_the_bias_of_a_branch() -> None:
    model = ir.from_proto(quantised_file(QuantisedCase(transposed=True, bias="float")))
    (site,) = rewrite_graph(model, [SplitGroupedConv()]).sites
    assert any("its Q/DQ pairs stay around the branches" in note for note in site.notes)
    model = ir.from_proto(quantised_file(QuantisedCase(bias="float")))
    assert not rewrite_graph(model, [SplitGroupedConv()]).sites[0].notes
