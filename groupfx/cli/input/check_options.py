"""The options of `groupfx check`."""

from dataclasses import dataclass
from pathlib import Path

from .files import ONNX
from .options import FORCE, MODEL, OUTPUT, ModelFile, Told, Way, complete_target, stem
from .signature import argument, option

_TARGET = "The target"


@dataclass(frozen=True, kw_only=True)
class CheckCommand:
    """`groupfx check`."""

    model: Path = argument("MODEL", MODEL)
    file: ModelFile
    target: str | None = option(
        "--target",
        panel=_TARGET,
        metavar="NAME",
        help=f"What it is for: {', '.join(complete_target(''))}; or a file of facts, FILE.toml.",
        complete=complete_target,
    )
    method: list[str] | None = option(
        "--method",
        panel=_TARGET,
        metavar="NAME",
        help="Only this part of the target, such as PIT of plinio. May be repeated.",
    )
    way: Way = option(
        "--way",
        panel=_TARGET,
        metavar="WAY",
        default="auto",
        help="How to open the model: auto, trace, modules or export.",
    )
    fix: bool = option(
        "--fix",
        panel=OUTPUT,
        default=False,
        help="Run the passes that help, prove the result, and write it.",
    )
    output: Path | None = option(
        "--output",
        "-o",
        panel=OUTPUT,
        metavar="OUT",
        help="The file that --fix writes: .pt, .pt2 or .onnx.  [default: MODEL's name with the "
        "target's, in this folder]",
    )
    force: bool = option("--force", panel=OUTPUT, default=False, help=FORCE)
    junit: Path | None = option(
        "--junit",
        panel=OUTPUT,
        metavar="FILE",
        help="Write a test case for each site as JUnit XML, for a CI; - for stdout.",
    )
    told: Told

    def place(self, target: str) -> Path:
        """Where the file goes that is rewritten for a target of this name."""
        ending = ONNX if self.model.suffix == ONNX else ".pt"
        return self.output or Path(f"{stem(self.model)}.{target}{ending}")
