"""The options of `groupfx bench`."""

from dataclasses import dataclass
from pathlib import Path

from .options import ModelFile, Told
from .signature import argument, option
from .tuning import SESSION

_RACE = "The race"


@dataclass(frozen=True, kw_only=True)
class BenchCommand:
    """`groupfx bench`."""

    models: list[Path] = argument(
        "MODEL",
        "Two models or more: .onnx files, which are run as they are, or any file that the other "
        "commands read, which is exported as it is. The others are compared with the first.",
    )
    file: ModelFile
    backend: str = option(
        "--backend",
        panel=_RACE,
        metavar="NAME",
        default="onnxruntime",
        help="The runtime: onnxruntime; openvino where it is installed; torch (eager) or "
        "torch.compile, for torch models.",
    )
    threads: int = option(
        "--threads", panel=_RACE, metavar="N", default=1, help="Threads of the runtime."
    )
    session: list[str] | None = option("--session", panel=_RACE, metavar="NAME=VALUE", help=SESSION)
    batch: int | None = option(
        "--batch",
        panel=_RACE,
        metavar="N",
        help="The batch.  [default: that of the inputs; 1 for an .onnx file that leaves it open]",
    )
    budget: float = option(
        "--budget",
        panel=_RACE,
        metavar="SECONDS",
        default=20.0,
        help="How long to race, at most about.",
    )
    told: Told
