"""The table of times: what groupfx writes against what torch's own exporter writes.

    python -m tests.benchmarks speed-table [--rows REGEX] [--kept FILE.jsonl] [--seconds 60]
                                           [--minutes 20] [--quick]

Learned groups are compared with masked dense: torch's own export of the network with the mask
multiplied into the weights. Groups that an author wrote are compared with torch's own export.
`again` is that file against itself, `plain` our export with every site in one piece, `default` what
`groupfx export` writes, `tuned` what `groupfx tune` does. All five race together: heats of new
sessions, ABBA rounds, the thread's own time where one runs; intervals are of 98 %. The prototypes'
figures, which the bounds come from, are medians of interleaved rounds too. A turn here is one run
that is not timed and two that are, as a model runs that serves alone: single runs in turns find the
weights of the four others in the caches, which costs ResNet-18, whose blocks fit into them and
whose dense weights do not, a fifth of its time (0.49 in place of 0.40 of masked dense).

A row is kept as a line of JSON when it is done, and is not measured a second time: a table can be
made in pieces, the rows that decide first; after `--minutes` no other row is begun. `--seconds` is
what tuning and the race of a row may take together, besides its exports: those of a network are
made once, in 10 to 30 s with nothing else on the machine. So a row is about a minute with 45 s.
A mark stands behind a figure that is over its bound, `!` where its whole interval is. Below the
table is what must hold, and whether it does.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
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
from groupfx.tuning import TuningOptions, cpu_name, tune_graph
from groupfx.tuning.backends import backend_named
from groupfx.tuning.race import Turn, race
from groupfx.tuning.ratios import compare

from .form_speed import resnet_18
from .ordinary import ORDINARY, SIZE

SIDES = ("again", "plain", "default", "tuned")
NEVER_ABOVE = 1.02
_WIDTH = 190
_OF_TUNING = 0.6
_ORDINARY_MEAN = 0.93
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
    for name, build in ORDINARY.items():
        yield TableNetwork(name, build, SIZE)
    yield TableNetwork("trained digits", _shipped, 16, channels=1)
    yield TableNetwork("trained digits, 120 epochs", partial(trained, epochs=120), 16, channels=1)
    wide = partial(trained, epochs=8, width=1.0, size=32)
    yield TableNetwork("trained digits, full width, 8 epochs", wide, 32, channels=1)


def _learned(groups: int, mobilenet: float, one: float, many: float) -> Iterator[TableNetwork]:
    for size in (32, 96):
        build, bounds = partial(mobilenet_v2_flgc, groups), ((1, mobilenet), (16, mobilenet))
        yield TableNetwork(f"MobileNetV2, {groups} groups", build, size, bounds=bounds)
    bounds = ((1, one), (16, many))
    yield TableNetwork(f"ResNet-18, {groups} groups", partial(resnet_18, groups), 32, bounds=bounds)


def rows(pattern: str) -> Iterator[TimeRow]:
    """Those whose key `pattern` is found in: one thread before two, one sample before many.

    Of one kind, network by network, since exports take long.
    """
    for threads, batch, network in itertools.product((1, 2), (1, 16), networks()):
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


def measured(row: TimeRow, *, quick: bool, limit: float) -> dict[str, Any]:
    """The ratios of all files of a row, how long tuning took, and what was said of it."""
    files = _files(row.network)
    feeds = feeds_of(files.plain, files.model, files.example, row.batch)
    budget = 8 if quick else limit * _OF_TUNING
    options = TuningOptions(budget=budget, threads=row.threads, cache=None)
    start = time.perf_counter()
    tuning = tune_graph(files.plain.model, feeds, options)
    took = time.perf_counter() - start
    theirs = files.of_torch(row.batch)
    models = (theirs, theirs, files.plain.model, files.default.model, tuning.model)
    backend = backend_named("onnxruntime")
    loads = [partial(_loaded, backend, model, feeds, row.threads) for model in models]
    seconds = 4 if quick else limit * (1 - _OF_TUNING)
    heats = race(loads, backend.clock(row.threads), seconds, time.perf_counter, turn=Turn(1, 2))
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


def run(
    console: Console,
    quick: bool,
    pattern: str = "",
    kept: Path | None = None,
    limit: float = 60.0,
    minutes: float = math.inf,
) -> None:
    """Measure the rows that are not in the file yet, and print the table of all that are."""
    done = {} if kept is None or not kept.exists() else _read(kept)
    chosen = list(rows(pattern or ("MobileNetV2, 8 groups, 32.*batch 1; 1 th" if quick else "")))
    started = time.perf_counter()
    for row in chosen:
        if row.key in done:
            continue
        if time.perf_counter() - started > minutes * 60:
            console.print(f"{sum(r.key not in done for r in chosen)} rows are left: run it again")
            break
        start = time.perf_counter()
        done[row.key] = measured(row, quick=quick, limit=limit)
        done[row.key]["took"] = round(time.perf_counter() - start, 1)
        if kept is not None:
            with kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(done[row.key]) + "\n")
        console.print(f"{row.key}: {_text(done[row.key], 'tuned')}")
    # Whole also where it goes into a file.
    wide = Console(width=max(console.width, _WIDTH), file=console.file)
    lines = [done[row.key] for row in chosen if row.key in done]
    wide.print(_table(lines))
    for text in summary(lines, set(ORDINARY)):
        wide.print(text)


def summary(lines: list[dict[str, Any]], ordinary: Collection[str]) -> Iterator[str]:
    """What must hold of the rows, and whether it does: held, missed, or not to be told."""
    bounded = [(line["row"], line["ratios"]["tuned"], line["bound"]) for line in lines]
    yield from (_held(f"tuned, {row}", found, bound) for row, found, bound in bounded if bound)
    for side in SIDES[1:]:
        above = [line for line in lines if line["ratios"][side]["low"] > NEVER_ABOVE]
        over = [line for line in lines if line["ratios"][side]["value"] > NEVER_ABOVE]
        worst = max((line["ratios"][side]["value"] for line in lines), default=1.0)
        state = "missed" if above else "not to be told" if over else "held"
        named = "".join(f"; {line['row']}" for line in above or over)
        yield f"{side} never above {NEVER_ABOVE}: {state}, worst {worst:.3f}{named}"
    authors = [line for line in lines if line["row"].split(",")[0] in ordinary]
    for side in SIDES[2:] if authors else ():
        mean = statistics.geometric_mean(line["ratios"][side]["value"] for line in authors)
        state = "held" if mean <= _ORDINARY_MEAN else "missed"
        yield f"{side}, geometric mean of {len(authors)} ordinary rows: {mean:.3f}: {state}"


def _held(what: str, ratio: dict[str, Any], bound: float) -> str:
    state = "held" if ratio["value"] <= bound else "not to be told"
    return f"{what}: {ratio['value']:.3f} of {bound}: {'missed' if ratio['low'] > bound else state}"


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
