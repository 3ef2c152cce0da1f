"""The model behind the server: a predictor and its threshold, shared by requests."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from destseg_deploy import thresholds
from destseg_deploy.data.images import read_content
from destseg_deploy.data.resize import resize_image
from destseg_deploy.predictor import Predictor
from destseg_deploy.runtime.base import Prediction
from destseg_deploy.spec import Threshold, verdicts
from destseg_deploy.web.encoding import encode_picture

MOST_PIXELS = 64_000_000
"""Of one image: 192 MB as RGB. A small file may unpack into far more."""

SIDE, CELLS, LIMIT = 720, 128, 120_000
"""Longest side of an answer's picture in pixels and of its map in cells, and bytes of its WebP."""


class Service:
    """Scores one request after another, so that memory is bounded by the largest request.

    The threshold is the artifact's until another one is saved. ``Predictor`` keeps the one that it
    was loaded with, so verdicts are made here.
    """

    def __init__(self, predictor: Predictor, artifact: Path) -> None:
        """Serve a predictor, which stays the caller's to close.

        Args:
            predictor: The model.
            artifact: Its file, beside whose spec a threshold is saved.
        """
        self.predictor, self.artifact, self.name = predictor, artifact, artifact.stem
        self.threshold: Threshold | None = predictor.spec.threshold
        self._turn = threading.Lock()

    def infer(self, frames: NDArray[np.uint8]) -> Prediction:
        """Score frames: uint8 (N, H, W, 3) RGB.

        Raises:
            ShapeError, BackendError: As ``Predictor``.
        """
        with self._turn:
            return self.predictor(frames)

    def verdicts(self, prediction: Prediction) -> list[str] | None:
        """Return OK or NG for each image; None without a threshold."""
        if self.threshold is None:
            return None
        return verdicts(prediction.score, self.threshold.score)

    def look(self, content: bytes) -> dict[str, Any]:
        """Score an image file and return what the page shows of it.

        Args:
            content: The file's bytes.

        Raises:
            DataError: If it is no image that can be read, or a larger one than ``MOST_PIXELS``.
            ShapeError: If the artifact takes no image of its size.
        """
        with self._turn:
            image = read_content(content, "image", most_pixels=MOST_PIXELS)
            start = time.perf_counter()
            prediction = self.predictor(image)
            seconds = time.perf_counter() - start
            anomaly_map = prediction.anomaly_map[0]
            height, width = image.shape[:2]
            scale = min(1.0, SIDE / max(height, width))
            small = resize_image(
                image, (max(1, round(height * scale)), max(1, round(width * scale)))
            )
            return {
                "score": float(prediction.score[0]),
                "peak": float(anomaly_map.max()),
                "milliseconds": round(1000 * seconds, 1),
                "size": [width, height],
                "picture": encode_picture(small, anomaly_map, cells=CELLS, limit=LIMIT),
            }

    def save(self, score: float, pixel: float) -> Threshold:
        """Write a threshold into the artifact's spec, as ``destseg-threshold --value`` does.

        Raises:
            MetricError: If a value is not within [0, 1].
            SpecError, OutputError, OSError: If the spec cannot be written.
        """
        chosen = thresholds.by_hand(score, pixel)
        with self._turn:
            thresholds.set_threshold(self.artifact, chosen)
            self.threshold = chosen
        return chosen
