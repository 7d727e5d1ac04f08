"""The functions that users call: on torch models, and on ONNX files."""
