"""Draw corrupted files of a model, each checked to be wrong before anyone else sees it.

What a site computes from one input, in the honest and in the corrupted file, must differ by ten
times what rounding explains; else the corruption is drawn again. ONNX Runtime runs both files, and
`site_oracle` says what rounding explains: nothing here asks the validator.
"""

import contextlib
import copy
import fcntl
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from torch import nn

import groupfx
from groupfx.deploy import OnnxSide, TorchSide, Validation, ValidationOptions, validate_sides
from groupfx.deploy.graph.files import read_onnx
from groupfx.running.inputs import ExampleInputs
from tests.deploy.validate.corruption_models import CorruptedModel
from tests.deploy.validate.onnx_corruptions import CORRUPTIONS, MarkedSite, site_names
from tests.deploy.validate.site_oracle import site_oracles

Array = np.ndarray[Any, np.dtype[Any]]
Values = Mapping[str, Array]

LEAST_MOVE = 10.0
_MOST_DRAWS = 60
_SILENT = 4


@dataclass(frozen=True)
class WrongResult:
    """A file with one mistake in it, and how many others were drawn before it.

    `moved` is how far the guilty site's output is from the honest one, by what rounding explains.
    """

    kind: str
    site: str
    text: str
    proto: onnx.ModelProto
    moved: float
    redraws: int


class Draws:
    """The honest file of a model, and wrong ones."""

    def __init__(self, case: CorruptedModel, folder: Path) -> None:
        self.case = case
        self.folder = folder
        self.model = case.build()
        self.honest = self._exported(self.model)
        self.oracles = site_oracles(self.model, case.inputs())
        self.sites = site_names(self.honest)
        self.values = _values(self.honest, self.sites, self._feeds())
        self.kinds = self._kinds()

    def _kinds(self) -> Mapping[str, tuple[str, ...]]:
        """Kind -> the sites that it can be made in."""
        found = {kind: tuple(filter(self._can(kind), self.sites)) for kind in CORRUPTIONS}
        normed = tuple(name for name in self.sites if self.oracles[name].norm is not None)
        found |= dict.fromkeys(NORM_CHANGES, normed)
        return {kind: sites for kind, sites in found.items() if sites}

    def wrong_files(self) -> list[WrongResult]:
        """As many as the model's share, of all kinds in turn."""
        kinds = list(self.kinds)
        return [self.draw(kinds[number % len(kinds)], number) for number in range(self.case.count)]

    def draw(self, kind: str, number: int) -> WrongResult:
        """A wrong file of a kind; AssertionError where none of many moves its site's output."""
        random = np.random.default_rng([zlib.crc32(self.case.id.encode()), number])
        for redraws in range(_MOST_DRAWS):
            site = str(random.choice(self.kinds[kind]))
            proto, text = self._corrupted(kind, site, random)
            moved = self._moved(proto, site)
            if moved >= LEAST_MOVE:
                return WrongResult(kind, site, text, proto, moved, redraws)
        raise AssertionError(f"{_MOST_DRAWS} draws of {kind} moved nothing in {self.case.id}")

    def verdict(self, proto: onnx.ModelProto) -> Validation:
        """What the validator says of a file."""
        path = self.folder / "candidate.onnx"
        onnx.save(proto, path)
        candidate = OnnxSide(str(path), read_onnx(path))
        return validate_sides(self._reference, candidate, ValidationOptions(given=True))

    @cached_property
    def _reference(self) -> "KnownSide":
        return KnownSide.of(self.model, ExampleInputs.of(self.case.inputs()), self.case.id)

    def _feeds(self) -> Values:
        (name,) = (value.name for value in self.honest.graph.input)
        inputs = self.case.inputs()
        (tensor,) = inputs.values() if isinstance(inputs, dict) else inputs
        return {name: tensor.numpy()}

    def _exported(self, model: nn.Module) -> onnx.ModelProto:
        path = self.folder / "honest.onnx"
        groupfx.export(self.case.rewritten(model), self.case.inputs(), path, overwrite=True)
        return onnx.load(path)

    def _can(self, kind: str) -> Any:
        def possible(site: str) -> bool:
            proto = copy.deepcopy(self.honest)
            made = CORRUPTIONS[kind](MarkedSite(proto, site), np.random.default_rng(0))
            return made is not None

        return possible

    def _corrupted(
        self, kind: str, site: str, random: np.random.Generator
    ) -> tuple[onnx.ModelProto, str]:
        if kind in NORM_CHANGES:
            return self._with_other_norm(kind, site, random)
        proto = copy.deepcopy(self.honest)
        text = CORRUPTIONS[kind](MarkedSite(proto, site), random)
        assert text is not None
        onnx.checker.check_model(proto, full_check=True)
        return proto, text

    def _with_other_norm(
        self, kind: str, site: str, random: np.random.Generator
    ) -> tuple[onnx.ModelProto, str]:
        """Exported again from a model with one number of a BatchNorm changed."""
        model, name = copy.deepcopy(self.model), self.oracles[site].norm_name
        assert name is not None
        text = NORM_CHANGES[kind](model.get_submodule(name), random)
        return self._exported(model), f"{name}: {text}"

    def _moved(self, proto: onnx.ModelProto, site: str) -> float:
        start, before = self.values[site]
        again, after = _values(proto, [site], self._feeds())[site]
        np.testing.assert_array_equal(start, again, err_msg="something else changed as well")
        return self.oracles[site].moved(start, before, after)


def _other_eps(norm: Any, random: np.random.Generator) -> str:
    norm.eps = float(norm.eps * 10 ** random.uniform(-1, 4))
    return f"eps is {norm.eps:.3g}"


def _other_mean(norm: Any, random: np.random.Generator) -> str:
    channel = int(random.integers(len(norm.running_mean)))
    norm.running_mean[channel] += float(10 ** random.uniform(-6, 0))
    return f"the mean of channel {channel} is larger"


def _other_variance(norm: Any, random: np.random.Generator) -> str:
    channel = int(random.integers(len(norm.running_var)))
    norm.running_var[channel] *= 1 + float(10 ** random.uniform(-6, 0))
    return f"the variance of channel {channel} is larger"


NORM_CHANGES = {
    "norm-eps": _other_eps,
    "norm-mean": _other_mean,
    "norm-variance": _other_variance,
}


def _values(
    proto: onnx.ModelProto, sites: list[str], feeds: Values
) -> dict[str, tuple[Array, Array]]:
    """What goes into each site and what comes out, in ONNX Runtime without optimisations."""
    opened = copy.deepcopy(proto)
    ends = {name: (site.start, site.end) for name in sites for site in [MarkedSite(proto, name)]}
    known = {value.name for value in (*opened.graph.input, *opened.graph.output)}
    wanted = {value for pair in ends.values() for value in pair}
    opened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(wanted - known))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = _SILENT
    session = ort.InferenceSession(
        opened.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = sorted(wanted - set(feeds))
    found = dict(zip(names, session.run(names, dict(feeds)), strict=True)) | dict(feeds)
    return {name: (found[start], found[end]) for name, (start, end) in ends.items()}


class KnownSide(TorchSide):
    """A torch side that works out only once what no candidate can change."""

    def wide(self, feeds: Values) -> dict[str, Array]:
        return self._once("wide", feeds, lambda: super(KnownSide, self).wide(feeds))

    def native(self, feeds: Values, dtype: Any) -> dict[str, Array]:
        return self._once(str(dtype), feeds, lambda: super(KnownSide, self).native(feeds, dtype))

    def site_functions(self) -> Any:
        return self._once("sites", {}, super().site_functions)

    def _once(self, what: str, feeds: Values, compute: Any) -> Any:
        key = (what, *((name, array.shape, array.tobytes()) for name, array in feeds.items()))
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]

    @cached_property
    def _known(self) -> dict[Any, Any]:
        return {}


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
