"""Groups that a layer learned: which layers, which groups, and who moved."""
