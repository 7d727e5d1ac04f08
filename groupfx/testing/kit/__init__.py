"""Tiny models with grouped convolutions, each with its answer: what a converter may get wrong."""

from .case import Answer, Case
from .cases import all_cases

__all__ = ["Answer", "Case", "all_cases"]
