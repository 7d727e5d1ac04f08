"""The options of `groupfx zoo`."""

from dataclasses import dataclass
from pathlib import Path

from .options import Chosen, ModelFile, Shown, Told
from .signature import argument, option

_OUTPUT = "Output"
_EACH = "What else is done to each model"
_LIMITS = "What a model may take"
_FLEET = "The fleet"


@dataclass(frozen=True, kw_only=True)
class ZooCommand:
    """`groupfx zoo`."""

    manifests: list[Path] = argument(
        "MANIFEST",
        "A list of models (.json, .yaml), a folder of models, or models by themselves. An entry of "
        "a list is a path, or a mapping with model or factory, and with options of its own: "
        '{model: net.pt, input_shape: "2,3,64,64", target: plinio}.',
    )
    file: ModelFile
    chosen: Chosen
    no_verify: bool = option(
        "--no-verify",
        panel=_EACH,
        default=False,
        help="Do not check that the functions are the same.",
    )
    save: bool = option(
        "--save", panel=_EACH, default=False, help="Write each rewritten model, as 'rewrite' does."
    )
    export: bool = option(
        "--export",
        panel=_EACH,
        default=False,
        help="Write an ONNX file of each, validated, as 'export' does.",
    )
    validate: bool = option(
        "--validate",
        panel=_EACH,
        default=False,
        help="Make and validate the ONNX file, without keeping it.",
    )
    tune: bool = option(
        "--tune",
        panel=_EACH,
        default=False,
        help="Measure which form of each site is fastest for the ONNX file, as 'tune' does.",
    )
    budget: float = option(
        "--budget",
        panel=_EACH,
        metavar="SECONDS",
        default=60.0,
        help="How long to measure a model, at most about.",
    )
    time: float = option(
        "--time",
        panel=_LIMITS,
        metavar="SECONDS",
        default=600.0,
        help="What one model may take; then its process is ended.",
    )
    memory: str | None = option(
        "--memory",
        panel=_LIMITS,
        metavar="SIZE",
        help="Resident memory that one model may take, such as 4GB.  [default: what is free, by "
        "the number of workers]",
    )
    jobs: int | None = option(
        "--jobs",
        "-j",
        panel=_FLEET,
        metavar="N",
        help="Models at a time, each in a process of its own.  [default: one a core; one alone "
        "where models are tuned]",
    )
    scheduler: str | None = option(
        "--scheduler",
        panel=_FLEET,
        metavar="ADDRESS",
        help="Run on the workers of a Dask cluster that sees the same files: tcp://host:8786.",
    )
    shard: str | None = option(
        "--shard",
        panel=_FLEET,
        metavar="I/N",
        help="Only every N-th model from the I-th on, for a job of an array: 1/8 to 8/8. The same "
        "command without it joins the results.",
    )
    join: list[Path] | None = option(
        "--join",
        panel=_FLEET,
        metavar="PATH",
        help="Results of another run that count as well: its folder, or a file of results. May be "
        "repeated.",
    )
    retry: bool = option(
        "--retry", panel=_FLEET, default=False, help="Run those that failed once more."
    )
    retry_environment: bool = option(
        "--retry-environment",
        panel=_FLEET,
        default=False,
        help="Run those alone that the environment failed: a full disk, no memory, a missing "
        "package, a lost worker.",
    )
    again: bool = option(
        "--again", panel=_FLEET, default=False, help="Run all, also those with a result."
    )
    output: Path | None = option(
        "--output",
        "-o",
        panel=_OUTPUT,
        metavar="DIR",
        help="Folder for the results, and for files of models.  [default: MANIFEST's name with "
        ".zoo, in this folder]",
    )
    shown: Shown
    told: Told

    @property
    def place(self) -> Path:
        """Where the results go."""
        return self.output or Path(f"{self.manifests[0].resolve().stem}.zoo")
