"""What a convolution is, where it is called, and what we call it."""
