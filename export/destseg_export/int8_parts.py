"""What of DeSTSeg may be quantised. No imports, so that a command's help need not wait for ONNX."""

PARTS = ("segmentation_net", "teacher_net", "student_net.encoder", "student_net.decoder")
"""As the names of weights begin."""
