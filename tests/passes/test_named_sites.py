"""An option that names a site names one that is there: a slip of the pen is no success."""

import re
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import groupfx
from groupfx.api.onnx import find_onnx, rewrite_onnx
from groupfx.errors import RewriteError
from groupfx.nn import Flgc2d

X = torch.randn(2, 6, 7, 7)


class ThreeKinds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(6, 6, 1)
        self.stage1 = nn.Sequential(nn.Conv2d(6, 6, 3, groups=2), nn.Conv2d(6, 4, 1, groups=2))
        self.learned = Flgc2d(4, 4, 1, group_num=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.learned(self.stage1(self.stem(x)))
        return result


SPLIT = "split-grouped-conv"
WRONG = {
    f"{SPLIT}:only=stage1.9": "only=stage1.9 names no site; the sites are stage1.1, stage1.0",
    f"{SPLIT}:only=1": "only=1 names no site; the sites are stage1.1, stage1.0",
    f"{SPLIT}:only=stage1.0,only=stage2.*": "only=stage2.* names no site",
    f"{SPLIT}:only=stage1.0#2": "only=stage1.0#2 names no site",
    f"{SPLIT}:only=stem": "only=stem names no site",
    f"{SPLIT}:skip=stage1": "skip=stage1 names no site",
    "freeze-learned-groups:only=stage1.0": "only=stage1.0 names no site; the sites are learned",
    "discover-groups:skip=stage": "skip=stage names no site; ",
}


@pytest.mark.parametrize("way", ["trace", "modules", "export"])
@pytest.mark.parametrize(("text", "told"), WRONG.items(), ids=WRONG)
def test_a_site_that_is_not_there_is_an_error(text: str, told: str, way: str) -> None:
    if text.startswith("freeze") and way == "export":
        pytest.skip("an exported graph has no layers with learned groups")
    for ask in (groupfx.rewrite, groupfx.find):
        with pytest.raises(RewriteError, match=re.escape(told)):
            ask(ThreeKinds(), (X,), passes=[text], way=way)


@pytest.mark.parametrize("text", ["skip=stem", "only=stage1.*,skip=stem", "only=*0,skip=*stem"])
def test_a_site_that_is_there_is_none(text: str) -> None:
    names = [site.name for site in groupfx.find(ThreeKinds(), (X,), passes=[f"{SPLIT}:{text}"])]
    assert names == ["stage1.0", "stage1.1"]
    assert groupfx.rewrite(ThreeKinds(), (X,), passes=[f"{SPLIT}:{text}"]).report.ok


def test_a_later_pass_may_name_what_an_earlier_one_makes() -> None:
    passes = ["freeze-learned-groups:form=split", "discover-groups:skip=learned.*"]
    torch.manual_seed(0)
    model = ThreeKinds()
    groupfx.find(model, (X,), passes=passes)
    assert [site.name for site in groupfx.rewrite(model, (X,), passes=passes).report.sites] == [
        "learned"
    ]
    with pytest.raises(RewriteError, match=re.escape("skip=learned.fold names no site")):
        groupfx.rewrite(model, (X,), passes=[passes[0], "discover-groups:skip=learned.fold"])


def file(path: Path) -> Path:
    weight = helper.make_tensor("w", TensorProto.FLOAT, (4, 2, 1, 1), [1.0] * 8)
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv[0]", group=2)
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, 4, 3, 3)) for n in "xy")
    graph = helper.make_graph([node], "g", [x], [y], [weight])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    return path


def test_it_is_one_in_an_onnx_file_too(tmp_path: Path) -> None:
    path = file(tmp_path / "m.onnx")
    wrong = [f"{SPLIT}:only=conv[1]"]
    with pytest.raises(
        RewriteError, match=re.escape("only=conv[1] names no site; the sites are conv[0]")
    ):
        rewrite_onnx(path, tmp_path / "o.onnx", passes=wrong)
    with pytest.raises(RewriteError, match="names no site"):
        find_onnx(path, passes=wrong)
    assert not (tmp_path / "o.onnx").exists()
    (site,) = rewrite_onnx(path, None, passes=[f"{SPLIT}:only=conv[0]"]).rewrite.sites
    assert site.name == "conv[0]"


def test_a_dense_convolution_is_no_site_of_a_split() -> None:
    with pytest.raises(RewriteError, match="of this pass, but a convolution that it has nothing"):
        groupfx.rewrite(ThreeKinds(), (X,), passes=[f"{SPLIT}:only=stem"], way="trace")
