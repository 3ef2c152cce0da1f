"""INT8: from fp32 ONNX to quantised ONNX within an accuracy budget."""
