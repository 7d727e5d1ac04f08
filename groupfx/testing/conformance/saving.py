"""The cases as files, for whoever runs them elsewhere.

KIND/VARIANT/model.onnx       the model
KIND/VARIANT/inputs_0.npz     an array for each input, by name; _1 where there are other sizes
KIND/VARIANT/answers_0.npz    for each output NAME its float64 value, and NAME.bound, the largest
                              allowed |difference| of each number
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..kit import Case


def save_cases(cases: Sequence[Case], folder: Path) -> None:
    """Write each case into a folder of its own. Raises OSError."""
    for case in cases:
        place = folder / case.name
        place.mkdir(parents=True, exist_ok=True)
        (place / "model.onnx").write_bytes(case.onnx.SerializeToString())
        for number, (feeds, answers) in enumerate(zip(case.feeds, case.answers, strict=True)):
            arrays = {answer.name: answer.value for answer in answers}
            bounds = {f"{answer.name}.bound": answer.bound for answer in answers}
            np.savez(place / f"inputs_{number}.npz", **feeds)  # type: ignore[arg-type]
            np.savez(place / f"answers_{number}.npz", **arrays, **bounds)  # type: ignore[arg-type]
