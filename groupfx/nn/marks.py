"""What a rewrite writes on a module, for the rewrites that come after it."""

# On a convolution that freezing made: the default pipeline does not split it.
FROZEN_MARK = "frozen_groups"
