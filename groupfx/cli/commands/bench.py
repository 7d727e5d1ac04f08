"""`groupfx bench`: which of several models is faster, if that can be told."""

from dataclasses import replace

from ...api.bench import Benchmark, Contender, bench
from ...deploy import OnnxSide, read_onnx
from ...errors import UsageError
from ...tuning import backend_named, session_text
from ..input.bench import BenchCommand
from ..input.files import ONNX, check_distinct, check_folder, write_json
from ..input.model_file import ModelOptions, read_source
from ..text.numbers import sizes
from ..text.screen import Screen
from ..text.table import Column, Table

SCHEMA = "groupfx.bench/1"


def run_bench(options: BenchCommand) -> int:
    """Read them, race them, tell."""
    json = options.told.json
    source = ModelOptions.of(options.models[0], options.file)
    if len(options.models) < 2:
        raise UsageError("give two models or more: a race of one has no winner")
    for model in options.models:
        check_distinct({"MODEL": model, "--json": json})
    check_folder(json, "--json")
    backend_named(options.backend).with_session(options.session, options.threads)
    screen = Screen.of(options.told)
    with screen.work("Reading"):
        models = [_read(replace(source, path=path), screen) for path in options.models]
    with screen.work("Racing", what="heats") as progress:
        found = bench(
            models,
            budget=options.budget,
            threads=options.threads,
            batch=options.batch,
            backend=options.backend,
            session=options.session,
            shapes=source.shapes,
            progress=progress,
        )
    _show(screen, found)
    if json is not None:
        write_json(json, {"schema": SCHEMA, **found.to_dict()})
    return 0


def _read(source: ModelOptions, screen: Screen) -> Contender:
    if source.path.suffix == ONNX:
        return Contender(str(source.path), OnnxSide(str(source.path), read_onnx(source.path)))
    opened = read_source(source, screen.warn)
    return Contender(str(source.path), opened.model, opened.inputs)


def _show(screen: Screen, found: Benchmark) -> None:
    threads = "1 thread" if found.threads == 1 else f"{found.threads} threads"
    where = (f"{found.backend} {found.version}", threads, session_text(found.session))
    screen.paragraph(", ".join(part for part in (*where, found.processor) if part))
    for name, shape in found.inputs.items():
        screen.paragraph(f"input {name}: {sizes(shape)}")
    screen.line()
    columns = [Column("model"), *(Column(p, right=True) for p in ("P50 ms", "P90 ms", "P99 ms"))]
    rows = []
    for name, raced in zip(found.names, found.raced, strict=True):
        times = (raced.latency.p50, raced.latency.p90, raced.latency.p99)
        cells = [f"{seconds * 1e3:.3g}" for seconds in times]
        rows.append([name, *cells, f"{raced.latency.runs:,}"])
    screen.table(Table([*columns, Column("runs", right=True)], rows))
    screen.line()
    for place, name in enumerate(found.names):
        if place:
            screen.paragraph(f"{name}: {found.verdict(place)}")
    for note in found.notes:
        screen.warn(note)
