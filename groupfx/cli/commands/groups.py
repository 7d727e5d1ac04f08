"""`groupfx groups`: its options. What it does is loaded late."""

from pathlib import Path
from typing import Annotated

import typer

from ...errors import FileError, UsageError
from ...files.existing import require_file
from ..input import options as opt

SHORT_HELP = "Show the groups that layers learned, and how training changed them."
EXAMPLE = "groupfx groups checkpoints/best.pth --plot groups.png\ngroupfx groups checkpoints"

_GROUPS = "What to show"

Models = Annotated[
    list[Path],
    typer.Argument(
        metavar="MODEL",
        help="One model: any file that the other commands read, a state_dict without --arch, a "
        "pickled module of any class. Or a series: several checkpoints, or a folder of them.",
        show_default=False,
    ),
]
Filters = Annotated[
    bool,
    typer.Option(
        "--filters",
        help="Of a series: follow the filters, not the input channels.",
        rich_help_panel=_GROUPS,
    ),
]
Layers = Annotated[
    list[str] | None,
    typer.Option(
        "--layer",
        metavar="PATTERN",
        help="Only layers whose names fit this pattern, such as 'blocks.1?.*'. May be repeated.",
        show_default=False,
        rich_help_panel=_GROUPS,
    ),
]
Plot = Annotated[
    Path | None,
    typer.Option(
        "--plot",
        metavar="FILE",
        help="Draw it, as .png or .svg: the masks before and after permutation, or the changes "
        "over the epochs. Needs matplotlib.",
        show_default=False,
        rich_help_panel="Output",
    ),
]


def groups(
    models: Models,
    input_shape: opt.InputShapes = None,
    arch: opt.Arch = None,
    arch_args: opt.ArchArgs = None,
    key: opt.Key = None,
    trust_pickle: opt.TrustPickle = False,
    python_path: opt.PythonPath = None,
    layer: Layers = None,
    filters: Filters = False,
    plot: Plot = None,
    json: opt.Json = None,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    traceback: opt.Traceback = False,
) -> int:
    """Show the groups of each layer that learned them: sizes, what is empty or read by nobody,
    and the share of the dense convolution's MACs that is left. Of a series of checkpoints: which
    channels left a group and came to it from each to the next.

    Pickled modules are read as data: their classes are neither needed nor trusted. FLOPs are
    counted where the model can be run.

    Exit code: 0 done, also where no layer learned groups; 2 wrong usage, or a file that cannot be
    read; 3 matplotlib is missing; 70 a bug of groupfx.
    """
    series = len(models) > 1 or models[0].is_dir()
    for path in models:
        if path.is_dir() and len(models) > 1:
            raise FileError(f"{path} is a folder: give one folder, or files")
        if not path.is_dir():
            require_file(path)
    of_model = {
        "--input-shape": input_shape,
        "--arch": arch,
        "--trust-pickle": trust_pickle,
        "--python-path": python_path,
    }
    given = [option for option, value in of_model.items() if value]
    if series and given:
        raise UsageError(
            f"{given[0]} is for one model: the checkpoints of a series are read as data"
        )
    if filters and not series:
        raise UsageError("--filters is for a series: give several checkpoints, or a folder of them")

    from ..input.model_file import ModelOptions
    from .groups_run import GroupsOptions, run_groups, run_series

    source = ModelOptions.of(
        models[0],
        input_shape or (),
        arch=arch,
        arch_args=arch_args,
        key=key,
        trust_pickle=trust_pickle,
        python_path=tuple(python_path or ()),
    )
    options = GroupsOptions(
        source=source,
        models=tuple(models),
        layers=tuple(layer or ()),
        side="filters" if filters else "inputs",
        plot=plot,
        json=json,
        quiet=quiet,
        verbose=verbose,
    )
    return run_series(options) if series else run_groups(options)
