"""Models as they run: their inputs, their numbers, and what they cost."""
