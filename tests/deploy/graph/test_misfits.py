"""Files whose weights do not fit: the node and the numbers are named, and nothing is rewritten."""

from pathlib import Path

import onnx
import pytest
from onnx import helper

import groupfx
from groupfx.errors import GroupfxError
from tests.deploy.validate.small_files import numbers, value, write

# Channels of the input, weight, bias, more attributes, and what is said.
MISFITS = {
    "channels": (
        *(32, (10, 32, 3, 3), None, {}),
        "its input has 32 channels, and its weight [10, 32, 3, 3] with 2 groups takes 64",
    ),
    "kernel": (
        *(6, (10, 3, 3, 3), None, {"kernel_shape": [5, 5]}),
        "its kernel_shape is [5, 5], and its weight has the shape [10, 3, 3, 3]",
    ),
    "pads": (
        *(6, (10, 3, 3, 3), None, {"pads": [1, 1]}),
        "it has 2 pads, and its weight [10, 3, 3, 3] needs 4",
    ),
    "bias": (
        *(6, (10, 3, 3, 3), 5, {}),
        "its bias has the shape [5], and 10 channels come out",
    ),
    "groups": (
        *(6, (9, 3, 3, 3), None, {}),
        "its weight has the shape [9, 3, 3, 3], which does not fit 2 groups",
    ),
}


def misfit(path: Path, case: str) -> Path:
    channels, weight, bias, attributes, _ = MISFITS[case]
    held = {"w": numbers(*weight)} | ({} if bias is None else {"b": numbers(bias)})
    node = helper.make_node("Conv", ["x", *held], ["y"], name="conv", group=2, **attributes)
    return write(path, [node], [value("x", ["N", channels, 9, 9])], [value("y", None)], held)


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_is_left_and_told(case: str, tmp_path: Path) -> None:
    path = misfit(tmp_path / "m.onnx", case)
    (site,) = groupfx.find_onnx(path)
    assert (site.name, site.reason) == ("conv", MISFITS[case][-1])
    made = groupfx.rewrite_onnx(path, tmp_path / "out.onnx")
    assert made.rewrite.sites == ()
    with pytest.raises(GroupfxError, match="conv"):
        groupfx.validate(path, path)


def test_what_fits_is_split(tmp_path: Path) -> None:
    held = {"w": numbers(10, 3, 3, 3), "b": numbers(10)}
    fields = {"group": 2, "kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv", **fields)
    path = write(
        tmp_path / "m.onnx", [node], [value("x", ["N", 6, 9, 9])], [value("y", None)], held
    )
    made = groupfx.rewrite_onnx(path, tmp_path / "out.onnx")
    assert [entry.name for entry in made.rewrite.sites] == ["conv"]
    kinds = [entry.op_type for entry in onnx.load(tmp_path / "out.onnx").graph.node]
    assert kinds.count("Conv") == 2
