"""The commands and their options. What a command does is in a module of its own, loaded late."""

from collections.abc import Callable
from typing import Any, TypeVar

import typer

from ..files.existing import require_file
from ..version import __version__
from .commands import groups as learned
from .input import options as opt
from .input.early import require_names
from .input.files import PROGRAM
from .text.help import Command, Group

Function = TypeVar("Function", bound=Callable[..., Any])

COMMANDS = ("rewrite", "inspect", "export", "validate", "groups", "passes")

app = typer.Typer(
    cls=Group,
    # Plain text: sections are ours, and boxes do not survive a pipe or a narrow terminal.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="groupfx rewrite model.pt --input-shape 2,3,224,224",
)


def _command(short_help: str, example: str) -> Callable[[Function], Function]:
    return app.command(cls=Command, short_help=short_help, epilog=example)


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
def rewrite(
    model: opt.Model,
    input_shape: opt.InputShapes = None,
    arch: opt.Arch = None,
    arch_args: opt.ArchArgs = None,
    key: opt.Key = None,
    trust_pickle: opt.TrustPickle = False,
    python_path: opt.PythonPath = None,
    passes: opt.Passes = None,
    target: opt.Target = None,
    way: opt.WayOption = "auto",
    no_verify: opt.NoVerify = False,
    output: opt.Out = None,
    force: opt.Force = False,
    dry_run: opt.DryRun = False,
    emit_python: opt.EmitPython = None,
    json: opt.Json = None,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    traceback: opt.Traceback = False,
) -> int:
    """Rewrite the grouped convolutions of MODEL, check each site and the whole model in float64,
    and write the result to a file that loads without trust.

    Exit code: 0 done, also where there is nothing to rewrite; 1 the check failed, or a site that
    was named cannot be rewritten: then nothing is written; 2 wrong usage, or a file or a model
    that cannot be read; 70 a bug of groupfx.
    """
    require_file(model)
    require_names(passes, target)

    from .commands.rewrite import RewriteOptions, run_rewrite
    from .input.model_file import ModelOptions

    source = ModelOptions.of(
        model,
        input_shape or (),
        arch=arch,
        arch_args=arch_args,
        key=key,
        trust_pickle=trust_pickle,
        python_path=tuple(python_path or ()),
    )
    options = RewriteOptions(
        source=source,
        passes=None if passes is None else tuple(passes),
        target=target,
        way=way,
        verify=not no_verify,
        output=output,
        force=force,
        dry_run=dry_run,
        emit_python=emit_python,
        json=json,
        quiet=quiet,
        verbose=verbose,
    )
    return run_rewrite(options)


@_command(
    "Show what is grouped in a model, and what a rewrite would do.",
    "groupfx inspect weights.pt --arch examples/shufflenet_v1.py:shufflenet_v1_g2",
)
def inspect(
    model: opt.Model,
    input_shape: opt.InputShapes = None,
    arch: opt.Arch = None,
    arch_args: opt.ArchArgs = None,
    key: opt.Key = None,
    trust_pickle: opt.TrustPickle = False,
    python_path: opt.PythonPath = None,
    passes: opt.Passes = None,
    target: opt.Target = None,
    way: opt.WayOption = "auto",
    json: opt.Json = None,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    traceback: opt.Traceback = False,
) -> int:
    """Show every grouped convolution of MODEL, whether the passes would rewrite it, and why not
    where not. For a file that groupfx wrote also what was done to it, and by which version.
    """
    require_file(model)
    require_names(passes, target)

    from .commands.inspect import InspectOptions, run_inspect
    from .input.model_file import ModelOptions

    source = ModelOptions.of(
        model,
        input_shape or (),
        arch=arch,
        arch_args=arch_args,
        key=key,
        trust_pickle=trust_pickle,
        python_path=tuple(python_path or ()),
    )
    options = InspectOptions(
        source=source,
        passes=None if passes is None else tuple(passes),
        target=target,
        way=way,
        json=json,
        quiet=quiet,
        verbose=verbose,
    )
    return run_inspect(options)


@_command(
    "Write an ONNX file, and prove that it is the same.",
    "groupfx export model.pt -o model.onnx --dynamic-sizes",
)
def export(
    model: opt.Model,
    input_shape: opt.InputShapes = None,
    arch: opt.Arch = None,
    arch_args: opt.ArchArgs = None,
    key: opt.Key = None,
    trust_pickle: opt.TrustPickle = False,
    python_path: opt.PythonPath = None,
    passes: opt.Passes = None,
    target: opt.Target = None,
    way: opt.WayOption = "auto",
    no_verify: opt.NoVerify = False,
    output: opt.OnnxOut = None,
    dtype: opt.DType = None,
    opset: opt.Opset = None,
    fixed_batch: opt.FixedBatch = False,
    dynamic_sizes: opt.DynamicSizes = False,
    input_name: opt.InputNames = None,
    output_name: opt.OutputNames = None,
    external_data: opt.ExternalData = False,
    atol: opt.Atol = None,
    inputs: opt.DataFiles = None,
    force: opt.Force = False,
    json: opt.Json = None,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    traceback: opt.Traceback = False,
) -> int:
    """Rewrite MODEL for ONNX Runtime (learned groups are frozen; -p or --target change that),
    write it as an ONNX file, and validate the file against MODEL.

    Exit code: 0 done; 1 a check failed: then nothing is written; 2 wrong usage, or a file or a
    model that cannot be read or exported; 70 a bug of groupfx.
    """
    require_file(model)
    require_names(passes, target)

    from .commands.export import ExportCommand, run_export
    from .input.model_file import ModelOptions

    source = ModelOptions.of(
        model,
        input_shape or (),
        arch=arch,
        arch_args=arch_args,
        key=key,
        trust_pickle=trust_pickle,
        python_path=tuple(python_path or ()),
    )
    options = ExportCommand(
        source=source,
        passes=None if passes is None else tuple(passes),
        target=target,
        way=way,
        verify=not no_verify,
        output=output,
        dtype=dtype,
        opset=opset,
        dynamic_batch=not fixed_batch,
        dynamic_sizes=dynamic_sizes,
        input_names=input_name,
        output_names=output_name,
        external_data=external_data,
        atol=tuple(atol or ()),
        data=tuple(inputs or ()),
        force=force,
        json=json,
        quiet=quiet,
        verbose=verbose,
    )
    return run_export(options)


@_command(
    "Compare two models, and name the site that is wrong.",
    "groupfx validate model.pt model.onnx --atol logits:1e-4",
)
def validate(
    reference: opt.Reference,
    candidate: opt.Candidate,
    input_shape: opt.InputShapes = None,
    arch: opt.Arch = None,
    arch_args: opt.ArchArgs = None,
    key: opt.Key = None,
    trust_pickle: opt.TrustPickle = False,
    python_path: opt.PythonPath = None,
    atol: opt.Atol = None,
    inputs: opt.DataFiles = None,
    json: opt.Json = None,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    traceback: opt.Traceback = False,
) -> int:
    """Compare CANDIDATE with REFERENCE: outputs against float64, in ONNX Runtime with graph
    optimisations off and on, and each convolution on its own.

    Exit code: 0 the same function; 1 it is not; 2 wrong usage, or a file or a model that cannot be
    read or run; 70 a bug of groupfx.
    """
    require_file(reference)
    require_file(candidate)

    from .commands.validate import ValidateCommand, run_validate
    from .input.model_file import ModelOptions

    options = ValidateCommand(
        candidate=candidate,
        source=ModelOptions.of(
            reference,
            input_shape or (),
            arch=arch,
            arch_args=arch_args,
            key=key,
            trust_pickle=trust_pickle,
            python_path=tuple(python_path or ()),
        ),
        atol=tuple(atol or ()),
        data=tuple(inputs or ()),
        json=json,
        quiet=quiet,
        verbose=verbose,
    )
    return run_validate(options)


_command(learned.SHORT_HELP, learned.EXAMPLE)(learned.groups)


@_command(
    "List the passes, their options, and what they refuse.", "groupfx passes split-grouped-conv"
)
def passes(
    name: opt.PassName = None,
    json: opt.Json = None,
    traceback: opt.Traceback = False,
) -> int:
    """List the passes with their options, and the passes of each target."""
    require_names(None if name is None else [name], None)

    from .commands.passes import run_passes

    return run_passes(name, json)
