"""The proof of one site: the original's region and the rewritten one, on the same random inputs.

A site is looked at on its own because the end of a network can be blind to it (a BatchNorm whose
weight is zero hides everything before it). Both regions are run in float64 on the CPU:

1. in eval mode, with the weights that they have, at two batch and spatial sizes just above the
   kernel's reach: bit-identical for an exact form, else within the rounding bound of `bounds`;
2. the tensors themselves: each of the rewritten ones holds the rows of the original that the map
   of the rewrite says, bit for bit, and every row of every parameter has a place;
3. with random parameters and statistics carried over by that map, so that nothing is hidden by a
   weight that happens to be zero or a statistic that is still at its default: eval mode again,
   gradients, then train mode: output, gradients and updated buffers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ..errors import InternalError
from ..inputs import unchanged
from ..state_map import Rows
from .bounds import ConvCalls, ConvRecorder, Magnitudes, bound_ratio, rounding_bound
from .measures import Difference, difference, identical
from .region import Float64Copy, Region

TOLERANCE = 1e-12
