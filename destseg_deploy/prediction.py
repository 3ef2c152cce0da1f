"""Predicting image files: a table and an overlay for each, written all together or not at all."""

from __future__ import annotations

import csv
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import chain, count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from destseg_deploy.atomic import staging
from destseg_deploy.data.images import read_image
from destseg_deploy.errors import DataError
from destseg_deploy.predictor import Predictor
from destseg_deploy.runtime.base import Prediction
from destseg_deploy.spec import ModelSpec
from destseg_deploy.visualize import contact_sheet, overlay, write_png

OVERVIEW_TILES = 24
OVERVIEW_WIDTH = 320


@dataclass(frozen=True)
class Row:
    """What is reported of one image.

    Attributes:
        image: The file.
        score: Raw image score, in [0, 1].
        normalized_score: With the threshold at 0.5; None without a threshold.
        verdict: ``anomalous``, ``normal``, or ``unjudged`` without a threshold.
        peak: Largest value of the map.
        x: Column of the peak, in pixels of the image.
        y: Row of the peak, in pixels of the image.
    """

    image: str
    score: float
    normalized_score: float | None
    verdict: str
    peak: float
    x: int
    y: int


def predict_files(
    predictor: Predictor,
    images: Sequence[Path],
    output: Path,
    *,
    table: str = "csv",
    overlays: bool = True,
    batch_size: int | None = None,
    report: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> list[Row]:
    """Score image files and write ``<output>/predictions.<table>`` and ``<output>/overlays``.

    ``<output>/overview.png`` shows the overlays of the highest scores on one page. Everything
    is made in a temporary folder first, so an unreadable image leaves nothing behind.

    Args:
        predictor: The model.
        images: Image files of any size the model takes.
        output: Folder to write to; files of earlier runs with the same names are replaced.
        table: ``csv`` or ``json``.
        overlays: Whether to draw a picture for each image.
        batch_size: Images per call; the artifact's optimum unless given.
        report: Called with the number of images done, their total, and the latest one's name.

    Raises:
        DataError: If there is no image, or one cannot be read.
        ShapeError: If the artifact takes no images of that size.
    """
    names = overlay_names(images)
    rows = []
    with staging(output) as staged:
        for i, (frame, prediction) in enumerate(_scored(predictor, images, batch_size)):
            rows.append(_row(predictor, images[i], prediction))
            if overlays:
                picture = _draw(predictor.spec, frame, prediction)
                write_png(staged / "overlays" / names[i], picture)
            report(i + 1, len(images), images[i].name)
        _write_table(rows, staged / f"predictions.{table}")
        if overlays:
            write_png(staged / "overview.png", _overview(rows, names, staged / "overlays"))
    return rows


def overlay_names(images: Sequence[Path]) -> list[Path]:
    """Return a distinct ``.png`` name for each image, keeping folders that tell them apart.

    Raises:
        DataError: If there is no image.
    """
    if not images:
        raise DataError("images: none were passed. Pass at least one image file.")
    parents = [path.resolve().parent for path in images]
    root = Path(os.path.commonpath(parents))
    names: list[Path] = []
    taken: set[Path] = set()
    for path, parent in zip(images, parents, strict=True):
        stems = chain((path.stem, path.name), (f"{path.name}-{i}" for i in count(2)))
        folder = parent.relative_to(root)
        # a.jpg may lie beside a.png, and a.jpg.png beside both
        name = next(name for stem in stems if (name := folder / f"{stem}.png") not in taken)
        taken.add(name)
        names.append(name)
    return names


def _scored(
    predictor: Predictor, images: Sequence[Path], batch_size: int | None
) -> Iterator[tuple[NDArray[np.uint8], Prediction]]:
    """Yield each image with its prediction, holding no more than a batch of them."""
    waiting: deque[NDArray[np.uint8]] = deque()

    def frames() -> Iterator[NDArray[np.uint8]]:
        for path in images:
            waiting.append(read_image(path))
            yield waiting[-1]

    for prediction in predictor.stream(frames(), source_maps=True, batch_size=batch_size):
        yield waiting.popleft(), prediction


def _row(predictor: Predictor, image: Path, prediction: Prediction) -> Row:
    score = float(prediction.score[0])
    anomaly_map = prediction.anomaly_map[0]
    y, x = divmod(int(anomaly_map.argmax()), anomaly_map.shape[1])
    verdict, normalized = "unjudged", None
    if predictor.spec.threshold is not None:
        verdict = "anomalous" if predictor.is_anomalous(prediction)[0] else "normal"
        normalized = float(predictor.normalized_score(prediction)[0])
    return Row(str(image), score, normalized, verdict, float(anomaly_map[y, x]), x, y)


def _draw(spec: ModelSpec, frame: NDArray[np.uint8], prediction: Prediction) -> NDArray[np.uint8]:
    threshold = spec.threshold
    return overlay(
        frame,
        prediction.anomaly_map[0],
        pixel_threshold=None if threshold is None else threshold.pixel,
        score=float(prediction.score[0]),
        threshold=None if threshold is None else threshold.score,
    )


def _overview(rows: Sequence[Row], names: Sequence[Path], folder: Path) -> NDArray[np.uint8]:
    """Return one page with the overlays of the highest scores, highest first."""
    order = sorted(range(len(rows)), key=lambda i: -rows[i].score)[:OVERVIEW_TILES]
    tiles = []
    for i in order:
        with Image.open(folder / names[i]) as picture:
            picture.thumbnail((OVERVIEW_WIDTH, 2 * OVERVIEW_WIDTH))
            tiles.append(np.asarray(picture.convert("RGB")))
    captions = [str(names[i].with_suffix("")) for i in order]
    return contact_sheet(tiles, columns=6, tile_width=OVERVIEW_WIDTH, captions=captions)


def _write_table(rows: Sequence[Row], path: Path) -> None:
    if path.suffix == ".json":
        path.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", "utf-8")
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
