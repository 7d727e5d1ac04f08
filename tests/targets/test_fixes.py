"""Every remedy that a fact names is one: on the smallest file that the fact speaks against."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import groupfx
from groupfx.targets import Fact, Target, targets
from groupfx.targets.facts import OPERATION_TOPICS

CHANNELS = {
    "grouped": (6, 6, 3),
    "depthwise": (4, 4, 4),
    "depthwise-multiplier": (4, 8, 4),
    "transposed": (6, 9, 3),
}


def remedies() -> Iterator[object]:
    """Each fact on a convolution that names a remedy, once for each of its remedies."""
    for target in targets():
        for number, fact in enumerate(target.facts):
            if fact.topic not in OPERATION_TOPICS and target.grammar is None:
                for fix in fact.fix:
                    name = f"{target.name}-{number}-{fact.topic}-{fix}"
                    yield pytest.param(target, fact, fix, id=name)


def spoken_against(fact: Fact, path: Path) -> Path:
    """The smallest model that a fact fits."""
    where = fact.where
    dims = where.dims[0] if where.dims else 2
    inputs, outputs, groups = CHANNELS[(where.kind or ("grouped",))[0]]
    dilation = 2 if where.dilated else 1
    for limit in (where.out_channels_above, where.channels_above, where.reach_above):
        if limit is not None:
            # Each group is within the limit, and all together are not.
            groups = 8
            inputs = outputs = (limit // dilation // groups + 1) * groups
    transposed = where.kind == ("transposed",)
    sides = (inputs, outputs // groups) if transposed else (outputs, inputs // groups)
    rng = np.random.default_rng(4)
    weight = rng.integers(-9, 9, (*sides, *(1,) * dims)).astype(np.int8)
    nodes = []
    tensors = {"w": weight.astype(np.float32)}
    if "qdq" in where.layout:
        along = 1 if transposed else 0
        scale = np.full(weight.shape[along], 0.5, np.float32)
        tensors = {"wq": weight, "ws": scale, "xs": np.float32(0.25), "xz": np.int8(0)}
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
            helper.make_node("DequantizeLinear", ["wq", "ws"], ["w"], axis=along),
        ]
    kind, source = "ConvTranspose" if transposed else "Conv", "xd" if nodes else "x"
    fields = {"group": groups, "dilations": [dilation] * dims}
    quantised = bool(nodes)
    result = "c" if quantised else "y"
    nodes.append(helper.make_node(kind, [source, "w"], [result], name="site", **fields))
    if quantised:
        nodes.append(helper.make_node("QuantizeLinear", ["c", "xs", "xz"], ["cq"]))
        nodes.append(helper.make_node("DequantizeLinear", ["cq", "xs", "xz"], ["y"]))
    values = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, size, *(3,) * dims])
        for name, size in (("x", inputs), ("y", outputs))
    ]
    initializers = [onnx.numpy_helper.from_array(np.asarray(t), n) for n, t in tensors.items()]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], initializers)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


@pytest.mark.parametrize(("target", "fact", "fix"), list(remedies()))
def test_a_remedy_is_one(target: Target, fact: Fact, fix: str, tmp_path: Path) -> None:
    path = spoken_against(fact, tmp_path / "net.onnx")
    found = groupfx.check(path, target=target.name, methods=fact.methods)
    (site,) = found.before.sites
    assert fact in site.against
    made = groupfx.rewrite_onnx(path, tmp_path / "made.onnx", passes=[fix], verify=False)
    assert made.rewrite.changed
    after = groupfx.check(tmp_path / "made.onnx", target=target.name, methods=fact.methods)
    held = [each.subject.name for each in after.before.all if fact in each.against]
    assert held == [], "the fact still speaks against it"
    # All remedies together leave nothing.
    assert found.last.ok is True, found.left


def test_remedies_are_tried() -> None:
    assert len(list(remedies())) == 15
