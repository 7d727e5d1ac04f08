"""Paths inside a model."""


def joined(*paths: str) -> str:
    """A dotted path, empty parts left out."""
    return ".".join(path for path in paths if path)
