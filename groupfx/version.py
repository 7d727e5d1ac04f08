"""The version of groupfx and the torch versions that it supports: plain values, read without torch.

`pyproject.toml` takes its version from here, and a test holds its torch requirement to the range.
"""

__version__ = "0.1.0"

# The tests run on the one version that constraints.txt pins. The range around it is narrow because
# torch.fx and torch.export change in minor releases.
TORCH_FROM = (2, 10)
TORCH_BEFORE = (2, 15)
