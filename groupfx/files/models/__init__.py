"""Read a model from whatever file a user has, and run nothing of the file's without trust."""

from .model_file import ReadModel, read_model

__all__ = ["ReadModel", "read_model"]
