"""The commands. Their options are in `input.options`; what one does is in a module that is loaded
late.
"""

from collections.abc import Callable
from typing import TypeVar

import typer

from ..files.existing import require_model
from ..version import __version__
from .input import options as opt
from .input.bench import BenchCommand
from .input.check_options import CheckCommand
from .input.conformance import ConformanceCommand
from .input.early import require_models, require_names, require_target
from .input.files import PROGRAM
from .input.signature import spread
from .input.zoo import ZooCommand
from .text.help import Command, Group

Options = TypeVar("Options")

COMMANDS = (
    *("rewrite", "inspect", "check", "export", "tune", "validate", "groups", "zoo", "bench"),
    *("passes", "conformance"),
)

app = typer.Typer(
    cls=Group,
    # Plain text: sections are ours, and boxes do not survive a pipe or a narrow terminal.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="groupfx rewrite model.pt --input-shape 2,3,224,224",
)


def _command(
    short_help: str, example: str
) -> Callable[[Callable[[Options], int]], Callable[..., int]]:
    register = app.command(cls=Command, short_help=short_help, epilog=example)
    return lambda function: register(spread(function))


@app.callback(invoke_without_command=True)
def root(context: typer.Context, version: opt.Version = False) -> None:
    """Find every grouped convolution in a PyTorch model, rewrite it into the form that its next
    user needs, and prove that the function did not change.
    """
    if version:
        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


@_command(
    "Rewrite a model, and prove that it is the same.",
    "groupfx rewrite model.pt --input-shape 2,3,224,224 --target plinio",
)
def rewrite(options: opt.RewriteCommand) -> int:
    """Rewrite the grouped convolutions of MODEL, check each site and the whole model in float64,
    and write the result to a file that loads without trust.

    Exit code: 0 done, also where there is nothing to rewrite; 1 the check failed, or a site that
    was named cannot be rewritten: then nothing is written; 2 wrong usage, or a file or a model
    that cannot be read; 70 a bug of groupfx.
    """
    require_model(options.model)
    require_names(options.chosen.passes, options.chosen.target)

    from .commands.rewrite import run_rewrite

    return run_rewrite(options)


@_command(
    "Show what is grouped in a model, and what a rewrite would do.",
    "groupfx inspect weights.pt --arch examples/shufflenet_v1.py:shufflenet_v1_g2",
)
def inspect(options: opt.InspectCommand) -> int:
    """Show every grouped convolution of MODEL, whether the passes would rewrite it, and why not
    where not. For a file that groupfx wrote also what was done to it, and by which version.
    """
    require_model(options.model)
    require_names(options.chosen.passes, options.chosen.target)

    from .commands.inspect import run_inspect

    return run_inspect(options)


@_command(
    "Say what a toolchain takes of a model, and what helps where it does not.",
    "groupfx check model.onnx --target finn --junit check.xml\n"
    "groupfx check model.pt --target hls4ml --fix -o fixed.pt",
)
def check(options: CheckCommand) -> int:
    """Judge every convolution of MODEL, and the operations on channels between them, by what is
    known of a toolchain, each fact with its source and date. Find the passes that would make it
    acceptable and say what they would leave; nothing is written without --fix.

    Exit code: 0 all of it is acceptable; 1 something is not, or a check failed: then no model is
    written; 2 wrong usage, or a file or a model that cannot be read; 4 nothing is known to be
    refused, and of something nobody knows; 70 a bug of groupfx.
    """
    require_model(options.model)
    require_target(options.target)

    from .commands.check import run_check

    return run_check(options)


@_command(
    "Write an ONNX file, and prove that it is the same.",
    "groupfx export model.pt -o model.onnx --dynamic-sizes",
)
def export(options: opt.ExportCommand) -> int:
    """Rewrite MODEL for ONNX Runtime (learned groups are frozen; -p or --target change that),
    write it as an ONNX file, and validate the file against MODEL.

    Exit code: 0 done; 1 a check failed: then nothing is written; 2 wrong usage, or a file or a
    model that cannot be read or exported; 70 a bug of groupfx.
    """
    require_model(options.model)
    require_names(options.chosen.passes, options.chosen.target)

    from .commands.export import run_export

    return run_export(options)


@_command(
    "Write the fastest form of a model on this machine.",
    "groupfx tune model.pt -o model.onnx\ngroupfx tune model.onnx -o tuned.onnx --batch 16\n"
    "groupfx tune model.pt --backend torch -o fast.pt",
)
def tune(options: opt.TuneCommand) -> int:
    """Measure in which form each grouped or masked convolution of MODEL is fastest, in the whole
    model and on this machine, and write it: never slower than the untouched one, and compared with
    MODEL. The file is an ONNX file, or for a backend of torch one that groupfx.load reads.

    Exit code: 0 done, also where nothing is faster; 1 a check failed: then nothing is written; 2
    wrong usage, or a file or a model that cannot be read or exported; 3 the backend is not
    installed; 70 a bug of groupfx.
    """
    require_model(options.model)

    from .commands.tune import run_tune

    return run_tune(options)


@_command(
    "Compare two models, and name the site that is wrong.",
    "groupfx validate model.pt model.onnx --atol logits:1e-4",
)
def validate(options: opt.ValidateCommand) -> int:
    """Compare CANDIDATE with REFERENCE: outputs against float64, in ONNX Runtime with graph
    optimisations off and on, and each convolution on its own.

    Exit code: 0 the same function; 1 it is not; 2 wrong usage, or a file or a model that cannot be
    read or run; 70 a bug of groupfx.
    """
    require_model(options.reference)
    require_model(options.candidate)

    from .commands.validate import run_validate

    return run_validate(options)


@_command(
    "Show the groups that layers learned, and how training changed them.",
    "groupfx groups checkpoints/best.pth --plot groups.png\ngroupfx groups checkpoints",
)
def groups(options: opt.GroupsCommand) -> int:
    """Show the groups of each layer that learned them: sizes, what is empty or read by nobody,
    and the share of the dense convolution's MACs that is left. Of a series of checkpoints: which
    channels left a group and came to it from each to the next.

    Pickled modules are read as data: their classes are neither needed nor trusted. FLOPs are
    counted where the model can be run.

    Exit code: 0 done, also where no layer learned groups; 2 wrong usage, or a file that cannot be
    read; 3 matplotlib is missing; 70 a bug of groupfx.
    """
    require_models(options)

    from .commands.groups import run_groups

    return run_groups(options)


@_command(
    "Rewrite and check many models, each in a process of its own.",
    "groupfx zoo models.yaml --export --time 300\ngroupfx zoo checkpoints --arch net.py:net",
)
def zoo(options: ZooCommand) -> int:
    """Rewrite and prove every model of MANIFEST, and what else is asked for, each in a process of
    its own that may take so much time and memory. One that fails ends nothing but itself.

    A line of JSON a model goes to results.jsonl in the output folder, where the same command goes
    on after it was interrupted; a model that has not changed since is not run again.

    Exit code: 0 every model is done; 1 some failed; 2 wrong usage, or a manifest that cannot be
    read, or a folder that cannot be written; 3 a scheduler without Dask; 70 a bug of groupfx; 130
    interrupted, 143 terminated: what is done is kept.
    """
    require_names(options.chosen.passes, options.chosen.target)

    from .commands.zoo import run_zoo

    return run_zoo(options)


@_command(
    "Race models against each other, and say which is faster.",
    "groupfx bench model.onnx tuned.onnx --threads 2 --batch 8",
)
def bench(options: BenchCommand) -> int:
    """Run every MODEL on the same inputs in turns, as 'groupfx tune' does: percentiles of each, and
    its time by that of the first, with an interval of 98 %. A difference is claimed where there is
    one; a model against itself has none.

    Exit code: 0 done; 2 wrong usage, a file or a model that cannot be read or run, or models with
    other inputs than the first; 3 the backend is not installed; 70 a bug of groupfx.
    """
    for model in options.models:
        require_model(model)

    from .commands.bench import run_bench

    return run_bench(options)


@_command(
    "List the passes, their options, and what they refuse.", "groupfx passes split-grouped-conv"
)
def passes(options: opt.PassesCommand) -> int:
    """List the passes with their options, and the passes of each target."""
    require_names(None if options.name is None else [options.name], None)

    from .commands.passes import run_passes

    return run_passes(options)


@_command(
    "Hold a converter or a runtime against tiny models with known answers.",
    "groupfx conformance onnxruntime openvino\n"
    "groupfx conformance 'mytool {model} {inputs} {outputs}' --junit results.xml",
)
def conformance(options: ConformanceCommand) -> int:
    """Run TOOL on tiny models with grouped convolutions, each with its answer in float64 and a
    bound for rounding, and show kind by kind what it computed, refused, or did not survive.

    Exit code: 0 nothing wrong, also where it refused some; 1 a wrong answer, a crash, or no answer
    in time; 2 wrong usage; 3 the tool is not installed; 4 it refused everything; 70 a bug of
    groupfx.
    """
    from .commands.conformance import run_conformance

    return run_conformance(options)
