"""No target: grouped convolutions are split, and learned groups become standard grouped ones.

What freezing made is kept: a second run finds nothing.
"""

from . import Target

TARGET = Target(
    "default", place=0, passes=("split-grouped-conv:frozen=keep", "freeze-learned-groups")
)
