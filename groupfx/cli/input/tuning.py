"""The options of what is tuned, which `groupfx tune` and `export --tune` have together."""

from dataclasses import dataclass
from pathlib import Path

from .signature import option

TUNING = "Tuning"
SESSION = (
    "An option of your ONNX Runtime session, under which all is measured: an attribute of "
    "SessionOptions, such as execution_mode=ORT_PARALLEL, or an entry of its configuration, such "
    "as session.disable_prepacking=1, or free_dimension.NAME=N. May be repeated."
)


@dataclass(frozen=True, kw_only=True)
class TuningChoice:
    """What is measured, and for how long."""

    budget: float = option(
        "--budget",
        panel=TUNING,
        metavar="SECONDS",
        default=60.0,
        help="How long to measure, at most about.",
    )
    threads: int = option(
        "--threads", panel=TUNING, metavar="N", default=1, help="Threads of the runtime."
    )
    batch: int | None = option(
        "--batch",
        panel=TUNING,
        metavar="N",
        help="The batch that the file is to be fast with.  [default: that of the inputs; 1 for an "
        ".onnx file that leaves it open]",
    )
    backend: str = option(
        "--backend",
        panel=TUNING,
        metavar="NAME",
        default="onnxruntime",
        help="The runtime: onnxruntime; openvino where it is installed; torch (eager) or "
        "torch.compile, for which OUT is a .pt file of ours.",
    )
    session: list[str] | None = option(
        "--session", panel=TUNING, metavar="NAME=VALUE", help=SESSION
    )
    plan: Path | None = option(
        "--plan",
        panel=TUNING,
        metavar="FILE",
        help="Apply this plan without measuring, where it fits: the same bytes as when it was "
        "made.",
    )
    save_plan: Path | None = option(
        "--save-plan",
        panel=TUNING,
        metavar="FILE",
        help="Write the plan as JSON, to be read, edited and applied again.",
    )
    no_cache: bool = option(
        "--no-cache",
        panel=TUNING,
        default=False,
        help="Measure all anew, and keep nothing. Times are kept in $GROUPFX_CACHE, or in "
        "~/.cache/groupfx.",
    )
