"""From the options about an ONNX file, and about tuning it, to what the library takes."""

from pathlib import Path

from ...api.tuning import tuning_options
from ...deploy import DEFAULT_OPSET, Dynamic, ExportOptions, SiteForms
from ...errors import UsageError
from ...tuning import TuningOptions
from .files import check_distinct, check_folder
from .options import OnnxFile
from .tuning import TuningChoice


def onnx_file(options: OnnxFile, forms: SiteForms) -> ExportOptions:
    """What the file is to be like."""
    return ExportOptions(
        dtype=options.dtype,
        opset=DEFAULT_OPSET if options.opset is None else options.opset,
        dynamic=Dynamic(not options.fixed_batch, options.dynamic_sizes),
        input_names=options.input_name or None,
        output_names=options.output_name or None,
        external_data=True if options.external_data else None,
        forms=forms,
    )


def tuning_of(options: TuningChoice) -> TuningOptions:
    """How it is tuned. Raises UsageError or FileError."""
    return tuning_options(
        options.budget,
        options.threads,
        options.backend,
        options.plan,
        cache=not options.no_cache,
        session=options.session,
    )


def check_tuning(options: TuningChoice, place: Path, *, used: bool) -> None:
    """Refuse early what cannot be, and options that nothing would look at."""
    if not used:
        plain = vars(TuningChoice())
        given = [name for name, own in vars(options).items() if own != plain[name]]
        if given:
            named = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise UsageError(f"{named}: only with --tune, or in 'groupfx tune'")
        return
    tuning_of(options)
    if options.batch is not None and options.batch < 1:
        raise UsageError(f"--batch {options.batch}: it must be at least 1")
    check_distinct({"--plan": options.plan, "-o": place, "--save-plan": options.save_plan})
    check_folder(options.save_plan, "--save-plan")
