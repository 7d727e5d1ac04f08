"""The options of all commands, each described once.

A command takes one dataclass. Options that several commands have together are dataclasses of their
own; the order of the fields is that of `--help`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from ...files.existing import factory_in
from ...passes import pass_names
from ...targets import target_names
from .files import ONNX
from .signature import argument, option
from .tuning import TUNING, TuningChoice

# As in groupfx.tracing, which would import torch; a test holds them together.
Way = Literal["auto", "trace", "modules", "export"]
# As in groupfx.tuning, likewise.
TORCH_BACKENDS = ("torch", "torch.compile")

_FILE = "Model file"
_REWRITE = "What to rewrite"
_GROUPS = "What to show"
OUTPUT = "Output"
_FILE_WRITTEN = "The ONNX file"
_CHECK = "The check"
_MESSAGES = "Messages"


def complete_pass(incomplete: str) -> Iterable[str]:
    """Names of passes for shell completion, from the table: no class is loaded."""
    return [name for name in pass_names() if name.startswith(incomplete)]


def complete_target(incomplete: str) -> Iterable[str]:
    """Names of targets for shell completion."""
    return [name for name in target_names() if name.startswith(incomplete)]


def stem(model: Path) -> str:
    """What a file made of `model` is called by itself."""
    factory = factory_in(model)
    return model.stem if factory is None else factory.rpartition(":")[2]


# What several commands say of an option that stands with others in each.
_MADE = "a state_dict (.pt, .pth, .safetensors) with --arch; or what makes it: file.py:Class."
_EXPORTED = f"A file of ours, a pickled module, a dict that holds one, or {_MADE}"
MODEL = f"A file of ours, a pickled module, a dict that holds one, an .onnx file, or {_MADE}"
_NO_VERIFY = "Do not check that the function is the same."
FORCE = "Replace a file that groupfx did not write, or MODEL itself."
_JSON = "Write the report as JSON; - for stdout, which then gets nothing else."
_TRACEBACK = "Show the Python traceback of an error."


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """How the file of a model is read, and what it is run on."""

    input_shape: list[str] | None = option(
        "--input-shape",
        panel=_FILE,
        metavar="SHAPE",
        help="Shape of an input of forward, batch first: 2,3,224,224, or name=2,3,32,32, or "
        "int64:2,16, or input_ids=int64:2,16. Once for each input. Inferred where not given.",
    )
    arch: str | None = option(
        "--arch",
        panel=_FILE,
        metavar="FACTORY",
        help="What makes the model that a state_dict belongs to: package.module:factory or "
        "file.py:factory. It is called, so its code runs.",
    )
    arch_args: str | None = option(
        "--arch-args",
        panel=_FILE,
        metavar="JSON",
        help="Keyword arguments of the factory, such as '{\"num_classes\": 10}'.",
    )
    key: str | None = option(
        "--key",
        panel=_FILE,
        metavar="NAME",
        help="Which network of a file that holds a dict: its name there, such as ema or model.ema.",
    )
    trust_pickle: bool = option(
        "--trust-pickle",
        panel=_FILE,
        default=False,
        help="Unpickle classes of any kind. This runs code from the file: only for files that you "
        "made yourself.",
    )
    python_path: list[Path] | None = option(
        "--python-path",
        panel=_FILE,
        metavar="DIR",
        help="Folder in which to look for the classes and the factory. May be repeated.",
    )


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What is rewritten, and how the model is opened for it."""

    passes: list[str] | None = option(
        "--pass",
        "-p",
        panel=_REWRITE,
        metavar="PASS",
        help="A pass, with its options after a colon: name:option=value,option=value; or one of "
        "your own: file.py:Class. May be repeated; they run in this order. 'groupfx passes' lists "
        "them.",
        complete=complete_pass,
    )
    target: str | None = option(
        "--target",
        panel=_REWRITE,
        metavar="NAME",
        help=f"The passes for one target: {', '.join(complete_target(''))}; or a file of facts, "
        "FILE.toml.",
        complete=complete_target,
    )
    way: Way = option(
        "--way",
        panel=_REWRITE,
        metavar="WAY",
        default="auto",
        help="How to open the model: trace (one graph), modules (its convolution modules are "
        "swapped), export (torch.export), or auto.",
    )


@dataclass(frozen=True, kw_only=True)
class Check:
    """What two models are compared on, and how closely."""

    atol: list[str] | None = option(
        "--atol",
        panel=_CHECK,
        metavar="NAME:VALUE",
        help="Largest |difference| allowed in this output of CANDIDATE, in place of 4 x the "
        "rounding error of REFERENCE. May be repeated.",
    )
    inputs: list[Path] | None = option(
        "--inputs",
        panel=_CHECK,
        metavar="FILE.npz",
        help="Compare on these inputs too: an array for each input, by its name. May be repeated.",
    )
    save_repro: Path | None = option(
        "--save-repro",
        panel=_CHECK,
        metavar="DIR",
        help="Where they differ, write the smallest part that does into this new folder, with its "
        "inputs and a script that shows it.",
    )


@dataclass(frozen=True, kw_only=True)
class Told:
    """What is said, and where."""

    json: Path | None = option("--json", panel=OUTPUT, metavar="FILE", help=_JSON)
    quiet: bool = option("--quiet", "-q", panel=_MESSAGES, default=False, help="Errors only.")
    verbose: bool = option(
        "--verbose",
        "-v",
        panel=_MESSAGES,
        default=False,
        help="Why each site was left, and what torch warns of.",
    )
    traceback: bool = option("--traceback", panel=_MESSAGES, default=False, help=_TRACEBACK)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What is written to be looked at."""

    html: Path | None = option(
        "--html",
        panel=OUTPUT,
        metavar="FILE.html",
        help="Write a page that shows the result: one file that needs no network.",
    )


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """What is laid over the graph of an ONNX file."""

    overlay: Path | None = option(
        "--overlay",
        panel=OUTPUT,
        metavar="FILE.json",
        help="Write the error of each node as node data of Model Explorer, which colours the graph "
        "of the ONNX file by it.",
    )


@dataclass(frozen=True, kw_only=True)
class OnnxFile:
    """What an ONNX file is to be like."""

    dtype: Literal["float32", "float16"] | None = option(
        "--dtype",
        panel=_FILE_WRITTEN,
        metavar="DTYPE",
        help="float32 or float16.  [default: the model's own]",
    )
    opset: int | None = option(
        "--opset", panel=_FILE_WRITTEN, metavar="N", help="Opset of the file.  [default: 20]"
    )
    fixed_batch: bool = option(
        "--fixed-batch",
        panel=_FILE_WRITTEN,
        default=False,
        help="Take the batch of the inputs as it is given; else it is open.",
    )
    dynamic_sizes: bool = option(
        "--dynamic-sizes",
        panel=_FILE_WRITTEN,
        default=False,
        help="Leave height, width and the like open as well.",
    )
    input_name: list[str] | None = option(
        "--input-name",
        panel=_FILE_WRITTEN,
        metavar="NAME",
        help="Name of an input in the file, once for each, in order.",
    )
    output_name: list[str] | None = option(
        "--output-name",
        panel=_FILE_WRITTEN,
        metavar="NAME",
        help="Name of an output in the file, once for each, in order.",
    )
    external_data: bool = option(
        "--external-data",
        panel=_FILE_WRITTEN,
        default=False,
        help="Put the weights into a file of their own beside OUT.onnx; done by itself above 2 GB.",
    )


@dataclass(frozen=True, kw_only=True)
class RewriteCommand:
    """`groupfx rewrite`."""

    model: Path = argument("MODEL", MODEL)
    file: ModelFile
    chosen: Chosen
    no_verify: bool = option("--no-verify", panel=_REWRITE, default=False, help=_NO_VERIFY)
    output: Path | None = option(
        "--output",
        "-o",
        panel=OUTPUT,
        metavar="OUT",
        help="The file to write: .pt, .pt2 or .onnx.  [default: MODEL's name with .groupfx.pt, or "
        ".groupfx.onnx for an .onnx file, in this folder]",
    )
    force: bool = option("--force", panel=OUTPUT, default=False, help=FORCE)
    dry_run: bool = option(
        "--dry-run",
        panel=OUTPUT,
        default=False,
        help="Rewrite, check and report, but write no model.",
    )
    emit_python: Path | None = option(
        "--emit-python",
        panel=OUTPUT,
        metavar="FILE",
        help="Write Python that makes these changes to your model, or is the model; - for stdout.",
    )
    shown: Shown
    told: Told

    @property
    def place(self) -> Path:
        """Where the model goes."""
        ending = ONNX if self.model.suffix == ONNX else ".pt"
        return self.output or Path(f"{stem(self.model)}.groupfx{ending}")


@dataclass(frozen=True, kw_only=True)
class InspectCommand:
    """`groupfx inspect`."""

    model: Path = argument("MODEL", MODEL)
    file: ModelFile
    chosen: Chosen
    told: Told


@dataclass(frozen=True, kw_only=True)
class ExportCommand:
    """`groupfx export`."""

    model: Path = argument("MODEL", _EXPORTED)
    file: ModelFile
    chosen: Chosen
    no_verify: bool = option("--no-verify", panel=_REWRITE, default=False, help=_NO_VERIFY)
    output: Path | None = option(
        "--output",
        "-o",
        panel=OUTPUT,
        metavar="OUT.onnx",
        help="The file to write.  [default: MODEL's name with .onnx, in this folder]",
    )
    written: OnnxFile
    tune: bool = option(
        "--tune",
        panel=TUNING,
        default=False,
        help="Measure which form of each site is fastest here, as 'groupfx tune' does; the options "
        "below are for that.",
    )
    tuning: TuningChoice
    check: Check
    force: bool = option("--force", panel=OUTPUT, default=False, help=FORCE)
    laid: Overlay
    shown: Shown
    told: Told

    @property
    def place(self) -> Path:
        """Where the file goes."""
        return self.output or Path(f"{stem(self.model)}{ONNX}")


@dataclass(frozen=True, kw_only=True)
class TuneCommand:
    """`groupfx tune`."""

    model: Path = argument("MODEL", MODEL)
    file: ModelFile
    tuning: TuningChoice
    device: str | None = option(
        "--device",
        panel=TUNING,
        metavar="NAME",
        help="Where a backend of torch runs, such as cuda.  [default: cpu]",
    )
    no_verify: bool = option("--no-verify", panel=_CHECK, default=False, help=_NO_VERIFY)
    output: Path | None = option(
        "--output",
        "-o",
        panel=OUTPUT,
        metavar="OUT",
        help="The file to write.  [default: MODEL's name with .tuned.onnx, or with .tuned.pt for a "
        "backend of torch, in this folder]",
    )
    written: OnnxFile
    check: Check
    force: bool = option("--force", panel=OUTPUT, default=False, help=FORCE)
    shown: Shown
    told: Told

    @property
    def place(self) -> Path:
        """Where the file goes."""
        ending = ".pt" if self.of_torch else ONNX
        return self.output or Path(f"{stem(self.model)}.tuned{ending}")

    @property
    def of_torch(self) -> bool:
        """Whether a torch model is tuned for torch."""
        return self.tuning.backend in TORCH_BACKENDS


@dataclass(frozen=True, kw_only=True)
class ValidateCommand:
    """`groupfx validate`."""

    reference: Path = argument(
        "REFERENCE", "What is right: a model file as the other commands take it, or an .onnx file."
    )
    candidate: Path = argument(
        "CANDIDATE", "What is to be checked: an .onnx file, or a model file."
    )
    file: ModelFile
    check: Check
    laid: Overlay
    shown: Shown
    told: Told


@dataclass(frozen=True, kw_only=True)
class GroupsCommand:
    """`groupfx groups`."""

    models: list[Path] = argument(
        "MODEL",
        "One model: any file that the other commands read, a state_dict without --arch, a "
        "pickled module of any class. Or a series: several checkpoints, or a folder of them.",
    )
    file: ModelFile
    layer: list[str] | None = option(
        "--layer",
        panel=_GROUPS,
        metavar="PATTERN",
        help="Only layers whose names fit this pattern, such as 'blocks.1?.*'. May be repeated.",
    )
    filters: bool = option(
        "--filters",
        panel=_GROUPS,
        default=False,
        help="Of a series: follow the filters, not the input channels.",
    )
    plot: Path | None = option(
        "--plot",
        panel=OUTPUT,
        metavar="FILE",
        help="Draw it, as .png or .svg: the masks before and after permutation, or the changes "
        "over the epochs. Needs matplotlib.",
    )
    told: Told

    @property
    def series(self) -> bool:
        """Whether these are several checkpoints of one model."""
        return len(self.models) > 1 or self.models[0].is_dir()


@dataclass(frozen=True, kw_only=True)
class PassesCommand:
    """`groupfx passes`."""

    name: str | None = argument(
        "PASS", "Show this pass only.", optional=True, complete=complete_pass
    )
    json: Path | None = option("--json", panel=OUTPUT, metavar="FILE", help=_JSON)
    traceback: bool = option("--traceback", panel=_MESSAGES, default=False, help=_TRACEBACK)


Version = Annotated[
    bool,
    typer.Option("--version", help="Show the version.", show_default=False),
]
