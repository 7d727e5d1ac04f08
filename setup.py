"""Which packages there are: the one thing that pyproject.toml cannot say for this layout.

`groupfx/passes` is a symlink to `passes/`. An sdist, and a checkout on a system without symlinks,
have no such folder to find, so it is named here, and excluded from the search so that it is there
once. `package-dir` in pyproject.toml says where it is.
"""

from setuptools import find_packages, setup

found = find_packages(
    include=["groupfx", "groupfx.*"],
    exclude=["groupfx.passes", "groupfx.passes.*"],
)
setup(packages=[*found, "groupfx.passes"])
