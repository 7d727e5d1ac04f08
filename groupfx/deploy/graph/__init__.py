"""ONNX graphs as data: read, named, changed with onnx-ir, written."""
