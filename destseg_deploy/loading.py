"""load: open an artifact with the back end that runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Literal

from destseg_deploy.device import CPU, Device
from destseg_deploy.errors import BackendError
from destseg_deploy.options import (
    BACKENDS,
    OpenVinoOptions,
    Options,
    OrtOptions,
    ServerOptions,
    TensorRtOptions,
    TorchOptions,
    check_device,
)
from destseg_deploy.predictor import Predictor
from destseg_deploy.runtime.base import Runtime

KNOWN = ".onnx, .engine or .safetensors"


@dataclass(frozen=True)
class Fit:
    """What a back end runs, and where.

    Attributes:
        suffixes: Of its artifacts.
        devices: Kind of device -> what opens an artifact there, by its name in ``runtime``; it
            takes path, device and options. The first kind unless another is asked for.
        options: The class of its options.
        named: Whether it is only taken when its name or its options are given.
    """

    suffixes: tuple[str, ...]
    devices: Mapping[str, str]
    options: type[Options]
    named: bool = False

    @property
    def device(self) -> Device:
        """Where it runs unless something else is asked for."""
        return Device(next(iter(self.devices)))


FITS = {
    "onnxruntime": Fit(
        (".onnx",),
        {"cpu": "ort.runtime:OrtRuntime", "cuda": "ort.gpu_runtime:OrtGpuRuntime"},
        OrtOptions,
    ),
    "openvino": Fit(
        (".onnx", ".xml"),
        dict.fromkeys(("cpu", "gpu"), "openvino_runtime:OpenVinoRuntime"),
        OpenVinoOptions,
    ),
    "tensorrt": Fit((".engine",), {"cuda": "trt.runtime:TrtRuntime"}, TensorRtOptions),
    "pytorch": Fit(
        (".safetensors", ".pckl", ".pth"),
        {"cpu": "torch_runtime:open_checkpoint", "cuda": "torch_gpu.runtime:open_on_gpu"},
        TorchOptions,
    ),
    "server": Fit(
        (".onnx", ".xml", ".engine", ".json"),
        {"cpu": "server.runtime:ServerRuntime"},
        ServerOptions,
        named=True,
    ),
}
"""Back end -> what goes with it. The first that fits what was asked for is taken."""


def load(
    path: str | Path,
    *,
    backend: str | None = None,
    device: str | Device | None = None,
    options: Options | Literal["tuned"] | None = None,
) -> Predictor:
    """Open an artifact.

    What was asked for runs, or an error is raised: nothing falls back to another device.

    Args:
        path: ``.onnx`` (ONNX Runtime or OpenVINO), ``.xml`` (OpenVINO), ``.engine`` (TensorRT), or
            ``.safetensors``, ``.pckl`` or ``.pth`` (PyTorch), its ``.json`` beside it. With
            ``ServerOptions``, the ``.json`` alone suffices.
        backend: ``onnxruntime``, ``openvino``, ``tensorrt``, ``pytorch`` or ``server``. Unless
            given, the first of them that runs such a file on that device with those options.
        device: ``cpu``; ``cuda`` or ``cuda:<index>``; or ``gpu``, OpenVINO's Intel GPU. Unless
            given, ``cuda`` for an engine and ``cpu`` for all else.
        options: An object of the back end's class: ``OrtOptions``, ``OpenVinoOptions``,
            ``TensorRtOptions``, ``TorchOptions`` or ``ServerOptions``. Defaults unless given.
            ``"tuned"`` takes back end and options from ``<name>.tuning.json``, which ``destseg
            tune`` wrote on this machine.

    Raises:
        SpecError: If the spec is missing, was written for another file, or an engine was built for
            another GPU or TensorRT.
        WeightsError: If a checkpoint is damaged.
        BackendError: If the file is missing or of an unknown kind; if file, back end, device and
            options do not fit together; or if the back end or the device is not there; or if the
            artifact was not tuned here.
    """
    if not isinstance(path, str | Path) or not str(path).strip():
        raise BackendError(f"load({path!r}): expected the path of a {KNOWN} artifact.")
    path = Path(path)
    if (found := _obstacle(path)) is not None:
        raise BackendError(f"{path}: {found}. Expected a {KNOWN} artifact.")
    place = None if device is None else Device.parse(device)
    if isinstance(options, str) and options == "tuned":
        backend, options = _tuned(path, backend, place)
    kind = None if options is None else type(options)
    chosen = choose_backend(path, backend, place, kind)
    fit = FITS[chosen]
    place = place or fit.device
    options = options or fit.options()
    check_device(options, place)
    return Predictor(_open(path, place, options, fit.devices[place.kind]))


def _obstacle(path: Path) -> str | None:
    """Say why a path is no file that can be opened; None if it is one."""
    try:
        if path.is_file():
            return None
        found = "a pipe or a device" if path.exists() else "no such file"
        return "a folder" if path.is_dir() else found
    except OSError as error:  # a name that is too long, or a folder that may not be entered
        return f"cannot be read ({error.strerror})"


def _tuned(path: Path, backend: str | None, device: Device | None) -> tuple[str, Options]:
    """Return what a tuning says, where nothing else was asked for."""
    from destseg_deploy.tuning import tuned

    if device not in (None, CPU):
        raise BackendError(f"device '{device}': a tuning is for the CPU. Drop one of the two.")
    chosen, options = tuned(path)
    if backend not in (None, chosen):
        raise BackendError(
            f"backend {backend!r}: {path.name} was tuned to {chosen}. Drop one of the two."
        )
    return chosen, options


def choose_backend(
    path: Path, backend: str | None, device: Device | None, options: type[Options] | None
) -> str:
    """Return the back end that runs a file as asked.

    Args:
        path: The artifact; only its suffix is looked at.
        backend: Its name; unless given, the first that fits everything else.
        device: Where to run; None for the back end's choice.
        options: The class of the options that are given; None for no options.

    Raises:
        BackendError: If the suffix or the back end is unknown, or what was asked for does not fit
            together.
    """
    if backend is not None and not (isinstance(backend, str) and backend in FITS):
        raise BackendError(f"backend {backend!r}: expected one of {', '.join(BACKENDS)}.")
    able = [
        name
        for name, fit in FITS.items()
        if path.suffix.lower() in fit.suffixes
        and (not fit.named or backend == name or options is fit.options)
    ]
    if not able:
        raise BackendError(f"{path}: unknown kind of artifact. Expected {KNOWN}.")
    candidates = able if backend is None else [backend]
    misfits = {name: _misfit(FITS[name], path, device, options) for name in candidates}
    for name, misfit in misfits.items():
        if misfit is None:
            return name
    named = (one for one in candidates if FITS[one].options is options)
    name = next(named, candidates[0])
    runs = ", ".join(f"{one} ({' or '.join(FITS[one].devices)})" for one in able)
    raise BackendError(
        f"{path}: {misfits[name]} does not fit back end {name!r}, which runs "
        f"{', '.join(FITS[name].suffixes)} on {' or '.join(FITS[name].devices)} with "
        f"{FITS[name].options.__name__}. What runs {path.suffix}: {runs}."
    )


def _misfit(
    fit: Fit, path: Path, device: Device | None, options: type[Options] | None
) -> str | None:
    """Return what does not go with a back end; None if everything does."""
    if path.suffix.lower() not in fit.suffixes:
        return f"the suffix {path.suffix}"
    if device is not None and device.kind not in fit.devices:
        return f"device '{device}'"
    if options not in (None, fit.options):
        return f"options {options.__name__}"
    return None


def _open(path: Path, device: Device, options: Options, room: str) -> Runtime:
    """Import the back end that runs the artifact, and only this one; open it."""
    try:
        opened = resolve_name(f"destseg_deploy.runtime.{room}")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise BackendError(
            f"{path}: a checkpoint needs PyTorch. pip install 'destseg-deploy[train]', or load the "
            "exported .onnx, which does not."
        ) from error
    runtime: Runtime = opened(path, device, options)
    return runtime
