"""The table of times: what groupfx writes against what torch's own exporter writes.

    python -m tests.benchmarks speed-table [--rows REGEX] [--kept FILE.jsonl] [--quick]

Learned groups are compared with masked dense: torch's own export of the network with the mask
multiplied into the weights. Groups that an author wrote are compared with torch's own export.
`again` is that file against itself, `plain` our export with every site in one piece, `default` what
`groupfx export` writes, `tuned` what `groupfx tune` does. All five race together: heats of new
sessions, ABBA rounds, the thread's own time where one runs; intervals are of 98 %.

A row is kept as a line of JSON when it is done, and is not measured a second time: a table can be
made in pieces. A verdict stands behind a figure that has a bound.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import groupfx
from examples.flgc_digits.network import mobilenet_v2_flgc
from groupfx.api.tuning import feeds_of
from groupfx.deploy import ExportOptions, PreparedExport, prepare_export
from groupfx.deploy.export.onnx_graph import quiet
from groupfx.running.inputs import ExampleInputs
from groupfx.tuning import TuningOptions, tune_graph
from groupfx.tuning.backends import backend_named
from groupfx.tuning.probe import cpu_name
from groupfx.tuning.race import race
from groupfx.tuning.ratios import compare

from .form_speed import resnet_18
from .ordinary import ORDINARY, SIZE

SIDES = ("again", "plain", "default", "tuned")
NEVER_ABOVE = 1.02
_WIDTH = 170
_TRAINED = Path(__file__).parents[2] / "examples" / "flgc_digits"


@dataclass(frozen=True)
class TableNetwork:
    """A network, the images that it takes, and the bounds of its tuned file by batch."""

    name: str
    build: Callable[[], nn.Module]
    size: int
    channels: int = 3
    bounds: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class TimeRow:
    """A network with a batch, on threads."""

    network: TableNetwork
    batch: int
    threads: int

    @property
    def key(self) -> str:
        """What it is called in the file."""
        net, threads = self.network, f"{self.threads} thread{'s'[: self.threads > 1]}"
        return f"{net.name}, {net.size}x{net.size}; batch {self.batch}; {threads}"


def networks() -> Iterator[TableNetwork]:
    """All of them: learned groups, balanced ones, trained ones, and those of authors."""
    for groups, tuned, one, many in ((8, 0.95, 0.35, 0.36), (4, 0.96, 0.43, 0.45)):
        yield from _learned(groups, tuned, one, many)
    yield from _learned(2, 0.98, 0.61, 0.70)
    build = partial(mobilenet_v2_flgc, 8, balanced=True)
    yield TableNetwork("balanced MobileNetV2, 8 groups", build, 32, bounds=((1, 0.85), (16, 0.85)))
    balanced = partial(resnet_18, 8, balanced=True)
    yield TableNetwork("balanced ResNet-18, 8 groups", balanced, 32, bounds=((1, 0.23), (16, 0.23)))
    yield TableNetwork("trained digits", _shipped, 16, channels=1)
    yield TableNetwork("trained digits, 120 epochs", partial(trained, epochs=120), 16, channels=1)
    wide = partial(trained, epochs=8, width=1.0, size=32)
    yield TableNetwork("trained digits, full width, 8 epochs", wide, 32, channels=1)
    for name, build in ORDINARY.items():
        yield TableNetwork(name, build, SIZE)


def _learned(groups: int, mobilenet: float, one: float, many: float) -> Iterator[TableNetwork]:
    for size in (32, 96):
        build, bounds = partial(mobilenet_v2_flgc, groups), ((1, mobilenet), (16, mobilenet))
        yield TableNetwork(f"MobileNetV2, {groups} groups", build, size, bounds=bounds)
    bounds = ((1, one), (16, many))
    yield TableNetwork(f"ResNet-18, {groups} groups", partial(resnet_18, groups), 32, bounds=bounds)


def rows(pattern: str) -> Iterator[TimeRow]:
    """Those whose key `pattern` is found in, network by network, since exports take long."""
    for network, threads, batch in itertools.product(networks(), (1, 2), (1, 16)):
        row = TimeRow(network, batch, threads)
        if re.search(pattern, row.key):
            yield row


def _shipped() -> nn.Module:
    return groupfx.load(_TRAINED.with_suffix(".pt")).model


def trained(epochs: int, width: float = 0.3, size: int = 16) -> nn.Module:
    """The example's network after so many epochs on the digits; checkpoints are kept."""
    folder = Path(tempfile.gettempdir()) / f"groupfx-digits-{epochs}-{width}-{size}"
    place = folder / "last.pth"
    if not place.exists():
        numbers = {"epochs": epochs, "width": width, "image-size": size, "checkpoints": folder}
        given = [text for name, own in numbers.items() for text in (f"--{name}", str(own))]
        subprocess.run([sys.executable, "train.py", *given], cwd=_TRAINED, check=True)
    network = mobilenet_v2_flgc(8, in_channels=1, width=width)
    network.load_state_dict(torch.load(place, weights_only=True)["state_dict"])
    return network


class Files:
    """The files of a network, as far as they do not depend on the row."""

    def __init__(self, network: TableNetwork) -> None:
        torch.manual_seed(0)
        self.model = network.build().eval()
        self.example = ExampleInputs((torch.randn(2, network.channels, *[network.size] * 2),))

    @cached_property
    def plain(self) -> PreparedExport:
        """Every site in one piece."""
        return prepare_export(self.model, self.example, ExportOptions(forms="whole"))

    @cached_property
    def default(self) -> PreparedExport:
        """As `groupfx export` does it."""
        made = groupfx.rewrite(self.model, self.example, target="onnxruntime", verify=False)
        return prepare_export(made.model, self.example, ExportOptions(forms="fastest"))

    def of_torch(self, batch: int) -> ir.Model:
        """Torch's own export, with masks in the weights."""
        passes = ["freeze-learned-groups:form=dense"]
        dense = groupfx.rewrite(self.model, self.example, passes=passes, verify=False).model
        given = self.example.with_batch(batch).args
        with quiet(), torch.no_grad():
            program = torch.onnx.export(dense, given, dynamo=True, verbose=False)
        assert program is not None
        return program.model


@lru_cache(maxsize=1)
def _files(network: TableNetwork) -> Files:
    return Files(network)


def measured(row: TimeRow, *, quick: bool) -> dict[str, Any]:
    """The ratios of all files of a row, how long tuning took, and what was said of it."""
    files = _files(row.network)
    feeds = feeds_of(files.plain, files.model, files.example, row.batch)
    options = TuningOptions(budget=8 if quick else 60, threads=row.threads, cache=None)
    start = time.perf_counter()
    tuning = tune_graph(files.plain.model, feeds, options)
    took = time.perf_counter() - start
    theirs = files.of_torch(row.batch)
    models = (theirs, theirs, files.plain.model, files.default.model, tuning.model)
    backend = backend_named("onnxruntime")
    loads = [partial(_loaded, backend, model, feeds, row.threads) for model in models]
    heats = race(loads, backend.clock(row.threads), 4 if quick else 30, time.perf_counter)
    ratios = {side: compare(heats, place).to_dict() for place, side in enumerate(SIDES, 1)}
    return {
        "row": row.key,
        "cpu": cpu_name(),
        "onnxruntime": onnxruntime.__version__,
        "ratios": ratios,
        "bound": dict(row.network.bounds).get(row.batch),
        "expected": files.default.summary,
        "tuning": tuning.summary,
        "budget": options.budget,
        "seconds": round(took, 1),
    }


def _loaded(backend: Any, model: ir.Model, feeds: Any, threads: int) -> Any:
    """Ready to run: inputs of another exporter may have other names."""
    names = [value.name for value in model.graph.inputs]
    return backend.load(model, dict(zip(names, feeds.values(), strict=True)), threads)


def run(console: Console, quick: bool, pattern: str = "", kept: Path | None = None) -> None:
    """Measure the rows that are not in the file yet, and print the table of all that are."""
    done = {} if kept is None or not kept.exists() else _read(kept)
    chosen = list(rows(pattern or ("MobileNetV2, 8 groups, 32.*batch 1; 1 th" if quick else "")))
    for row in chosen:
        if row.key in done:
            continue
        done[row.key] = measured(row, quick=quick)
        if kept is not None:
            with kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(done[row.key]) + "\n")
        console.print(f"{row.key}: {_text(done[row.key], 'tuned')}")
    # Whole also where it goes into a file.
    wide = Console(width=max(console.width, _WIDTH), file=console.file)
    wide.print(_table([done[row.key] for row in chosen]))


def _read(kept: Path) -> dict[str, dict[str, Any]]:
    lines = (json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines())
    return {line["row"]: line for line in lines}


def _table(lines: list[dict[str, Any]]) -> Table:
    table = Table(title=f"time by that of torch's own file, {cpu_name()}", title_justify="left")
    for column in ("", *SIDES, "bound", "tuning, s"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for line in lines:
        bound = "" if line["bound"] is None else f"{line['bound']:.2f}"
        cells = [_text(line, side) for side in SIDES]
        table.add_row(line["row"], *cells, bound, f"{line['seconds']:.0f}")
    return table


def _text(line: dict[str, Any], side: str) -> str:
    """A ratio with its interval, and an exclamation mark where it is provably over its bound."""
    ratio = line["ratios"][side]
    bound = line["bound"] if side == "tuned" and line["bound"] else NEVER_ABOVE
    low, value, high = (ratio[name] for name in ("low", "value", "high"))
    mark = "!" if low > bound else "?" if value > bound else ""
    return f"{value:.3f} ({low:.2f} to {high:.2f}){mark}"
