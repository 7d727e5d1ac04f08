"""The forms that a site of an ONNX graph can take, and files of others rewritten into them."""
