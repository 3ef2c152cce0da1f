"""From ONNX to a TensorRT engine."""
