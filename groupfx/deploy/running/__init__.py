"""ONNX graphs run: by ONNX Runtime, and in float64."""
