"""Draw files with a wrong operator, each checked to be wrong before anyone else sees it.

In ONNX Runtime, the value that the operator gives, or an output, must differ from the honest file's
by 32 roundings of its largest number, in one of several batches and magnitudes. What differs is
the operator alone: all in front of it is bit for bit the same.
"""

import copy
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from groupfx.deploy import Validation
from tests.deploy.validate.corruption_draws import Draws, Values
from tests.deploy.validate.corruption_models import CorruptedModel
from tests.deploy.validate.onnx_corruptions import site_of
from tests.deploy.validate.operator_corruptions import OPERATOR_CORRUPTIONS, Place

LEAST_MOVE = 32 * 2.0**-24
_MOST_DRAWS = 12
_SILENT = 4


@dataclass(frozen=True)
class WrongOperator:
    """A file with one wrong operator; `names` are those of nodes that may be named for it."""

    kind: str
    node: str
    text: str
    names: frozenset[str]
    proto: onnx.ModelProto


class OperatorDraws(Draws):
    """The honest file of a model, and files with a wrong operator."""

    def __init__(self, case: CorruptedModel, folder: Path) -> None:
        super().__init__(case, folder)
        self.feeds = self._feeds()
        self.tried = list(_more(self.feeds))
        self.everything = [name for node in self.honest.graph.node for name in node.output if name]
        self.known = [_run(self.honest, feeds, self.everything) for feeds in self.tried]
        self.shapes = {name: value.shape for name, value in self.known[0].items()}
        self.shapes |= {name: value.shape for name, value in self.feeds.items()}
        self.outputs = [value.name for value in self.honest.graph.output]

    def wrong_operators(self, count: int) -> list[WrongOperator]:
        """So many, of all kinds in turn."""
        nodes = [node.name for node in self.honest.graph.node if site_of(node) is None]
        random = np.random.default_rng(zlib.crc32(self.case.id.encode()))
        found: list[WrongOperator] = []
        seen: set[tuple[str, str]] = set()
        kinds = list(OPERATOR_CORRUPTIONS)
        for turn in range(10 * len(kinds)):
            kind = kinds[turn % len(kinds)]
            order = random.permutation(nodes)
            left = [str(name) for name in order if (kind, str(name)) not in seen]
            made = self._first(kind, left, seen, random)
            if made is not None:
                found.append(made)
            if len(found) == count:
                break
        return found

    def _first(
        self, kind: str, nodes: list[str], seen: set[tuple[str, str]], random: np.random.Generator
    ) -> WrongOperator | None:
        tries = 0
        for name in nodes:
            proto = copy.deepcopy(self.honest)
            text = OPERATOR_CORRUPTIONS[kind](Place(proto, name, self.shapes), random)
            if text is None:
                seen.add((kind, name))
                continue
            tries += 1
            if tries > _MOST_DRAWS:
                return None
            seen.add((kind, name))
            if self._moves(proto, name):
                before = {node.name for node in self.honest.graph.node}
                new = {node.name for node in proto.graph.node} - before
                names = {name, *new} if kind != "bypassed" else self._readers(name)
                return WrongOperator(kind, name, text, frozenset(names), proto)
        return None

    def _readers(self, name: str) -> set[str]:
        """The nodes that read what a node gives: what is not there cannot be named otherwise."""
        nodes = self.honest.graph.node
        (made,) = (set(node.output) for node in nodes if node.name == name)
        readers = [node for node in nodes if made & set(node.input)]
        sites = {site_of(node) for node in readers} - {None}
        return {node.name for node in nodes if node in readers or site_of(node) in sites}

    def _moves(self, proto: onnx.ModelProto, name: str) -> bool:
        node = next(node for node in self.honest.graph.node if node.name == name)
        made = {value for each in proto.graph.node for value in each.output}
        wanted = [value for value in (*node.output, *self.outputs) if value in made]
        try:
            onnx.checker.check_model(proto, full_check=True)
            runs = [_run(proto, feeds, wanted) for feeds in self.tried]
        except Exception:  # each of onnx's parts has errors of its own
            return False
        return any(
            _apart(known[value], found[value]) > LEAST_MOVE
            for known, found in zip(self.known, runs, strict=True)
            for value in wanted
        )


def _more(feeds: Values) -> Iterator[Values]:
    """The inputs, in other batches, larger and of one sign."""
    yield feeds
    for rows in (3, 5):
        yield {name: np.resize(value, (rows, *value.shape[1:])) for name, value in feeds.items()}
    if all(value.dtype.kind == "f" for value in feeds.values()):
        for factor in (-1.0, 300.0):
            yield {n: (value * factor).astype(value.dtype) for n, value in feeds.items()}


def _run(proto: onnx.ModelProto, feeds: Values, names: list[str]) -> dict[str, Any]:
    opened = copy.deepcopy(proto)
    known = {value.name for value in opened.graph.output}
    opened.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in known)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = _SILENT
    session = ort.InferenceSession(
        opened.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def _apart(known: Any, found: Any) -> float:
    if known.shape != found.shape:
        return float("inf")
    with np.errstate(all="ignore"):
        off = np.abs(known.astype(np.float64) - found.astype(np.float64))
        size = float(np.abs(known[np.isfinite(known)]).max(initial=0.0)) or 1.0
    finite = off[np.isfinite(off)]
    return float(finite.max(initial=0.0)) / size


def is_named(wrong: WrongOperator, verdict: Validation) -> bool:
    """Whether the verdict names the operator, or says which one of the reference is left out."""
    first = verdict.first_operator
    if first is None:
        return False
    said = ("which the reference has there", "of the reference adds is missing")
    if wrong.kind == "bypassed" and any(text in str(first.reason) for text in said):
        return True
    return first.name in wrong.names
