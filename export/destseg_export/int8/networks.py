"""The networks that may be quantised. No imports: a command's help must not wait for ONNX."""

NETWORKS = ("segmentation_net", "teacher_net", "student_net.encoder", "student_net.decoder")
"""As the names of weights begin."""
