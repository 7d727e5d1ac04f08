"""Tuning a file on the screen: a bar while it goes on, and where the plan went."""

from ...api.tuning import Feeds, tuned
from ...deploy import PreparedExport
from ...tuning import Tuning
from ..input.onnx_file import tuning_of
from ..input.options import TuningChoice
from .screen import Screen


def tuned_file(
    screen: Screen,
    prepared: PreparedExport,
    feeds: Feeds,
    options: TuningChoice,
) -> tuple[PreparedExport, Tuning]:
    """The tuned file, in memory; its plan is written where that is wanted."""
    words = "Applying the plan" if options.plan is not None else "Tuning"
    with screen.work(words, what="variants and heats") as progress:
        made, tuning = tuned(prepared, feeds, tuning_of(options), progress)
    if options.save_plan is not None:
        tuning.plan.save(options.save_plan)
        screen.wrote(options.save_plan)
    return made, tuning
