"""Sameness: of a site, of a whole model, and of results in lower precision.

`compare_regions` proves one site, `compare_models` a model end to end, `observable_sites` says
which sites the end of a model can see, and `yardstick` holds the rule for lower precision and other
runtimes. `Float64` runs a model in float64 as it is. `Fingerprint` notices a changed model.
"""

from ..running.float64 import Float64
from .bounds import Rounding
from .measures import Difference, difference
from .models import (
    Float64Runner,
    ModelVerdict,
    OutputVerdict,
    compare_models,
    other_spatial,
    small_inputs,
)
from .observable import observable_sites, observed_at
from .region import Region, RegionCopy, run_region
from .sites import Proved, SiteVerdict, compare_regions
from .structure import Change
from .untouched import Fingerprint

__all__ = [
    "Change",
    "Difference",
    "Fingerprint",
    "Float64",
    "Float64Runner",
    "ModelVerdict",
    "OutputVerdict",
    "Proved",
    "Region",
    "RegionCopy",
    "Rounding",
    "SiteVerdict",
    "compare_models",
    "compare_regions",
    "difference",
    "observable_sites",
    "observed_at",
    "other_spatial",
    "run_region",
    "small_inputs",
]
