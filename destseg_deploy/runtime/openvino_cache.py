"""Models that OpenVINO has compiled, kept in a folder and checked before they are used.

OpenVINO's own cache (CACHE_DIR) is not used. It loads what lies there without a check: of 12
damaged files, 5 gave wrong answers, one never ended and one killed the process. Here each file
begins with a line of JSON that holds the SHA-256 of what follows and a known answer of the model.
It is written under another name and then renamed, so a second process never sees half of it.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.errors import BackendError
from destseg_deploy.files import make_cache_folder, replacing
from destseg_deploy.spec import ModelSpec

logger = logging.getLogger(__name__)

AGREEMENT = 1e-3
"""How far the known answer may move: more than float32 rounding, less than any other model."""

HEADER = 4096
"""Bytes of the first line at most."""


@dataclass(frozen=True)
class Answer:
    """What a compiled model says of ``probe_images``: the mean of its scores and of its maps."""

    score: float
    map: float

    def agrees(self, other: Answer) -> bool:
        """Return whether two answers are of one model; never so where one is NaN."""
        return abs(self.score - other.score) <= AGREEMENT and abs(self.map - other.map) <= AGREEMENT


def probe_images(spec: ModelSpec) -> NDArray[np.uint8]:
    """Return the images of the known answer: noise, the same at each call."""
    shape = (spec.input.batch.min, *spec.size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@dataclass(frozen=True)
class CompiledModels:
    """The compiled models of one artifact.

    Attributes:
        folder: Of this artifact alone.
        ask: Returns the answer of a compiled model to ``probe_images``.
    """

    folder: Path
    ask: Callable[[Any], Answer]

    @classmethod
    def of(cls, cache: Path, spec: ModelSpec, ask: Callable[[Any], Answer]) -> CompiledModels:
        """Make the folder of an artifact.

        Raises:
            BackendError: If it cannot be made or written.
        """
        folder = cache / spec.artifact.sha256[:12]
        make_cache_folder(folder, "compiled models")
        return cls(folder, ask)

    def open(self, core: Any, place: str, config: Mapping[str, Any], version: str) -> Any:
        """Return the compiled model that was kept, or None.

        A file that is damaged, or whose model does not give its known answer, is removed.

        Args:
            core: OpenVINO's ``Core``.
            place: OpenVINO's name of the device.
            config: The options that it was compiled with.
            version: OpenVINO's version.
        """
        path = self._path(core, place, config, version)
        if not path.is_file():
            return None
        try:
            return self._checked(path, core, place, config)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, BackendError) as error:
            reason = " ".join(str(error).split())[:120]
            logger.warning("%s: not used, compiled anew (%s)", path, reason)
            path.unlink(missing_ok=True)
            return None

    def keep(
        self, compiled: Any, core: Any, place: str, config: Mapping[str, Any], version: str
    ) -> None:
        """Write a compiled model and its known answer.

        Raises:
            BackendError: If the folder cannot be written.
        """
        path = self._path(core, place, config, version)
        blob = compiled.export_model().getbuffer()
        header = {"file": path.name, "sha256": hashlib.sha256(blob).hexdigest()}
        header |= asdict(self.ask(compiled))
        try:
            with replacing(path) as temporary, temporary.open("wb") as file:
                file.write(json.dumps(header).encode() + b"\n")
                file.write(blob)
        except OSError as error:
            raise BackendError(
                f"{path}: the compiled model cannot be kept ({error.strerror}). Free "
                f"{len(blob) >> 20} MiB there, or pass another folder, cache=Path(...)."
            ) from error

    def _path(self, core: Any, place: str, config: Mapping[str, Any], version: str) -> Path:
        """Return the file of a device, its options and a version of OpenVINO."""
        chip = core.get_property(place, "FULL_DEVICE_NAME")
        what = json.dumps([version, place, chip, sorted(map(str, config.items()))])
        return self.folder / f"{hashlib.sha256(what.encode()).hexdigest()[:16]}.blob"

    def _checked(self, path: Path, core: Any, place: str, config: Mapping[str, Any]) -> Any:
        with path.open("rb") as file:
            header = json.loads(file.readline(HEADER))
            blob = file.read()
        if header["file"] != path.name:  # of other options: bf16 under the name of fp32
            raise ValueError(f"it was written as {header['file']}")
        if hashlib.sha256(blob).hexdigest() != header["sha256"]:
            raise ValueError("its hash is another")
        compiled = core.import_model(io.BytesIO(blob), place, dict(config))
        wanted, found = Answer(header["score"], header["map"]), self.ask(compiled)
        if not found.agrees(wanted):
            raise ValueError(f"its answer is {found.score:.4f}, expected {wanted.score:.4f}")
        return compiled
