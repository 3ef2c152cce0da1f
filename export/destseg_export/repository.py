"""A model repository from an artifact, for Triton Inference Server or OpenVINO Model Server (OVMS).

::

    <repository>/<model>/config.pbtxt        Triton: tensors, batches, instances, a first frame
    <repository>/<model>/warmup/frame
    <repository>/<model>/<version>/model.onnx (or model.plan), spec.json
    <repository>/config.json                 OVMS: the models

A server may watch the folder. A version is filled under another name and renamed, and what
describes it is there before, so no server ever sees half a model.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from destseg_deploy.data.images import read_image
from destseg_deploy.data.resize import resize_image
from destseg_deploy.errors import ExportError, OutputError
from destseg_deploy.files import making, refuse_others, replacing, workshop
from destseg_deploy.locks import locked
from destseg_deploy.runtime.parity import parity_frames
from destseg_deploy.spec import ModelSpec, spec_path
from destseg_deploy.spec.reading import read_json_text
from destseg_export.serving import Serving
from destseg_export.triton import FILES, MADE_BY, WARMUP, pbtxt, triton_config

SPEC = "spec.json"
PLAIN_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)


def write_repository(artifact: Path, repository: Path, serving: Serving | None = None) -> Path:
    """Put an artifact into a model repository as a new version of its model.

    Args:
        artifact: ``.onnx``, or for Triton ``.engine``, its spec beside it.
        repository: The folder that the server is given; made if missing.
        serving: How it is run; defaults unless given.

    Returns:
        The folder of the new version.

    Raises:
        SpecError: If the spec is missing or belongs to another file.
        ExportError: If the server cannot run such an artifact, or its name is no folder's.
        DataError: If the image cannot be read.
        OutputError: If files of others are there, or another run writes the model.
    """
    serving = serving or Serving()
    spec = ModelSpec.read(artifact)
    spec.check_artifact(artifact)
    model = artifact.stem if serving.model is None else serving.model
    _check(artifact, spec, serving, model)
    folder = repository / model
    with making(folder), locked(folder / "version", folder), workshop(folder) as staged:
        newest = max(_versions(folder), default=0)
        if newest:
            _check_same(folder / str(newest) / SPEC, spec)
        version = str(newest + 1)
        _fill(staged / version, artifact)
        if serving.server == "triton":
            _describe_to_triton(folder, spec, serving, staged)
        else:
            _describe_to_ovms(repository, model, serving)
        os.replace(staged / version, folder / version)
    return folder / version


def _check(artifact: Path, spec: ModelSpec, serving: Serving, model: str) -> None:
    """Refuse what a server could not serve, or would serve wrongly."""
    suffix, batch = artifact.suffix.lower(), spec.input.batch
    if PLAIN_NAME.fullmatch(model) is None:
        raise ExportError(
            f"model {model!r}: expected letters, digits, '_', '-' and '.', since it is part of an "
            "address. Choose another name with --model."
        )
    if suffix not in FILES or (suffix == ".engine" and serving.server != "triton"):
        fits = ".onnx or .engine" if serving.server == "triton" else ".onnx"
        raise ExportError(f"{artifact}: {serving.server} is given {fits}. Export one of these.")
    if suffix == ".engine" and serving.device != "gpu":
        raise ExportError(f"{artifact}: an engine runs on a GPU. Pass --device gpu.")
    if suffix == ".engine" and spec.engine and spec.engine.builder != "tensorrt":
        raise ExportError(
            f"{artifact}: built with {spec.engine.builder}, and Triton loads TensorRT's engines. "
            "Serve the .onnx, or build with TensorRT."
        )
    if batch.min > 1:
        raise ExportError(
            f"{artifact}: takes {batch.min} to {batch.max} frames a call, and a server also gets "
            f"single ones. Export with --batch 1:{batch.opt}:{batch.max}."
        )
    if spec.takes_any_size and not serving.any_size:
        raise ExportError(
            f"{artifact}: takes frames of the network's {spec.size[1]}x{spec.size[0]} pixels, so "
            "each client would resize in its own way, and scores would change. Export with "
            "--input-size HEIGHTxWIDTH of the camera; or pass --any-size if all clients resize as "
            "destseg does."
        )


def _check_same(path: Path, spec: ModelSpec) -> None:
    """Refuse a version with other tensors: clients and the server's table know the older ones."""
    old = ModelSpec.from_json(read_json_text(path), str(path))
    tensors = [
        (one.input.name, one.size, one.output.map_name, one.output.score_name, one.map_size)
        for one in (old, spec)
    ]
    if tensors[0] != tensors[1]:
        raise ExportError(
            f"{path.parent}: this model takes frames of {_sizes(old)}; the artifact "
            f"{_sizes(spec)}. Choose another --model, so that its clients go on."
        )


def _sizes(spec: ModelSpec) -> str:
    (height, width), (rows, columns) = spec.size, spec.map_size
    return f"{width}x{height} pixels and gives maps of {columns}x{rows}"


def _versions(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir() if re.fullmatch("[0-9]+", path.name)]


def _fill(version: Path, artifact: Path) -> None:
    """Copy the artifact and its spec; the spec is for people, no server reads it."""
    version.mkdir()
    shutil.copy(artifact, version / FILES[artifact.suffix.lower()])
    shutil.copy(spec_path(artifact), version / SPEC)


def _describe_to_triton(folder: Path, spec: ModelSpec, serving: Serving, staged: Path) -> None:
    config = folder / "config.pbtxt"
    refuse_others([config], _is_ours)
    frame = staged / WARMUP
    frame.write_bytes(_first_frame(spec, serving.image))
    (folder / "warmup").mkdir(exist_ok=True)
    os.replace(frame, folder / "warmup" / WARMUP)
    with replacing(config) as temporary:
        temporary.write_text(pbtxt(triton_config(spec, folder.name, serving)), encoding="utf-8")


def _is_ours(path: Path) -> bool:
    return path.read_text("utf-8", "replace").startswith(MADE_BY)


def _first_frame(spec: ModelSpec, image: Path | None) -> bytes:
    if image is None:
        return bytes(parity_frames(spec, None)[0])
    return bytes(resize_image(read_image(image), spec.size))


def _describe_to_ovms(repository: Path, model: str, serving: Serving) -> None:
    """Add the model to the server's table; those of other models stay as they are."""
    path = repository / "config.json"
    entry = {
        "name": model,
        "base_path": model,
        "target_device": serving.device.upper(),
        "nireq": serving.instances,
        "model_version_policy": {"latest": {"num_versions": 1}},
    }
    with locked(path):  # another model may be added at this moment
        table = _read_table(path)
        others = [one for one in table["model_config_list"] if one["config"]["name"] != model]
        table["model_config_list"] = [*others, {"config": entry}]
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


def _read_table(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"model_config_list": []}
    try:
        table: dict[str, Any] = json.loads(path.read_text("utf-8"))
        [one["config"]["name"] for one in table["model_config_list"]]
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise OutputError(
            f"{path}: no table of OpenVINO Model Server ({type(error).__name__}). Move it away, or "
            "choose another folder."
        ) from error
    return table
