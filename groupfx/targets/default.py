"""No target: grouped convolutions are split, and learned groups become standard convolutions, in
the form that eager PyTorch is expected to be fastest with.

What freezing made is kept: a second run finds nothing.
"""

from . import Target

TARGET = Target(
    "default",
    place=0,
    passes=("split-grouped-conv:frozen=keep", "freeze-learned-groups:form=fastest"),
)
