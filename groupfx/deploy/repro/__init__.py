"""The smallest part of two models that still differs, in a folder with a script that shows it."""

from .saving import check_repro, save_repro

__all__ = ["check_repro", "save_repro"]
