"""A fleet: two workers against one, what the runner adds to a model, and a second run."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from groupfx.api.models import rewrite
from groupfx.api.source import ModelOptions, open_source
from groupfx.fleet import Entry, Fleet, FleetOptions, Reading, read_fleet, run_fleet

MODELS, UNCHANGED = 20, 300
_READING = Reading(input_shape=("2,8,16,16",))


def network(blocks: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for _ in range(blocks):
        layers += [nn.Conv2d(8, 8, 3, groups=4, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*layers)


def saved(folder: Path, number: int, blocks: int) -> Fleet:
    folder.mkdir()
    for place in range(number):
        torch.save(network(blocks, place), folder / f"{place:03}.pt")
    return read_fleet([folder], Entry(name="", model=Path(), reading=_READING))


def by_the_library(fleet: Fleet) -> float:
    """Seconds of opening, rewriting and proving all of them, one after the other, here."""
    start = time.perf_counter()
    for entry in fleet.entries:
        assert isinstance(entry, Entry)
        opened = open_source(ModelOptions.of(entry.model, entry.reading))
        rewrite(opened.model, opened.inputs)
    return time.perf_counter() - start


def by_the_fleet(fleet: Fleet, folder: Path, workers: int) -> tuple[float, float]:
    """Seconds until the first result, and from there to the last."""
    moments = [time.perf_counter()]
    result = run_fleet(
        fleet,
        folder,
        FleetOptions(workers=workers),
        told=lambda _: moments.append(time.perf_counter()),
    )
    assert result.ok, result.failures
    return moments[1] - moments[0], moments[-1] - moments[1]


def run(console: Console, quick: bool) -> None:
    """Print the three tables."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        workers(console, folder, 4 if quick else MODELS, 1 if quick else 2)
        second_run(console, folder, 10 if quick else UNCHANGED)


def workers(console: Console, folder: Path, number: int, rounds: int) -> None:
    fleet = saved(folder / "models", number, 4)
    torch.set_num_threads(1)
    by_the_library(fleet)
    rows: dict[str, list[float]] = {"library": [], "1 worker": [], "2 workers": []}
    starts: list[float] = []
    for round_ in range(rounds):
        # All but the first model, as those of the fleet.
        rows["library"].append(by_the_library(fleet) * (number - 1) / number)
        for count, name in ((1, "1 worker"), (2, "2 workers")):
            start, rest = by_the_fleet(fleet, folder / f"{name} {round_}", count)
            starts.append(start)
            rows[name].append(rest)
    medians = {name: statistics.median(times) for name, times in rows.items()}
    table = Table(title=f"{number} models, all but the first", title_justify="left")
    for column in ("", "median s", "s a model", "by the library"):
        table.add_column(column, justify="right")
    for name, seconds in medians.items():
        by = f"{seconds / medians['library']:.2f}"
        table.add_row(name, f"{seconds:.2f}", f"{seconds / (number - 1):.3f}", by)
    console.print(table)
    more = (medians["1 worker"] - medians["library"]) / (number - 1)
    gain = medians["1 worker"] / medians["2 workers"]
    console.print(
        f"the runner adds {more * 1e3:.0f} ms a model; two workers are {gain:.2f} x as fast as "
        f"one; the first result after {statistics.median(starts):.1f} s\n"
    )


def second_run(console: Console, folder: Path, number: int) -> None:
    fleet = saved(folder / "tiny", number, 1)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        result = run_fleet(fleet, folder / "out", FleetOptions(workers=2))
        seconds.append(time.perf_counter() - start)
        assert result.ok
    assert len(result.kept) == number
    console.print(
        f"{number} models: {seconds[0]:.1f} s, and unchanged once more {seconds[1]:.2f} s\n"
    )
