"""Convolutions side by side on parts of one value: the inverse of a split, in integers."""
