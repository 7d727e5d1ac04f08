"""The options of all commands, each described once."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import typer

from ...passes import PASSES
from ...targets import targets

# As in groupfx.tracing, which would import torch; a test holds them together.
Way = Literal["auto", "trace", "modules", "export"]

_FILE = "Model file"
_REWRITE = "What to rewrite"
_OUTPUT = "Output"
_FILE_WRITTEN = "The ONNX file"
_CHECK = "The check"
_MESSAGES = "Messages"


def complete_pass(incomplete: str) -> Iterable[str]:
    """Names of passes for shell completion, from the table: no class is loaded."""
    return [name for name in PASSES if name.startswith(incomplete)]


def complete_target(incomplete: str) -> Iterable[str]:
    """Names of targets for shell completion."""
    return [target.name for target in targets() if target.name.startswith(incomplete)]


Model = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="A file of ours, a pickled module, a dict that holds one, or a state_dict "
        "(.pt, .pth, .safetensors) with --arch.",
        show_default=False,
    ),
]
PassName = Annotated[
    str | None,
    typer.Argument(
        metavar="PASS",
        help="Show this pass only.",
        show_default=False,
        autocompletion=complete_pass,
    ),
]

InputShapes = Annotated[
    list[str] | None,
    typer.Option(
        "--input-shape",
        metavar="SHAPE",
        help="Shape of an input of forward, batch first: 2,3,224,224, or name=2,3,32,32, or "
        "int64:2,16, or input_ids=int64:2,16. Once for each input. Inferred where not given.",
        show_default=False,
        rich_help_panel=_FILE,
    ),
]
Arch = Annotated[
    str | None,
    typer.Option(
        "--arch",
        metavar="FACTORY",
        help="What makes the model that a state_dict belongs to: package.module:factory or "
        "file.py:factory. It is called, so its code runs.",
        show_default=False,
        rich_help_panel=_FILE,
    ),
]
ArchArgs = Annotated[
    str | None,
    typer.Option(
        "--arch-args",
        metavar="JSON",
        help="Keyword arguments of the factory, such as '{\"num_classes\": 10}'.",
        show_default=False,
        rich_help_panel=_FILE,
    ),
]
Key = Annotated[
    str | None,
    typer.Option(
        "--key",
        metavar="NAME",
        help="Which network of a file that holds a dict: its name there, such as ema or model.ema.",
        show_default=False,
        rich_help_panel=_FILE,
    ),
]
TrustPickle = Annotated[
    bool,
    typer.Option(
        "--trust-pickle",
        help="Unpickle classes of any kind. This runs code from the file: only for files that you "
        "made yourself.",
        rich_help_panel=_FILE,
    ),
]
PythonPath = Annotated[
    list[Path] | None,
    typer.Option(
        "--python-path",
        metavar="DIR",
        help="Folder in which to look for the classes and the factory. May be repeated.",
        show_default=False,
        rich_help_panel=_FILE,
    ),
]

Passes = Annotated[
    list[str] | None,
    typer.Option(
        "--pass",
        "-p",
        metavar="PASS",
        help="A pass, with its options after a colon: name:option=value,option=value. May be "
        "repeated; they run in this order. 'groupfx passes' lists them.",
        show_default=False,
        autocompletion=complete_pass,
        rich_help_panel=_REWRITE,
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="NAME",
        help=f"The passes for one target: {', '.join(complete_target(''))}.",
        show_default=False,
        autocompletion=complete_target,
        rich_help_panel=_REWRITE,
    ),
]
WayOption = Annotated[
    Way,
    typer.Option(
        "--way",
        metavar="WAY",
        help="How to open the model: trace (one graph), modules (its convolution modules are "
        "swapped), export (torch.export), or auto.",
        rich_help_panel=_REWRITE,
    ),
]
NoVerify = Annotated[
    bool,
    typer.Option(
        "--no-verify",
        help="Do not check that the function is the same.",
        rich_help_panel=_REWRITE,
    ),
]

Out = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="OUT",
        help="The file to write: .pt, .pt2 or .onnx.  [default: MODEL's name with .groupfx.pt, or "
        ".groupfx.onnx for an .onnx file, in this folder]",
        show_default=False,
        rich_help_panel=_OUTPUT,
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Replace a file that groupfx did not write, or MODEL itself.",
        rich_help_panel=_OUTPUT,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Rewrite, check and report, but write no model.", rich_help_panel=_OUTPUT
    ),
]
Json = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="FILE",
        help="Write the report as JSON; - for stdout, which then gets nothing else.",
        show_default=False,
        rich_help_panel=_OUTPUT,
    ),
]
OnnxOut = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="OUT.onnx",
        help="The file to write.  [default: MODEL's name with .onnx, in this folder]",
        show_default=False,
        rich_help_panel=_OUTPUT,
    ),
]
EmitPython = Annotated[
    Path | None,
    typer.Option(
        "--emit-python",
        metavar="FILE",
        help="Write the rewritten model as readable Python; - for stdout.",
        show_default=False,
        rich_help_panel=_OUTPUT,
    ),
]

DType = Annotated[
    Literal["float32", "float16"] | None,
    typer.Option(
        "--dtype",
        metavar="DTYPE",
        help="float32 or float16.  [default: the model's own]",
        show_default=False,
        rich_help_panel=_FILE_WRITTEN,
    ),
]
Opset = Annotated[
    int | None,
    typer.Option(
        "--opset",
        metavar="N",
        help="Opset of the file.  [default: 20]",
        show_default=False,
        rich_help_panel=_FILE_WRITTEN,
    ),
]
FixedBatch = Annotated[
    bool,
    typer.Option(
        "--fixed-batch",
        help="Take the batch of the inputs as it is given; else it is open.",
        rich_help_panel=_FILE_WRITTEN,
    ),
]
DynamicSizes = Annotated[
    bool,
    typer.Option(
        "--dynamic-sizes",
        help="Leave height, width and the like open as well.",
        rich_help_panel=_FILE_WRITTEN,
    ),
]
InputNames = Annotated[
    list[str] | None,
    typer.Option(
        "--input-name",
        metavar="NAME",
        help="Name of an input in the file, once for each, in order.",
        show_default=False,
        rich_help_panel=_FILE_WRITTEN,
    ),
]
OutputNames = Annotated[
    list[str] | None,
    typer.Option(
        "--output-name",
        metavar="NAME",
        help="Name of an output in the file, once for each, in order.",
        show_default=False,
        rich_help_panel=_FILE_WRITTEN,
    ),
]
ExternalData = Annotated[
    bool,
    typer.Option(
        "--external-data",
        help="Put the weights into OUT.onnx.data; done by itself above 2 GB.",
        rich_help_panel=_FILE_WRITTEN,
    ),
]
Reference = Annotated[
    Path,
    typer.Argument(
        metavar="REFERENCE",
        help="What is right: a model file as the other commands take it, or an .onnx file.",
        show_default=False,
    ),
]
Candidate = Annotated[
    Path,
    typer.Argument(
        metavar="CANDIDATE",
        help="What is to be checked: an .onnx file, or a model file.",
        show_default=False,
    ),
]
Atol = Annotated[
    list[str] | None,
    typer.Option(
        "--atol",
        metavar="NAME:VALUE",
        help="Largest |difference| allowed in this output of CANDIDATE, in place of 4 x the "
        "rounding error of REFERENCE. May be repeated.",
        show_default=False,
        rich_help_panel=_CHECK,
    ),
]
DataFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--inputs",
        metavar="FILE.npz",
        help="Compare on these inputs too: an array for each input, by its name. May be repeated.",
        show_default=False,
        rich_help_panel=_CHECK,
    ),
]

Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Errors only.", rich_help_panel=_MESSAGES),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        help="Why each site was left, and what torch warns of.",
        rich_help_panel=_MESSAGES,
    ),
]
Traceback = Annotated[
    bool,
    typer.Option(
        "--traceback", help="Show the Python traceback of an error.", rich_help_panel=_MESSAGES
    ),
]
Version = Annotated[
    bool,
    typer.Option("--version", help="Show the version.", show_default=False),
]
