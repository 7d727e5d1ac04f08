"""From `--atol` and `--inputs` to the options of a validation."""

from collections.abc import Mapping, Sequence

from ...api.onnx import read_arrays
from ...deploy import ValidationOptions
from ...errors import UsageError
from .options import Check

_ATOL = "write NAME:VALUE, such as logits:1e-4"


def validation_options(
    check: Check, shapes: Mapping[str | int, tuple[int, ...]] | None = None
) -> ValidationOptions:
    """Read the texts and the files. Raises UsageError or FileError."""
    atol = _tolerances(check.atol or ())
    return ValidationOptions(atol, read_arrays(check.inputs or ()), shapes=shapes or {})


def _tolerances(texts: Sequence[str]) -> Mapping[str, float]:
    """`logits:1e-4` as a table."""
    found: dict[str, float] = {}
    for text in texts:
        name, colon, value = text.rpartition(":")
        try:
            found[name] = float(value)
        except ValueError as error:
            raise UsageError(f"--atol {text!r}: {value!r} is not a number; {_ATOL}") from error
        if not colon or not name:
            raise UsageError(f"--atol {text!r} names no output; {_ATOL}")
    return found
