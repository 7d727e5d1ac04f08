"""`groupfx.check` for ONNX files of any producer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..deploy import OnnxSide, ValidationOptions, check_made, read_onnx, rewrite_graph, subjects_of
from ..rewriting import Pass, Progress
from ..targets import Target
from .check import Attempt, Checked, Judgement, judgement, mended
from .onnx import OnnxResult, onnx_passes, require_same


def checked_file(
    path: Path,
    target: Target,
    methods: tuple[str, ...],
    *,
    fix: bool,
    progress: Progress | None,
    shapes: Mapping[str | int, tuple[int, ...]] | None,
) -> Checked:
    """What `target` takes of an ONNX file. Raises as `groupfx.check` does."""
    given = read_onnx(path)

    def judged(model: Any) -> Judgement:
        return judgement(subjects_of(model), target, methods)

    def rewrite(passes: Sequence[Pass[Any]], verify: bool) -> Attempt:
        made = rewrite_graph(given, onnx_passes(passes, None))
        check_made(given, made.model)
        verdict = None
        if verify and made.changed:
            sides = OnnxSide(str(path), given), OnnxSide("the rewritten model", made.model)
            options = ValidationOptions(shapes=shapes or {})
            verdict = require_same("the rewritten model", *sides, options, progress)
        skipped = {site.name: site.reason for site in made.skipped}
        return Attempt(judged(made.model), skipped, OnnxResult(made, (), verdict))

    return mended(Checked(target, methods, judged(given)), rewrite, fix=fix)
