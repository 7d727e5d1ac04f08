"""Checkpoints of a training, of any network: read without its classes, and without trust.

A file is read as data. Classes and functions that its pickle names are neither imported nor called;
what is kept is the tensors, under the names that a state_dict gives them.
"""

from .checkpoint import Checkpoint, read_checkpoint
from .series import Series, checkpoint_files, epoch_in_name, first_other_shape, read_series

__all__ = [
    "Checkpoint",
    "Series",
    "checkpoint_files",
    "epoch_in_name",
    "first_other_shape",
    "read_checkpoint",
    "read_series",
]
