"""The TensorRT back end."""
