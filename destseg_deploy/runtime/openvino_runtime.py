"""OpenVINO back end: runs ``.onnx`` on a CPU, and on Intel's GPUs, as it was exported.

OpenVINO picks bfloat16 by itself on CPUs that have it, which moves scores by up to a few
hundredths. Here a graph runs in float32 unless ``precision`` asks for another. On a CPU whose INT8
sums would be wrong, the INT8 layers of an artifact run in float32, too; see ``int8_kernels``.
"""

from __future__ import annotations

import logging
import queue
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.errors import BackendError
from destseg_deploy.runtime.base import Prediction, check_images, check_open
from destseg_deploy.runtime.cache_folder import make_cache_folder
from destseg_deploy.runtime.int8_kernels import AS_FLOAT, openvino_saturates, warn_of_scheme
from destseg_deploy.spec import ModelSpec

logger = logging.getLogger(__name__)

DEVICES = {"cpu": "CPU", "gpu": "GPU"}
PRECISIONS = {"fp32": "f32", "bf16": "bf16"}
HINTS = {"latency": "LATENCY", "throughput": "THROUGHPUT"}


class OpenVinoRuntime:
    """An exported graph in OpenVINO.

    Calls from several threads run at the same time, up to ``requests`` of them; more wait. With
    ``hint="latency"`` that is 1 on a CPU, whose cores all work on one call; with ``throughput``,
    each stream of cores has its own.

    Attributes:
        spec: The artifact's contract.
        requests: Calls that run at the same time.
        precision: ``fp32`` or ``bf16``, as asked for.
    """

    def __init__(
        self,
        path: Path,
        device: str = "cpu",
        *,
        threads: int = 0,
        streams: int = 0,
        hint: str = "latency",
        precision: str = "fp32",
        pinning: bool | None = None,
        cache: Path | None = None,
    ) -> None:
        """Open an artifact after checking it against its spec, and compile it.

        Args:
            path: The ``.onnx`` file; its spec lies beside it.
            device: ``cpu``, or ``gpu`` for an Intel GPU.
            threads: Threads of all streams together; 0 leaves the choice to OpenVINO.
            streams: Calls that run at the same time, each on its share of the cores; 0 for what the
                hint brings.
            hint: ``latency`` or ``throughput``.
            precision: ``fp32``, or ``bf16`` where the CPU computes in it: about twice as fast, with
                differences of up to a few hundredths. Layers that the artifact holds in INT8 run in
                INT8 either way.
            pinning: Whether a CPU's threads stay on their cores; OpenVINO's choice unless given.
            cache: Folder for compiled models, made if missing; the next start is faster. Each is
                as large as the artifact, and is taken as it is found there, without a hash.

        Raises:
            SpecError: If the spec is missing or was written for another file.
            BackendError: If OpenVINO, the device or the precision is not there, an option is out of
                range, or OpenVINO refuses the file.
        """
        _check_options(device, threads, streams, hint, precision)
        self.spec = ModelSpec.read(path)
        if not path.is_file():
            raise BackendError(
                f"{path}: no such file. Run destseg-export --category NAME to make it."
            )
        self.spec.check_artifact(path)
        self.precision = precision
        openvino = _import(path)
        core = _open_core(openvino, DEVICES[device], precision)
        config: dict[str, Any] = {
            "PERFORMANCE_HINT": HINTS[hint],
            "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
            **({"INFERENCE_NUM_THREADS": threads} if threads else {}),
            **({"NUM_STREAMS": str(streams)} if streams else {}),
            **({} if pinning is None else {"ENABLE_CPU_PINNING": pinning}),
            **({} if device != "cpu" else _int8_config(openvino, core, self.spec)),
        }
        if cache is not None:
            config["CACHE_DIR"] = _cache_folder(cache, self.spec)
        compiled = _compile(core, path, DEVICES[device], config)
        self.requests = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._free: queue.SimpleQueue[Any] | None = queue.SimpleQueue()
        for _ in range(self.requests):
            self._free.put(compiled.create_infer_request())

    def infer(self, images: NDArray[np.uint8]) -> Prediction:
        """Score images; see ``Runtime.infer``."""
        free = self._free
        check_open(free, self.spec)
        assert free is not None  # check_open raises otherwise
        check_images(images, self.spec)
        output = self.spec.output
        request = free.get()
        try:
            found = request.infer({self.spec.input.name: np.ascontiguousarray(images)})
            return Prediction(found[output.map_name].copy(), found[output.score_name].copy())
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise BackendError(f"{self.spec.artifact.file}: OpenVINO failed ({reason}).") from error
        finally:
            free.put(request)

    def close(self) -> None:
        """Release the compiled model and its requests."""
        self._free = None


def _check_options(device: str, threads: int, streams: int, hint: str, precision: str) -> None:
    choices = (
        ("device", device, DEVICES),
        ("hint", hint, HINTS),
        ("precision", precision, PRECISIONS),
    )
    for name, value, allowed in choices:
        if value not in allowed:
            raise BackendError(f"{name} {value!r}: expected {' or '.join(allowed)} for OpenVINO.")
    for name, number in (("threads", threads), ("streams", streams)):
        if number < 0:
            raise BackendError(f"{name}: {number}, expected 0 or more.")


def _import(path: Path) -> Any:
    try:
        import openvino
    except ImportError as error:
        raise BackendError(
            f"{path}: OpenVINO is not installed. pip install 'destseg-deploy[openvino]', or open "
            "it with ONNX Runtime, device 'cpu'."
        ) from error
    return openvino


def _open_core(openvino: Any, device: str, precision: str) -> Any:
    core = openvino.Core()
    there = core.available_devices
    if not any(name.split(".")[0] == device for name in there):
        raise BackendError(
            f"device {device.lower()!r}: OpenVINO sees none, only {', '.join(there).lower()}. "
            "Check the driver, or use 'cpu'."
        )
    if precision == "bf16" and "BF16" not in core.get_property(device, "OPTIMIZATION_CAPABILITIES"):
        raise BackendError(
            "precision 'bf16': this CPU does not compute in it. Use 'fp32', or an INT8 artifact."
        )
    return core


def _int8_config(openvino: Any, core: Any, spec: ModelSpec) -> dict[str, Any]:
    """Return what keeps the answers of an INT8 artifact right on this CPU."""
    if spec.precision != "int8":
        return {}
    warn_of_scheme(spec)
    if not openvino_saturates(openvino, core):
        return {}
    logger.warning(
        "%s: this CPU has no VNNI, without which OpenVINO's INT8 sums stop at 16 bit; its INT8 "
        "layers run in float32. Device 'cpu', ONNX Runtime, runs them in exact INT8.",
        spec.artifact.file,
    )
    return {AS_FLOAT: "NO"}


def _cache_folder(cache: Path, spec: ModelSpec) -> str:
    """Make a folder of the artifact's own.

    OpenVINO tells artifacts apart by name, size and time alone, and leaves the cache out without a
    word where it cannot write.
    """
    folder = cache / spec.artifact.sha256[:12]
    make_cache_folder(folder, "compiled models")
    return str(folder)


def _compile(core: Any, path: Path, device: str, config: dict[str, Any]) -> Any:
    try:
        return core.compile_model(str(path), device, config)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise BackendError(
            f"{path}: OpenVINO cannot open it ({reason}). Export it again."
        ) from error
