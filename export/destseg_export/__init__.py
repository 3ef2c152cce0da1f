"""The exporter: checkpoint to verified ONNX model, precision and engine."""
