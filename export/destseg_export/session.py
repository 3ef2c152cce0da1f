"""A graph in memory, run by ONNX Runtime on the CPU: calibration and the budget measure with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from destseg_deploy.errors import ExportError
from destseg_deploy.runtime.int8_kernels import EXACT, ort_saturates

Run = Callable[[NDArray[np.uint8]], list[NDArray[np.float32]]]


def open_session(proto: onnx.ModelProto, outputs: Sequence[str], threads: int = 0) -> Run:
    """Return a function from images, uint8 (N, H, W, 3), to the outputs asked for.

    A graph of fixed batch is given as many copies as it takes, and its first answer returned.

    Raises:
        ExportError: If ONNX Runtime refuses the graph.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    quantised = any(node.op_type == "QuantizeLinear" for node in proto.graph.node)
    if quantised and ort_saturates(ort):
        options.add_session_config_entry(EXACT, "1")
    try:
        session: Any = ort.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its errors share no base class
        reason = " ".join(str(error).split())[:200]
        raise ExportError(f"ONNX Runtime refuses the graph ({reason}). Export it again.") from error
    (image,) = session.get_inputs()
    fixed = image.shape[0] if isinstance(image.shape[0], int) else None

    def run(images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        count = len(images)
        if fixed is not None and count < fixed:
            images = np.concatenate([images, np.repeat(images[:1], fixed - count, axis=0)])
        found = session.run(list(outputs), {image.name: np.ascontiguousarray(images)})
        return [values[:count] for values in found]

    return run
