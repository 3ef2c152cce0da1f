"""OpenVINO back end: runs ``.onnx`` on a CPU, and on Intel's GPUs, as it was exported.

OpenVINO picks bfloat16 by itself on CPUs that have it, which moves scores by up to a few
hundredths. Here a graph runs in float32 unless ``precision`` asks for another. On a CPU whose INT8
sums would be wrong, the INT8 layers of an artifact run in float32, too; see ``int8_kernels``.
"""

from __future__ import annotations

import logging
import os
import queue
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.device import CPU, Device
from destseg_deploy.errors import BackendError
from destseg_deploy.memory import refuse_shortage
from destseg_deploy.options import OpenVinoOptions, check_device
from destseg_deploy.runtime.base import (
    Prediction,
    check_images,
    check_open,
    check_prediction,
    kept_by_children,
)
from destseg_deploy.runtime.int8_kernels import AS_FLOAT, openvino_saturates, warn_of_scheme
from destseg_deploy.runtime.offline import import_openvino, openvino_core
from destseg_deploy.runtime.openvino_cache import Answer, CompiledModels, probe_images
from destseg_deploy.spec import ModelSpec
from destseg_deploy.text import is_encodable

logger = logging.getLogger(__name__)

PRECISIONS = {"fp32": "f32", "bf16": "bf16"}


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
        device: Device = CPU,
        options: OpenVinoOptions | None = None,
    ) -> None:
        """Open an artifact after checking it against its spec, and compile it.

        Args:
            path: The ``.onnx`` file; its spec lies beside it.
            device: The CPU, or an Intel GPU.
            options: See ``OpenVinoOptions``; defaults unless given.

        Raises:
            SpecError: If the spec is missing or was written for another file.
            BackendError: If OpenVINO, the device or the precision is not there, an option is out of
                range, or OpenVINO refuses the file.
        """
        options = options or OpenVinoOptions()
        check_device(options, device)
        self._process = os.getpid()
        self.spec = ModelSpec.read(path)
        if not path.is_file():
            raise BackendError(
                f"{path}: no such file. Run destseg-export --category NAME to make it."
            )
        self.spec.check_artifact(path)
        self.precision = options.precision
        openvino = _import(path)
        core = open_core(device, options.precision)
        config = compile_config(openvino, core, self.spec, device, options)
        compiled = self._open(openvino, core, path, _name(device), config, options.cache)
        _check_outputs(openvino, compiled, self.spec, path)
        self.requests = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._free: queue.SimpleQueue[Any] | None = queue.SimpleQueue()
        for _ in range(self.requests):
            self._free.put(compiled.create_infer_request())
        self._keep = kept_by_children(self, self._free)

    def _open(
        self,
        openvino: Any,
        core: Any,
        path: Path,
        place: str,
        config: dict[str, Any],
        cache: Path | None,
    ) -> Any:
        """Return the model compiled for a device: from the cache where it is there and whole."""
        if cache is None:
            return _compile(core, path, place, config)
        models = CompiledModels.of(cache, self.spec, self._known_answer)
        version = openvino.get_version()
        compiled = models.open(core, place, config, version)
        if compiled is None:
            compiled = _compile(core, path, place, config)
            _check_outputs(openvino, compiled, self.spec, path)
            models.keep(compiled, core, place, config, version)
        return compiled

    def _known_answer(self, compiled: Any) -> Answer:
        found = self._run(compiled.create_infer_request(), probe_images(self.spec))
        return Answer(float(found.score.mean()), float(found.anomaly_map.mean()))

    def infer(self, images: NDArray[np.uint8]) -> Prediction:
        """Score images; see ``Runtime.infer``."""
        free = self._free
        check_open(free, self.spec, self._process)
        assert free is not None  # check_open raises otherwise
        check_images(images, self.spec)
        request = free.get()
        try:
            return self._run(request, images)
        finally:
            free.put(request)

    def _run(self, request: Any, images: NDArray[np.uint8]) -> Prediction:
        output = self.spec.output
        try:
            found = request.infer({self.spec.input.name: np.ascontiguousarray(images)})
            answer = Prediction(found[output.map_name].copy(), found[output.score_name].copy())
        except (RuntimeError, KeyError) as error:
            refuse_shortage(error, self.spec.artifact.file)
            reason = " ".join(str(error).split())[:200]
            raise BackendError(f"{self.spec.artifact.file}: OpenVINO failed ({reason}).") from error
        check_prediction(answer, self.spec, len(images))
        return answer

    def close(self) -> None:
        """Release the compiled model and its requests."""
        self._free = None
        self._keep()


def _import(path: Path) -> Any:
    try:
        return import_openvino()
    except ImportError as error:
        raise BackendError(
            f"{path}: OpenVINO is not installed. pip install 'destseg-deploy[openvino]', or open "
            "it with ONNX Runtime, device 'cpu'."
        ) from error


def open_core(device: Device, precision: str) -> Any:
    """Return OpenVINO's core, after checking that it has the device and the precision.

    Raises:
        BackendError: If it does not.
    """
    core, name = openvino_core(), _name(device)
    there = core.available_devices
    if name not in there and f"{name}.0" not in there:  # several GPUs are GPU.0, GPU.1, ...
        raise BackendError(
            f"device '{device}': OpenVINO does not see it, only {', '.join(there).lower()}. Check "
            "the driver, or use 'cpu'."
        )
    if precision == "bf16" and "BF16" not in core.get_property(name, "OPTIMIZATION_CAPABILITIES"):
        raise BackendError(
            "precision 'bf16': this CPU does not compute in it. Use 'fp32', or an INT8 artifact."
        )
    return core


def compile_config(
    openvino: Any, core: Any, spec: ModelSpec, device: Device, options: OpenVinoOptions
) -> dict[str, Any]:
    """Return the properties with which an artifact is compiled."""
    return {
        "PERFORMANCE_HINT": options.hint.upper(),
        "INFERENCE_PRECISION_HINT": PRECISIONS[options.precision],
        **({"INFERENCE_NUM_THREADS": options.threads} if options.threads else {}),
        **({"NUM_STREAMS": str(options.streams)} if options.streams else {}),
        **({} if options.pinning is None else {"ENABLE_CPU_PINNING": options.pinning}),
        **({} if device.kind != "cpu" else _int8_config(openvino, core, spec)),
    }


def _name(device: Device) -> str:
    """Return OpenVINO's name of a device: ``CPU``, ``GPU``, or ``GPU.1`` for the second one."""
    return device.kind.upper() + (f".{device.index}" if device.index else "")


def _int8_config(openvino: Any, core: Any, spec: ModelSpec) -> dict[str, Any]:
    """Return what keeps the answers of an INT8 artifact right on this CPU."""
    if spec.precision != "int8":
        return {}
    warn_of_scheme(spec)
    if not openvino_saturates(openvino, core):
        return {}
    logger.warning(
        "%s: this CPU has no VNNI, without which OpenVINO's INT8 sums stop at 16 bit; its INT8 "
        "layers run in float32. Back end onnxruntime runs them in exact INT8.",
        spec.artifact.file,
    )
    return {AS_FLOAT: "NO"}


def _check_outputs(openvino: Any, compiled: Any, spec: ModelSpec, path: Path) -> None:
    """Refuse a model whose outputs are not those of its spec.

    Raises:
        BackendError: If a name, a type or a shape is another.
    """
    there = {name: one for one in compiled.outputs for name in one.get_names()}
    for name, size in ((spec.output.map_name, spec.map_size), (spec.output.score_name, ())):
        wanted = openvino.PartialShape([-1, *size])
        if name not in there:
            raise BackendError(
                f"{path}: it has no output {name!r}, only {', '.join(sorted(there))}. Export it "
                "again."
            )
        kind, shape = there[name].get_element_type(), there[name].get_partial_shape()
        if kind != openvino.Type.f32 or not wanted.compatible(shape):
            raise BackendError(
                f"{path}: its output {name!r} is {kind.to_string()} {shape}, expected f32 "
                f"{wanted}. Export it again."
            )


def _compile(core: Any, path: Path, device: str, config: dict[str, Any]) -> Any:
    if not is_encodable(path):
        raise BackendError(f"{path}: its name is not UTF-8, which OpenVINO needs. Rename it.")
    try:
        return core.compile_model(str(path), device, config)
    except RuntimeError as error:
        refuse_shortage(error, str(path))
        reason = " ".join(str(error).split())[:200]
        raise BackendError(
            f"{path}: OpenVINO cannot open it ({reason}). Export it again."
        ) from error
