"""A torch model as an ONNX graph in which every site is one piece."""
