"""Channel permutations folded into weights: rules, one problem for a whole graph, and its solution.

A realm (a torch graph, an ONNX graph) describes each operation by one of the rules of `algebra`.
The rules say which tensors must have their channels in one order, and where a gather may stand;
`solving` chooses the orders so that the fewest bytes are gathered; `spelling` says how what stays
is done, and `edits` what becomes of the weights. All of it is integers, without torch or onnx.
"""
