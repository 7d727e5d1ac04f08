"""Tuning a file on the screen: a bar while it goes on, and where the plan went."""

from collections.abc import Sequence

from ...api.tuning import Feeds, tuned
from ...deploy import PreparedExport
from ...running.stages import Stage, Stages
from ...tuning import Tuning
from ..input.onnx_file import tuning_of
from ..input.tuning import TuningChoice
from .screen import Screen
from .table import Column, Table


def tuned_file(
    screen: Screen,
    prepared: PreparedExport,
    feeds: Feeds,
    options: TuningChoice,
    stages: Stages | None = None,
) -> tuple[PreparedExport, Tuning]:
    """The tuned file, in memory; its plan is written where that is wanted."""
    words = "Applying the plan" if options.plan is not None else "Tuning"
    with screen.work(words, what="variants and heats") as progress:
        made, tuning = tuned(prepared, feeds, tuning_of(options), progress, stages)
    if options.save_plan is not None:
        tuning.plan.save(options.save_plan)
        screen.wrote(options.save_plan)
    return made, tuning


def show_stages(screen: Screen, stages: Sequence[Stage]) -> None:
    """What each stage took, for those who asked for more."""
    if not screen.verbose or not stages:
        return
    total = Stage("together", sum(s.wall for s in stages), sum(s.cpu for s in stages))
    rows = [(s.name, f"{s.wall:.1f} s", f"{s.cpu:.1f} s") for s in (*stages, total)]
    screen.line()
    columns = [Column("stage"), Column("time", right=True), Column("processor", right=True)]
    screen.table(Table(columns, rows))
