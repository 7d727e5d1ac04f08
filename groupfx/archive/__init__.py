"""Our own file: a model as plain data."""
