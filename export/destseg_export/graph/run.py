"""A graph in memory, run by ONNX Runtime on the CPU.

Calibration, the measurement of activations, the accuracy budget of INT8 and the comparison of half
graphs with PyTorch stand on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from destseg_deploy.errors import ExportError
from destseg_deploy.memory import refuse_shortage
from destseg_deploy.runtime.base import Prediction, check_images, check_open
from destseg_deploy.runtime.int8_kernels import EXACT, ort_saturates
from destseg_deploy.runtime.offline import import_onnxruntime
from destseg_deploy.spec import ModelSpec

Run = Callable[[NDArray[np.uint8]], list[NDArray[np.float32]]]


class GraphRuntime:
    """A graph under the contract of an artifact, without the file and the checks of one."""

    def __init__(self, proto: onnx.ModelProto, spec: ModelSpec, threads: int = 0) -> None:
        """Open a graph.

        Args:
            proto: The graph; it stays as it is.
            spec: Its contract.
            threads: Threads within an operator; 0 leaves the choice to ONNX Runtime.

        Raises:
            ExportError: If ONNX Runtime refuses the graph.
        """
        self.spec = spec
        outputs = (spec.output.map_name, spec.output.score_name)
        self._run: Run | None = open_session(proto, outputs, threads)

    def infer(self, images: NDArray[np.uint8]) -> Prediction:
        """Score images; see ``Runtime.infer``."""
        check_open(self._run, self.spec)
        assert self._run is not None
        check_images(images, self.spec)
        anomaly_map, score = self._run(images)
        return Prediction(anomaly_map, score)

    def close(self) -> None:
        """Release the session and all memory; a second call does nothing."""
        self._run = None


def open_session(proto: onnx.ModelProto, wanted: Sequence[str], threads: int = 0) -> Run:
    """Return a function from images, uint8 (N, H, W, 3), to the values asked for.

    A graph of fixed batch is given as many copies as it takes, and the first answers returned.
    The function raises ExportError where ONNX Runtime fails.

    Args:
        proto: The graph; it stays as it is.
        wanted: Names of values whose first axis is the batch: its outputs, or any float32 ones.
        threads: Threads within an operator; 0 leaves the choice to ONNX Runtime.

    Raises:
        ExportError: If ONNX Runtime refuses the graph.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = threads
    quantised = any(node.op_type == "QuantizeLinear" for node in proto.graph.node)
    if quantised and ort_saturates(ort):
        options.add_session_config_entry(EXACT, "1")
    try:
        session: Any = ort.InferenceSession(
            _with_outputs(proto, wanted).SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
        )
    except Exception as error:  # its errors share no base class
        raise _failure("refuses", error) from error
    (image,) = session.get_inputs()
    fixed = image.shape[0] if isinstance(image.shape[0], int) else None

    def run(images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        count = len(images)
        if fixed is not None and count < fixed:
            images = np.concatenate([images, np.repeat(images[:1], fixed - count, axis=0)])
        try:
            found = session.run(list(wanted), {image.name: np.ascontiguousarray(images)})
        except Exception as error:
            raise _failure("fails on", error) from error
        return [values[:count] for values in found]

    return run


def _failure(does: str, error: Exception) -> ExportError:
    refuse_shortage(error, "the graph")
    reason = " ".join(str(error).split())[:200]
    return ExportError(f"ONNX Runtime {does} the graph ({reason}). Export it again.")


def _with_outputs(proto: onnx.ModelProto, wanted: Sequence[str]) -> onnx.ModelProto:
    """Return the graph, copied only where values inside of it are to be outputs, too."""
    known = {value.name for value in proto.graph.output}
    inner = [name for name in wanted if name not in known]
    if not inner:
        return proto
    watched = onnx.ModelProto()
    watched.CopyFrom(proto)
    for name in inner:
        watched.graph.output.append(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        )
    return watched
