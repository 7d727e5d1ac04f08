"""Whether a value is what it should be: one function, which the saved script has as well.

It needs numpy alone, and what it is made of goes into the script as it stands here.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def difference(found: Any, expected: Any, allowed: Any, allowed_rms: Any) -> str | None:
    """How far `found` is from `expected`, or None where that is within what is allowed.

    `allowed` is for each element, or one number for all. `allowed_rms` is for the root mean square
    of each channel (axis 1), or of everything.
    """
    if found.shape != expected.shape:
        return f"has the shape {list(found.shape)} instead of {list(expected.shape)}"
    with np.errstate(all="ignore"):
        off = np.abs(found.astype(np.float64) - expected.astype(np.float64))
    off = np.where((found == expected) | ((found != found) & (expected != expected)), 0.0, off)
    axes = tuple(k for k in range(off.ndim) if k != 1) if np.ndim(allowed_rms) else None
    rms = np.sqrt(np.mean(off**2, axis=axes)) if off.size else np.zeros(())
    # Not "greater than": what is not a number is never within a bound.
    if np.all(off <= allowed) and np.all(rms <= allowed_rms):
        return None
    place = np.unravel_index(int(np.argmax(np.nan_to_num(off, nan=np.inf))), off.shape)
    where = ", ".join(map(str, map(int, place)))
    worst = f"{found[place]:.9g} instead of {expected[place]:.9g} at [{where}]"
    return f"differs: {worst}; root mean square {float(np.max(rms)):.3g}"
