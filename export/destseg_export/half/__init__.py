"""Half precision: from fp32 ONNX to fp16 or bf16 ONNX."""
