"""Convolutions on whole numbers: read, cut, joined, and what a runtime makes of them."""
