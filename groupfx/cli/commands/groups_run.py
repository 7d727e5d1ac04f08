"""`groupfx groups`: read, count, tell, draw."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...api.models import rewrite
from ...errors import FileError, GroupfxError, UsageError
from ...files.checkpoints import (
    Checkpoint,
    Series,
    checkpoint_files,
    first_other_shape,
    read_checkpoint,
    read_series,
)
from ...learned.layers import LearnedLayer, is_scores, learned_layers, learned_layers_in
from ...learned.tracking import Side, first_difference, track
from ...report.plots import (
    MAX_LAYERS,
    plot_changes,
    plot_groups,
    require_format,
    require_matplotlib,
)
from ...rewriting import name_matches
from ...running.flops import count_flops
from ...running.learned_flops import count_learned, of_one
from ..input.files import STDOUT, check_distinct, check_folder, json_text, write_text
from ..input.model_file import ModelOptions, OpenedFile, read_source
from ..text.groups_text import Operations, show_layers, show_operations, show_series
from ..text.numbers import plural
from ..text.screen import Screen
from .groups_json import model_document, series_document

_FREEZE = "freeze-learned-groups"
_NOTHING = "No layer learned groups: there is nothing to show."


@dataclass(frozen=True)
class GroupsOptions:
    """The options of the command; `source` is the first of `models`."""

    source: ModelOptions
    models: tuple[Path, ...]
    layers: tuple[str, ...]
    side: Side
    plot: Path | None
    json: Path | None
    quiet: bool
    verbose: bool


@dataclass(frozen=True)
class _Read:
    """One model: its layers, and the model itself or the reason why it cannot be run."""

    document: dict[str, Any]
    text: str
    layers: tuple[LearnedLayer, ...]
    opened: OpenedFile | None
    reason: str | None = None


def run_groups(options: GroupsOptions) -> int:
    """One model."""
    screen = _start(options)
    path = options.source.path
    with screen.work(f"Reading {path}"):
        read = _read(options.source, screen)
        chosen = _chosen(read.layers, options.layers)
    operations, reason = None, read.reason
    if read.layers and read.opened is not None:
        with screen.work("Counting"):
            operations, reason = _operations(read.opened, read.layers, options.source)
    screen.paragraph(read.text)
    if not chosen:
        screen.note(_NOTHING)
    else:
        show_layers(screen, chosen, operations)
        show_operations(screen, operations, reason)
    if options.plot is not None and chosen:
        drawn = chosen[:MAX_LAYERS]
        with screen.work("Drawing"):
            plot_groups(drawn, options.plot, title=path.name)
        some = "" if drawn == chosen else f", the first {len(drawn)} layers: choose with --layer"
        screen.note(f"Wrote {options.plot}: the masks before and after permutation{some}.")
    if options.json is not None:
        document = model_document(read.document, chosen, operations, reason)
        write_text(options.json, json_text(document))
    return 0


def run_series(options: GroupsOptions) -> int:
    """Several checkpoints, or a folder of them."""
    files: tuple[Path, ...] = options.models
    left: tuple[Path, ...] = ()
    if files[0].is_dir():
        files, left = checkpoint_files(files[0])
    if len(files) == 1:
        source = replace(options.source, path=files[0])
        return run_groups(replace(options, source=source, models=files))
    screen = _start(options)
    with screen.work(f"Reading {plural(len(files), 'checkpoint')}"):
        series = read_series(files, wanted=is_scores, key=options.source.key)
        for note in (note for checkpoint in series.checkpoints for note in checkpoint.notes):
            screen.warn(note)
        states = [_layers_of(checkpoint) for checkpoint in series.checkpoints]
        _require_same_network(series, states)
        chosen = [_chosen(layers, options.layers) for layers in states]
        steps = track(chosen, options.side)
    if left:
        screen.paragraph(f"left out, for they have no epoch in their names: {_names(left)}")
    if series.epochs is None:
        screen.paragraph("in the given order: not every file has an epoch of its own")
    if not chosen[0]:
        screen.note(_NOTHING)
    else:
        show_series(screen, series.labels, steps, chosen[0], options.side)
    if options.plot is not None and chosen[0]:
        with screen.work("Drawing"):
            title = options.models[0].resolve().name if options.models[0].is_dir() else ""
            plot_changes(steps, series.epochs, options.plot, side=options.side, title=title)
        screen.note(f"Wrote {options.plot}: the changes over the checkpoints.")
    if options.json is not None:
        document = series_document(series, chosen[-1], steps, options.side)
        write_text(options.json, json_text(document))
    return 0


def _start(options: GroupsOptions) -> Screen:
    """Refuse at once what could not be written in the end."""
    read = {f"MODEL {path}": path for path in options.models}
    check_distinct({**read, "--plot": options.plot, "--json": options.json})
    if options.json is not None:
        check_folder(options.json, "--json")
    if options.plot is not None:
        require_format(options.plot)
        check_folder(options.plot, "--plot")
        require_matplotlib()
    return Screen(quiet=options.quiet, verbose=options.verbose, data=options.json != STDOUT)


def _read(source: ModelOptions, screen: Screen) -> _Read:
    """The model where it can be read as one, else its tensors; see `read_checkpoint`."""
    try:
        opened = read_source(source, screen.warn)
    except GroupfxError as error:
        # What the user asked for in words must work, or be an error.
        if source.arch is not None or source.trust_pickle or source.input_shapes:
            raise
        return _as_data(source, error, screen)
    return _Read(opened.document, opened.text, learned_layers(opened.model), opened)


def _as_data(source: ModelOptions, error: GroupfxError, screen: Screen) -> _Read:
    """The layers alone, where `error` kept the model from being read or run."""
    try:
        found = read_checkpoint(source.path, wanted=is_scores, key=source.key)
    except FileError:
        # The first reader knows more kinds of files, and says more of what is wrong with one.
        raise error from None
    for note in found.notes:
        screen.warn(note)
    what = f"a pickled {found.network}, read as data" if found.network else "weights, read as data"
    ways = "give --arch"
    if found.kind == "module":
        ways += ", or, only for a file that you made yourself, --trust-pickle with --python-path"
    reason = f"the model itself cannot be run: {ways}"
    if not isinstance(error, FileError):
        reason = str(error)
    return _Read(found.document, f"{source.path}: {what}", _layers_of(found), None, reason)


def _layers_of(checkpoint: Checkpoint) -> tuple[LearnedLayer, ...]:
    try:
        return learned_layers_in(checkpoint.shapes, checkpoint.tensors)
    except UsageError as error:
        raise FileError(f"{checkpoint.path}: {error}") from error


def _chosen(
    layers: tuple[LearnedLayer, ...], patterns: tuple[str, ...]
) -> tuple[LearnedLayer, ...]:
    if not patterns or not layers:
        return layers
    chosen = tuple(layer for layer in layers if name_matches(layer.name, patterns))
    if not chosen:
        names = ", ".join(layer.name for layer in layers)
        raise UsageError(f"no layer fits --layer {' '.join(patterns)}; there are {names}")
    return chosen


def _operations(
    opened: OpenedFile, layers: Sequence[LearnedLayer], source: ModelOptions
) -> tuple[Operations | None, str | None]:
    """FLOPs, and why there are none or why those of the frozen model are missing."""
    try:
        learned = count_learned(opened.model, opened.inputs, layers)
    except GroupfxError as error:
        if source.input_shapes:
            raise
        return None, str(error)
    shape = next(opened.inputs.tensors()).shape
    text = f"{list(shape[1:])}, {opened.inputs_source}"
    try:
        frozen = rewrite(opened.model, opened.inputs, passes=[_FREEZE], verify=False)
        counted = count_flops(frozen.model, opened.inputs)
    except GroupfxError as error:
        return Operations(learned, None, text), f"it cannot be frozen: {error}"
    return Operations(learned, of_one(counted, opened.inputs.batch or 1), text), None


def _require_same_network(series: Series, states: Sequence[tuple[LearnedLayer, ...]]) -> None:
    first = series.checkpoints[0]
    for checkpoint, layers in zip(series.checkpoints[1:], states[1:], strict=True):
        difference = first_difference(states[0], layers) or first_other_shape(first, checkpoint)
        if difference is not None:
            raise FileError(
                f"{first.path} and {checkpoint.path} are of different networks: {difference}"
            )


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(path.name for path in paths)
