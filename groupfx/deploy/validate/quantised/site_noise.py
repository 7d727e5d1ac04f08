"""What is told of a site of a quantised file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ....verify.measures import plain_number
from .belonging import Fault


@dataclass(frozen=True)
class SiteNoise:
    """A site of a quantised file, at its worst run.

    `snr_db` is the signal-to-noise ratio from the file's own input, `least_snr_db` the least that
    its steps explain; None where the site was not run. `saturated` is the share of its values
    beyond the range of its scale, `weight_steps` the worst error of a channel of its weight in
    steps. `ratio` is the error by what is allowed. `fault` says what of it does not belong to the
    float one.
    """

    name: str
    layout: str
    bits: int
    snr_db: float | None
    least_snr_db: float | None
    saturated: float
    not_finite: int
    weight_steps: float | None
    weight_saturated: float
    ratio: float
    fault: Fault | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return self.fault is None

    def to_dict(self) -> dict[str, Any]:
        """Plain data; a number that is not finite is None."""
        numbers = {k: plain_number(v) for k, v in vars(self).items() if isinstance(v, float)}
        fault = None
        if self.fault is not None:
            fault = {**vars(self.fault), "channels": list(self.fault.channels)}
        return {**vars(self), **numbers, "ok": self.ok, "fault": fault}
