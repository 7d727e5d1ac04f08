"""What a rewrite returns: the model, the report, and the way back to the original's checkpoints."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..errors import MismatchError, ModelError
from ..files.archive import Archive, Calls, check_replaceable, write
from ..files.atomic import whole_file
from ..nn.marks import fold_of
from ..plan.channel_order import NOTE_FILE
from ..running.alone import alone
from ..state.map import StateDictMap
from ..tracing import CannotTrace, Program, export_program
from ..verify import compare_models
from .report import Report
from .report_text import summary, verdict


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

    def __repr__(self) -> str:
        """Three lines: the model, what was done, and whether it is the same function."""
        number = sum(parameter.numel() for parameter in self.model.parameters())
        left = f" {len(self.report.skipped)} left." if self.report.skipped else ""
        return (
            f"Result: {type(self.model).__name__} with {number:,} parameters\n"
            f"  {summary(self.report)}{left}\n"
            f"  {verdict(self.report)}"
        )

    @alone
    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the model as plain data that `groupfx.load` reads without trust.

        A model whose modules were swapped is written as its state and the graphs that replace
        them: reading it back needs the model that it was made from. Raises `FileError` where the
        model holds what cannot be written as data, or where `path` is a file that groupfx did not
        write (`overwrite=True` replaces it).
        """
        write(path, self.archive(), overwrite=overwrite)

    def save_exported(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the model as a `.pt2` of `torch.export`: in eval mode, sizes dynamic that can be.

        What is written is compared with `model` first, in float64. Raises `ModelError` where
        `torch.export` does not take the model, `MismatchError` where it makes another function of
        it, and `FileError` where `path` exists and `overwrite` is not given.
        """
        place = Path(path)
        check_replaceable(place, overwrite=overwrite)
        inputs = self.program.inputs
        assert inputs is not None
        try:
            program = export_program(self.model, inputs)
        except CannotTrace as error:
            raise ModelError(f"torch.export does not take the rewritten model: {error}") from error
        verdict = compare_models(self.model, program.module(), inputs.with_batch(2), vary=False)
        if not verdict.ok:
            raise MismatchError(f"the exported model computes something else: {verdict.reason}")
        note = fold_of(self.model)
        extra = {} if note is None else {NOTE_FILE: json.dumps(note.to_plain())}
        with whole_file(place) as file:
            torch.export.save(program, file, extra_files=extra)

    def archive(self) -> Archive:
        """What `save` writes."""
        program = self.program
        report = {**self.report.to_dict(), "state_dict_map": self.state_dict_map.to_dict()}
        if program.way == "modules":
            changed = [fragment for fragment in program.fragments if fragment.changed]
            return Archive.of_modules(
                {f.path: f.working for f in changed if f.calls_of is None},
                self.model.state_dict(),
                calls=[Calls(f.path, f.calls_of, f.working) for f in changed if f.calls_of],
                inputs=self.report.inputs,
                report=report,
            )
        return Archive.of_graph(self.model, program.way, inputs=self.report.inputs, report=report)
