"""What is answered of an image of an archive, and what makes the answers: here, or in a worker."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from destseg_deploy.archive.uris import FileSystems, is_uri
from destseg_deploy.data.images import assume_bit_depth
from destseg_deploy.device import Device
from destseg_deploy.errors import DataError, OutOfMemoryError, ShapeError
from destseg_deploy.loading import FITS, choose_backend, load
from destseg_deploy.options import Options
from destseg_deploy.predictor import Predictor
from destseg_deploy.runtime.base import Prediction
from destseg_deploy.spec import ModelSpec

WHITE = 65535  # a map's value 1 in its PNG


class Answer(NamedTuple):
    """What is known of one image.

    Attributes:
        path: The image, as ``stream_paths`` names it.
        score: Raw image score, in [0, 1]; None, as all below, where the image cannot be read.
        normalized_score: In [0, 1], the threshold at 0.5; None without a threshold.
        verdict: ``NG`` where score > threshold, else ``OK``; None without a threshold.
        error: Why the image has no score; None where it has one.
        time: When it was answered, UTC.
        map: The anomaly map as a 16-bit grey PNG, 1.0 as 65535; None unless maps are kept.
    """

    path: str
    score: float | None
    normalized_score: float | None
    verdict: str | None
    error: str | None
    time: datetime
    map: bytes | None = None


def failed(path: str, error: str) -> Answer:
    """Return the answer of an image that has no score."""
    return Answer(path, None, None, None, error, datetime.now(timezone.utc))


@dataclass(frozen=True)
class Work:
    """What makes the answers; it is sent to workers.

    Attributes:
        artifact: The model. Workers on other machines read it at the same path.
        backend: As ``load``'s, and so are ``device`` and ``options``.
        device: Where a worker runs it.
        options: Of the back end.
        batch_size: Images per call; the artifact's optimum unless given.
        bit_depth: Of the camera, for 16-bit files; None to tell it from the values.
        maps: Longer side of the maps that are kept, in pixels; None for no maps.
            ``predict_archive`` takes it from its options.
    """

    artifact: Path
    backend: str | None = None
    device: Device | None = None
    options: Options | None = None
    batch_size: int | None = None
    bit_depth: int | None = None
    maps: int | None = None

    def settled(self) -> Work:
        """Return the same with the back end and the options that are taken where none are given.

        Raises:
            BackendError: If file, back end, device and options do not fit together.
        """
        kind = None if self.options is None else type(self.options)
        backend = choose_backend(self.artifact, self.backend, self.device, kind)
        fit = FITS[backend]
        device, options = self.device or fit.device, self.options or fit.options()
        return replace(self, backend=backend, device=device, options=options)

    def open(self) -> Scorer:
        """Load the model.

        Raises:
            DestsegError: As ``load``.
        """
        predictor = load(
            self.artifact, backend=self.backend, device=self.device, options=self.options
        )
        return Scorer(predictor, self)


class Scorer:
    """Makes the answers of images. It owns its predictor until ``close``."""

    def __init__(self, predictor: Predictor, work: Work) -> None:
        """Take a predictor, and how it is used."""
        self._predictor, self._work = predictor, work
        self._systems = FileSystems()

    @property
    def spec(self) -> ModelSpec:
        """The artifact's contract."""
        return self._predictor.spec

    def answer(self, paths: Sequence[str]) -> list[Answer]:
        """Score images, in batches; one that cannot be read has an error instead of a score.

        Returns:
            An answer for each image; the order may differ.

        Raises:
            UnreachableError: If a file system does not answer. A missing or damaged image raises
                nothing.
            BackendError: If the model cannot run.
        """
        reading, answers = deque[str](), list[Answer]()

        def frames() -> Iterator[NDArray[np.uint8]]:
            for path in paths:
                try:
                    frame = self._read(path)
                # An image that is too large for the memory must not stop each run at its place.
                except (DataError, ShapeError, OutOfMemoryError) as error:
                    answers.append(failed(path, str(error)))
                else:
                    reading.append(path)
                    yield frame

        with assume_bit_depth(self._work.bit_depth):
            for found in self._predictor.stream(frames(), batch_size=self._work.batch_size):
                answers.append(self._answer(reading.popleft(), found))
        return answers

    def close(self) -> None:
        """Release the predictor."""
        self._predictor.close()

    def _read(self, path: str) -> NDArray[np.uint8]:
        if is_uri(path):
            try:
                content = self._systems.read(path)
            except FileNotFoundError as error:
                raise DataError(f"{path}: no such file. Expected an image.") from error
            return self._predictor.read(path, content)
        return self._predictor.read(path)

    def _answer(self, path: str, found: Prediction) -> Answer:
        normalized, verdict = None, None
        if self.spec.threshold is not None:
            verdict = "NG" if self._predictor.is_anomalous(found)[0] else "OK"
            normalized = float(self._predictor.normalized_score(found)[0])
        side = self._work.maps
        kept = None if side is None else encode_map(found.anomaly_map[0], side)
        score, now = float(found.score[0]), datetime.now(timezone.utc)
        return Answer(path, score, normalized, verdict, None, now, kept)


def encode_map(anomaly_map: NDArray[np.float32], side: int) -> bytes:
    """Return a map (H, W), in [0, 1], as a 16-bit grey PNG whose longer side is ``side`` at most.

    A pixel of a reduced map is the mean of those that it stands for; no map is enlarged.
    """
    height, width = anomaly_map.shape
    scale = min(1.0, side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    reduced = cv2.resize(anomaly_map, size, interpolation=cv2.INTER_AREA)
    # Rounding may leave a value just outside of [0, 1], which would wrap around.
    levels = np.rint(np.clip(reduced, 0, 1) * WHITE)
    _, content = cv2.imencode(".png", levels.astype(np.uint16))
    return content.tobytes()


def decode_map(content: bytes) -> NDArray[np.float32]:
    """Return the map (H, W), in [0, 1], of what ``encode_map`` made."""
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    return np.asarray(pixels, np.float32) / np.float32(WHITE)
