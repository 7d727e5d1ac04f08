"""`groupfx groups`: read, count, tell, draw.

The document of `--json` is at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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
from ...learned.layers import LearnedLayer, decides_groups, learned_layers, learned_layers_in
from ...learned.tracking import LayerChange, Side, Step, first_difference, track
from ...report.plots import (
    MAX_LAYERS,
    plot_changes,
    plot_groups,
    require_format,
    require_matplotlib,
)
from ...rewriting import name_matches
from ...running.flops import Flops, count_flops
from ...running.learned_flops import count_learned, of_one
from ..input.files import check_distinct, check_folder, write_json
from ..input.model_file import ModelOptions, OpenedFile, read_source
from ..input.options import GroupsCommand
from ..text.groups_text import Operations, show_layers, show_operations, show_series
from ..text.numbers import plural
from ..text.screen import Screen

_FREEZE = "freeze-learned-groups"
SCHEMA = "groupfx.groups/1"
_NOTHING = "No layer learned groups: there is nothing to show."


@dataclass(frozen=True)
class _Read:
    """One model: its layers, and the model itself or the reason why it cannot be run."""

    document: dict[str, Any]
    text: str
    layers: tuple[LearnedLayer, ...]
    opened: OpenedFile | None
    reason: str | None = None


def run_groups(options: GroupsCommand) -> int:
    """One model, or several checkpoints of one."""
    source = ModelOptions.of(options.models[0], options.file)
    if not options.series:
        return _of_model(options, source)
    files: tuple[Path, ...] = tuple(options.models)
    left: tuple[Path, ...] = ()
    if files[0].is_dir():
        files, left = checkpoint_files(files[0], key=options.file.key)
    if len(files) > 1:
        return _of_series(options, files, left)
    only = replace(options, models=list(files))
    return _of_model(only, replace(source, path=files[0]))


def _of_model(options: GroupsCommand, source: ModelOptions) -> int:
    screen, told = _start(options), options.told
    path = source.path
    with screen.work(f"Reading {path}"):
        read = _read(source, screen)
        chosen = _chosen(read.layers, options.layer)
    operations, reason = None, read.reason
    if read.layers and read.opened is not None:
        with screen.work("Counting"):
            operations, reason = _operations(read.opened, read.layers, source)
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
    if told.json is not None:
        write_json(told.json, _model_document(read.document, chosen, operations, reason))
    return 0


def _of_series(options: GroupsCommand, files: Sequence[Path], left: Sequence[Path]) -> int:
    """Several files; those that are `left` have no epoch."""
    screen, told = _start(options), options.told
    side: Side = "filters" if options.filters else "inputs"
    with screen.work(f"Reading {plural(len(files), 'checkpoint')}"):
        series = read_series(files, wanted=decides_groups, key=options.file.key)
        for note in (note for checkpoint in series.checkpoints for note in checkpoint.notes):
            screen.warn(note)
        states = [_layers_of(checkpoint) for checkpoint in series.checkpoints]
        _require_same_network(series, states)
        chosen = [_chosen(layers, options.layer) for layers in states]
        steps = track(chosen, side)
    if left:
        screen.paragraph(f"left out, for they have no epoch of their own: {_names(left)}")
    if series.epochs is None:
        screen.paragraph("in the given order: not every file has an epoch of its own")
    if not chosen[0]:
        screen.note(_NOTHING)
    else:
        show_series(screen, series.labels, steps, chosen[0], side)
    if options.plot is not None and chosen[0]:
        with screen.work("Drawing"):
            title = options.models[0].resolve().name if options.models[0].is_dir() else ""
            plot_changes(steps, series.epochs, options.plot, side=side, title=title)
        screen.note(f"Wrote {options.plot}: the changes over the checkpoints.")
    if told.json is not None:
        write_json(told.json, _series_document(series, chosen[-1], steps, side))
    return 0


def _start(options: GroupsCommand) -> Screen:
    """Refuse at once what could not be written in the end."""
    read = {f"MODEL {path}": path for path in options.models}
    check_distinct({**read, "--plot": options.plot, "--json": options.told.json})
    check_folder(options.told.json, "--json")
    if options.plot is not None:
        require_format(options.plot)
        check_folder(options.plot, "--plot")
        require_matplotlib()
    return Screen.of(options.told)


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
        found = read_checkpoint(source.path, wanted=decides_groups, key=source.key)
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
    layers: tuple[LearnedLayer, ...], patterns: Sequence[str] | None
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


def _model_document(
    file: Mapping[str, Any],
    layers: Sequence[LearnedLayer],
    operations: Operations | None,
    reason: str | None,
) -> dict[str, Any]:
    """One model; `file` says what was read."""
    return {
        "schema": SCHEMA,
        "files": [{**file, "epoch": None}],
        "layers": [_layer(layer) for layer in layers],
        "operations": None if operations is None else _operations_document(operations),
        "not_counted": reason,
        "series": None,
    }


def _series_document(
    series: Series, layers: Sequence[LearnedLayer], steps: Sequence[Step], side: Side
) -> dict[str, Any]:
    """Several checkpoints; `layers` are those of the last one."""
    epochs = series.epochs or [None] * len(series.checkpoints)
    files = [
        {**checkpoint.document, "epoch": epoch}
        for checkpoint, epoch in zip(series.checkpoints, epochs, strict=True)
    ]
    return {
        "schema": SCHEMA,
        "files": files,
        "layers": [_layer(layer) for layer in layers],
        "operations": None,
        "not_counted": "FLOPs are counted for one model",
        "series": {"side": side, "steps": [_step(step) for step in steps]},
    }


def _layer(layer: LearnedLayer) -> dict[str, Any]:
    groups, structure = layer.groups, layer.structure
    pairs = zip(groups.inputs, groups.outputs, strict=True)
    return {
        "name": layer.name,
        "in_channels": groups.in_channels,
        "out_channels": groups.out_channels,
        "kernel_size": list(layer.kernel_size),
        "groups": [{"inputs": list(i), "filters": list(o)} for i, o in pairs],
        "empty_groups": list(groups.empty_groups),
        "dead_inputs": list(groups.dead_inputs),
        "bias_only_filters": list(groups.bias_only_filters),
        "tied": {"inputs": list(layer.tied_inputs), "filters": list(layer.tied_filters)},
        "nan": {"inputs": list(groups.nan_inputs), "filters": list(groups.nan_outputs)},
        "blocks": len(structure.blocks),
        "macs_per_tap": {
            "dense": structure.dense_macs,
            "exact": structure.exact_macs,
            "padded": structure.padded_macs,
        },
    }


def _operations_document(operations: Operations) -> dict[str, Any]:
    learned, frozen = operations.learned, operations.frozen
    return {
        "input": operations.text,
        "positions": dict(learned.positions),
        "dense": _flops(learned.dense),
        "exact": _flops(learned.exact),
        "frozen": None if frozen is None else _flops(frozen),
    }


def _flops(flops: Flops) -> dict[str, int]:
    return {**asdict(flops), "total": flops.total}


def _step(step: Step) -> dict[str, Any]:
    return {
        "total": step.total,
        "moved": step.moved,
        "channels": step.channels,
        "layers": [_change(change) for change in step.layers],
    }


def _change(change: LayerChange) -> dict[str, Any]:
    return {
        "name": change.name,
        "total": change.total,
        "moved": list(change.moved),
        "channels": change.channels,
        "groups": [
            {"removed": list(g.removed), "added": list(g.added), "held": g.held}
            for g in change.groups
        ],
    }
