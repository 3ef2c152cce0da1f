"""The ONNX Runtime back end."""
