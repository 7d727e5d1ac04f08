"""What a rewrite returns: the model, the report, and the way back to the original's checkpoints."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ..archive import Archive, write
from ..state_map import StateDictMap
from ..tracing.program import Program
from .report import Report


@dataclass(frozen=True)
class Result:
    """A rewritten model.

    `model` takes the same inputs and gives the same outputs as the original, and can be trained.
    `report` says what was done at each site. `state_dict_map` carries checkpoints and optimiser
    state both ways.
    """

    model: nn.Module
    report: Report
    state_dict_map: StateDictMap
    program: Program

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the model as plain data that `groupfx.load` reads without trust.

        A model whose modules were swapped is written as its state and the graphs that replace
        them: reading it back needs the model that it was made from. Raises `FileError` where the
        model holds what cannot be written as data, or where `path` is a file that groupfx did not
        write (`overwrite=True` replaces it).
        """
        write(path, self.archive(), overwrite=overwrite)

    def archive(self) -> Archive:
        """What `save` writes."""
        program = self.program
        report = {**self.report.to_dict(), "state_dict_map": self.state_dict_map.to_dict()}
        if program.way == "modules":
            fragments = {f.path: f.working for f in program.fragments if f.changed}
            return Archive.of_modules(
                fragments, self.model.state_dict(), inputs=self.report.inputs, report=report
            )
        return Archive.of_graph(self.model, program.way, inputs=self.report.inputs, report=report)
