"""Reading, changing and running ONNX graphs."""
