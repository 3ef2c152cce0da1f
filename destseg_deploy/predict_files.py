"""Predicting image files: one table, an overlay for each image, and an overview.

An image that cannot be read gets a row with its error, so that one among thousands costs no other
its score. All else is written as a whole, or not at all. What an earlier run wrote to the folder is
replaced, pictures included, so that two runs never mix. ``RECORD`` says which pictures those are:
the names in a table do not lead to them, since a table cannot hold any file name.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass, fields
from itertools import chain, count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL.PngImagePlugin import PngImageFile

from destseg_deploy.data.finding import common_folder, folder_below
from destseg_deploy.errors import DataError, OutOfMemoryError, ShapeError
from destseg_deploy.files import making, refuse_others, staging
from destseg_deploy.locks import locked
from destseg_deploy.pictures.overlays import contact_sheet, overlay, write_png
from destseg_deploy.predictor import Predictor
from destseg_deploy.runtime.base import Prediction
from destseg_deploy.spec import Threshold
from destseg_deploy.text import load_json, write_csv

OVERVIEW_TILES = 24
OVERVIEW_COLUMNS = 6
OVERVIEW_WIDTH = 320  # of a tile, in pixels


@dataclass(frozen=True)
class Row:
    """What is reported of one image.

    Attributes:
        image: The file.
        score: Raw image score, in [0, 1]; None, as all below, where the image cannot be read.
        normalized_score: In [0, 1], the threshold at 0.5; None without a threshold.
        verdict: ``NG`` where score > threshold, else ``OK``; None without a threshold.
        peak: Largest value of the map, in [0, 1].
        x: Column of the peak, in pixels of the image.
        y: Row of the peak, in pixels of the image.
        error: Why the image has no score; None where it has one.
    """

    image: str
    score: float | None
    normalized_score: float | None = None
    verdict: str | None = None
    peak: float | None = None
    x: int | None = None
    y: int | None = None
    error: str | None = None


COLUMNS = tuple(field.name for field in fields(Row))
TABLES = {"predictions.csv": "image,score,", "predictions.json": '[\n  {\n    "image": '}
"""Name of a table -> how ours begins; the columns after these may change."""

RECORD = Path(".pictures.json")
"""Which pictures a run wrote, and the bytes of each: one that was changed since is the user's."""


def predict_files(
    predictor: Predictor,
    images: Sequence[Path | str],
    output: Path | str,
    *,
    table: str = "csv",
    overlays: bool = True,
    batch_size: int | None = None,
    report: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> list[Row]:
    """Score image files and write ``<output>/predictions.<table>`` and ``<output>/overlays``.

    ``<output>/overview.png`` shows the overlays of the highest scores on one page, and
    ``<output>/.pictures.json`` names all pictures. Everything is made in a temporary folder first,
    so an interruption leaves nothing behind.

    Args:
        predictor: The model.
        images: Image files of any size the model takes.
        output: Folder to write to; what an earlier run wrote there is replaced, and nothing else.
        table: ``csv`` or ``json``.
        overlays: Whether to draw a picture for each image.
        batch_size: Images per call; the artifact's optimum unless given.
        report: Called with the number of images done, their total, and the latest one's name.

    Returns:
        A row for each image, in order; those that cannot be read, or whose size the artifact does
        not take, have an ``error`` and no score.

    Raises:
        DataError: If there is no image, or none that can be scored; nothing is written then.
        ShapeError: If the batch size is out of the artifact's range.
        OutputError: If another run writes to the folder, or a file there is not of an earlier run.
    """
    if isinstance(images, str | Path):
        raise DataError(f"{images}: one path, expected a list of image files. Pass [path].")
    paths, output = [Path(image) for image in images], Path(output)
    names = overlay_names(paths)
    rows: list[Row] = []
    scored = _scored(predictor, paths, batch_size)
    held = locked(output / "predictions", output)
    with making(output), held, staging(output, durable=False) as staged:
        before = _earlier(output)
        _refuse_others(output, [Path(f"predictions.{table}")], before)
        if overlays:
            _refuse_others(output, _pictures(names), before)
        for image, name, (frame, found) in zip(paths, names, scored, strict=True):
            if frame is None or isinstance(found, str):
                rows.append(Row(str(image), None, error=str(found)))
            else:
                rows.append(_row(predictor, image, found))
                if overlays:
                    path = staged / "overlays" / name
                    _write_overlay(path, frame, found, predictor.spec.threshold)
            report(len(rows), len(paths), image.name)
        if all(row.error is not None for row in rows):
            raise DataError(_none_read(rows))
        _write_table(rows, staged / f"predictions.{table}")
        if overlays:
            _write_overview(rows, names, staged)
        made = _files_below(staged)
        if overlays:
            _write_record(staged / RECORD, before | made)
            made[RECORD] = 0
    _remove(output, before.keys() - made.keys())
    return rows


def _none_read(rows: Sequence[Row]) -> str:
    first = str(rows[0].error)
    return first if len(rows) == 1 else f"none of {len(rows)} images was scored. {first}"


def _pictures(names: Iterable[Path]) -> list[Path]:
    """Return all that is written beside a table, below the output."""
    overlays = Path("overlays")
    return [RECORD, Path("overview.png"), overlays, *(overlays / name for name in names)]


def _refuse_others(output: Path, names: Iterable[Path], before: Mapping[Path, int]) -> None:
    """Refuse to replace what no earlier run wrote; its folder of overlays may hold more."""

    def is_ours(path: Path) -> bool:
        return bool(before) if path.is_dir() else path.relative_to(output) in before

    refuse_others((output / name for name in names), is_ours)


def _earlier(output: Path) -> dict[Path, int]:
    """Return the files that an earlier run wrote and nobody changed since, with their bytes."""
    ours = {Path(name) for name, text in TABLES.items() if _begins(output / name, text)}
    found = {name: size for name in ours if (size := _size(output / name)) is not None}
    recorded = _read_record(output / RECORD)
    if recorded is not None:
        found[RECORD] = 0
        found |= {name: size for name, size in recorded.items() if _size(output / name) == size}
    return found


def _read_record(path: Path) -> dict[Path, int] | None:
    """Return the pictures of a record with their bytes; None if it is missing or not ours."""
    try:
        found = load_json(path)
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not all(isinstance(size, int) for size in found.values()):
        return None
    sizes = {Path(name): size for name, size in found.items()}
    # A record from elsewhere must not lead out of its folder.
    return {n: size for n, size in sizes.items() if not n.anchor and ".." not in n.parts}


def _write_record(path: Path, files: Mapping[Path, int]) -> None:
    """Record new pictures, and those of before: a crash may come before their removal."""
    pictures = {name.as_posix(): size for name, size in files.items() if name.suffix == ".png"}
    path.write_text(json.dumps(pictures, indent=1) + "\n", "utf-8")


def _files_below(folder: Path) -> dict[Path, int]:
    """Return the files at any depth of a folder, with their bytes."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder): path.stat().st_size for path in files}


def _size(path: Path) -> int | None:
    """Return the bytes of a file, or None if it is not there; a link is not what a run wrote."""
    try:
        return path.lstat().st_size
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return None


def _remove(output: Path, names: Iterable[Path]) -> None:
    """Remove files, and the folders of overlays that are empty without them."""
    for name in names:
        (output / name).unlink(missing_ok=True)
        for parent in (output / name).parents:
            if parent == output or not parent.is_dir() or any(parent.iterdir()):
                break
            parent.rmdir()


def overlay_names(images: Sequence[Path]) -> list[Path]:
    """Return a distinct ``.png`` name for each image, keeping folders that tell them apart.

    Raises:
        DataError: If there is no image.
    """
    if not images:
        raise DataError("images: none were passed. Pass at least one image file.")
    parents = [_real_folder(path) for path in images]
    common = common_folder(parents)
    names: list[Path] = []
    taken: set[Path] = set()
    for path, parent in zip(images, parents, strict=True):
        stems = chain((path.stem, path.name), (f"{path.name}-{i}" for i in count(2)))
        folder = folder_below(parent, common)
        # A folder may hold a.png, a.jpg and a.jpg.png: all three would become a.png or a.jpg.png.
        name = next(name for stem in stems if (name := folder / f"{stem}.png") not in taken)
        taken.add(name)
        names.append(name)
    return names


def _real_folder(path: Path) -> Path:
    """Return the folder of a file without links, so that one folder has one name."""
    with suppress(ValueError):  # a zero byte; whoever reads the file says so
        return Path(os.path.realpath(path.parent))
    return path.parent


def _scored(
    predictor: Predictor, images: Sequence[Path], batch_size: int | None
) -> Iterator[tuple[NDArray[np.uint8] | None, Prediction | str]]:
    """Yield each image with its prediction, its map at the size of the image; or its error."""
    # The predictor reads ahead to fill a batch; its frames wait here, so no file is read twice.
    waiting: deque[NDArray[np.uint8] | str] = deque()

    def frames() -> Iterator[NDArray[np.uint8]]:
        for path in images:
            try:
                frame = predictor.read(path)
            except (DataError, ShapeError, OutOfMemoryError) as error:
                waiting.append(str(error))
            else:
                waiting.append(frame)
                yield frame

    def failed() -> Iterator[tuple[None, str]]:
        while waiting and isinstance(waiting[0], str):
            yield None, str(waiting.popleft())

    for prediction in predictor.stream(frames(), source_maps=True, batch_size=batch_size):
        yield from failed()
        frame = waiting.popleft()
        assert not isinstance(frame, str)  # failed() took those
        yield frame, prediction
    yield from failed()


def _row(predictor: Predictor, image: Path, prediction: Prediction) -> Row:
    anomaly_map = prediction.anomaly_map[0]
    y, x = divmod(int(anomaly_map.argmax()), anomaly_map.shape[1])
    verdict, normalized = None, None
    if predictor.spec.threshold is not None:
        verdict = "NG" if predictor.is_anomalous(prediction)[0] else "OK"
        normalized = float(predictor.normalized_score(prediction)[0])
    score, peak = float(prediction.score[0]), float(anomaly_map[y, x])
    return Row(str(image), score, normalized, verdict, peak, x, y)


def _write_overlay(
    path: Path, frame: NDArray[np.uint8], prediction: Prediction, threshold: Threshold | None
) -> None:
    picture = overlay(
        frame,
        prediction.anomaly_map[0],
        pixel_threshold=None if threshold is None else threshold.pixel,
        score=float(prediction.score[0]),
        threshold=None if threshold is None else threshold.score,
    )
    write_png(path, picture)


def _write_overview(rows: Sequence[Row], names: Sequence[Path], folder: Path) -> None:
    """Write one page with the overlays of the highest scores, highest first."""
    scores = {i: row.score for i, row in enumerate(rows) if row.score is not None}
    order = sorted(scores, key=lambda i: -scores[i])[:OVERVIEW_TILES]
    tiles = []
    for i in order:
        # Read back from the files, because the overlays of a whole shift do not fit into memory.
        # Image.open would refuse our own overlay of a large image as a bomb.
        with PngImageFile(folder / "overlays" / names[i]) as picture:
            picture.thumbnail((OVERVIEW_WIDTH, 2 * OVERVIEW_WIDTH))
            tiles.append(np.asarray(picture.convert("RGB")))
    captions = [str(names[i].with_suffix("")) for i in order]
    page = contact_sheet(
        tiles, columns=OVERVIEW_COLUMNS, tile_width=OVERVIEW_WIDTH, captions=captions
    )
    write_png(folder / "overview.png", page)


def _write_table(rows: Sequence[Row], path: Path) -> None:
    if path.suffix == ".json":
        path.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", "utf-8")
    else:
        write_csv(path, COLUMNS, (astuple(row) for row in rows))


def _begins(path: Path, text: str) -> bool:
    if not path.is_file():  # a pipe would be waited for
        return False
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            return file.read(len(text)) == text
    except OSError:
        return False
