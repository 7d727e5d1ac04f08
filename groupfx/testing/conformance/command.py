"""A tool as a command line, in whatever language it is written.

    a runtime     mytool {model} {inputs} {outputs}     .onnx and .npz in, .npz out
    a converter   mytool {model} {out}                  .onnx in, .onnx out, run in ONNX Runtime

Arrays have the names of the model's inputs and outputs. An exit code that is not 0 is a refusal,
with the last line of stderr as its reason; a signal is a crash.
"""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from ...errors import UsageError
from ..kit import Case
from .adapter import Adapter, Crashed, Outputs, WrongResult, run_converted

MODEL, INPUTS, OUTPUTS, OUT = "{model}", "{inputs}", "{outputs}", "{out}"
# A shell tells of a signal so, in place of a negative number.
_SIGNALS_OF_SHELLS = 128


class Refused(Exception):
    """The command ended with an exit code that is not 0."""


def is_command(tool: str) -> bool:
    """Whether a tool is given as a command line."""
    return MODEL in tool


def command_adapter(tool: str) -> Adapter:
    """The adapter of a command line. Raises `UsageError` where a placeholder is missing."""
    try:
        words = shlex.split(tool)
    except ValueError as error:
        raise UsageError(f"{tool!r} is no command line: {error}") from error
    if (OUTPUTS in tool) == (OUT in tool) or (OUTPUTS in tool) != (INPUTS in tool):
        raise UsageError(
            f"{tool!r}: a runtime reads {MODEL} and {INPUTS} and writes {OUTPUTS}; a "
            f"converter reads {MODEL} and writes {OUT}"
        )
    run = partial(_convert if OUT in tool else _run, words)
    return Adapter(Path(words[0]).name, run)


def _convert(words: list[str], case: Case) -> Outputs:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        _call(words, {MODEL: _model(case, folder), OUT: out})
        return run_converted(case, _written(out).read_bytes())


def _run(words: list[str], case: Case) -> Outputs:
    found = []
    with tempfile.TemporaryDirectory() as folder:
        model, inputs = _model(case, folder), Path(folder) / "inputs.npz"
        for position, feeds in enumerate(case.feeds):
            outputs = Path(folder) / f"outputs{position}.npz"
            np.savez(inputs, **feeds)  # type: ignore[arg-type]
            _call(words, {MODEL: model, INPUTS: inputs, OUTPUTS: outputs})
            with np.load(_written(outputs)) as arrays:
                found.append(dict(arrays))
    return found


def _model(case: Case, folder: str) -> Path:
    path = Path(folder) / "model.onnx"
    path.write_bytes(case.onnx.SerializeToString())
    return path


def _written(path: Path) -> Path:
    if not path.is_file():
        raise WrongResult("it ended with 0, and wrote no file")
    return path


def _call(words: list[str], paths: dict[str, Path]) -> None:
    filled = []
    for word in words:
        for name, path in paths.items():
            word = word.replace(name, str(path))
        filled.append(word)
    try:
        done = subprocess.run(filled, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise UsageError(f"{filled[0]} cannot be run: {error.strerror}") from error
    said = [line for line in done.stderr.splitlines() if line.strip()]
    last = said[-1].strip() if said else "it said nothing"
    last = last.replace(f"{next(iter(paths.values())).parent}/", "")
    if done.returncode < 0 or done.returncode > _SIGNALS_OF_SHELLS:
        raise Crashed(f"exit code {done.returncode}: {last}")
    if done.returncode:
        raise Refused(f"exit code {done.returncode}: {last}")
