"""A procedural category in MVTec AD layout: the cut face of a three-wire cable, made from a seed.

MVTec AD may not be shipped, so the demo and the tests need a category that anyone can make in
seconds. The part resembles MVTec's `cable`: a grey sheath around three insulated wires, each a
bundle of copper strands. Everything normal varies: pose, light, colours, strands, focus, noise.

A defect is a change of the described part, not of the picture. The normal and the defective part
are drawn under the same light; the mask is where the two drawings differ, so it is exact::

    rng ─► Part ──────────► draw ─► clean ──┐
             └─► defect ──► draw ─► clean ──┴─► mask, sensor noise ─► image
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from destseg_deploy.data.sample.cable import Floats, draw, make_part, make_scene
from destseg_deploy.data.sample.defects import MAKERS
from destseg_deploy.data.sample.small_defects import SMALL_MAKERS, part_length
from destseg_deploy.errors import DataError
from destseg_deploy.files import workshop

Bytes = npt.NDArray[np.uint8]

DEFECTS: tuple[str, ...] = tuple(MAKERS)
SMALL_DEFECTS: tuple[str, ...] = tuple(SMALL_MAKERS)
"""Defects whose length is given in pixels."""

Lengths = tuple[int, int]
"""Smallest and largest length of a small defect, in pixels of the picture."""

USUAL: Lengths = (6, 12)

_SMALLEST = 64  # a strand is then one pixel wide
_VISIBLE = 3 / 255  # a change below this is hidden by the sensor noise


def render(
    rng: np.random.Generator, size: int, defect: str | None, lengths: Lengths = USUAL
) -> tuple[Bytes, Bytes]:
    """Draw one part.

    The part, its scene, its noise and its defect have a generator each, so two generators in the
    same state give the same picture with and without a defect, except inside the mask.

    Args:
        rng: Advanced by the same amount whatever the defect.
        size: Height and width of the picture, at least 64.
        defect: One of `DEFECTS` or `SMALL_DEFECTS`, or None for a normal part.
        lengths: Of a small defect.

    Returns:
        image uint8 (size, size, 3) RGB, and mask uint8 (size, size): 255 on the defect, else 0.

    Raises:
        DataError: If the size is too small or the defect unknown.
    """
    _check_size(size)
    known = (*DEFECTS, *SMALL_DEFECTS)
    if defect is not None and defect not in known:
        raise DataError(f"defect: {defect!r} is unknown. Expected one of {', '.join(known)}.")
    seeds = rng.integers(2**63, size=4)
    part_rng, scene_rng, noise_rng, defect_rng = (np.random.default_rng(s) for s in seeds)
    part, scene = make_part(part_rng), make_scene(scene_rng, size)
    clean, mask = draw(scene, part), np.zeros((size, size), np.uint8)
    if defect is not None:
        if defect in SMALL_MAKERS:
            length = part_length(defect_rng, lengths, size)
            changed = draw(scene, SMALL_MAKERS[defect](defect_rng, part, length))
        else:
            changed = draw(scene, MAKERS[defect](defect_rng, part))
        mask = _find_changes(clean, changed)
        clean = np.where(mask[..., None] > 0, changed, clean)
    return _expose(noise_rng, clean), mask


def write_sample(
    root: Path,
    *,
    category: str = "cable",
    size: int = 256,
    train: int = 60,
    good: int = 20,
    per_defect: int = 6,
    defect_size: Lengths | None = None,
    seed: int = 0,
) -> Path:
    """Write the sample category in MVTec AD layout.

    ``<category>/train/good``, ``test/good``, ``test/<defect>`` hold ``000.png`` and so on;
    ``ground_truth/<defect>`` holds ``000_mask.png``. Each picture depends on the seed, its split
    and its number alone, so asking for more of them leaves the first ones as they were. The
    category appears complete or not at all.

    Args:
        root: Folder of categories; made when missing.
        category: Name of the folder written below root.
        size: Height and width of the pictures, at least 64.
        train: Normal pictures to train on.
        good: Normal pictures to test on.
        per_defect: Pictures of each type of defect.
        defect_size: Smallest and largest length of the defects in pixels: `SMALL_DEFECTS` are then
            drawn, anew for each picture. None draws `DEFECTS`, which grow with the picture.
        seed: Not negative. The same seed and library versions give the same bytes.

    Returns:
        root / category.

    Raises:
        DataError: If the folder is not empty or cannot be written, or an argument is out of range.
    """
    _check_request(category, train, good, per_defect, seed)
    _check_size(size)
    _check_lengths(defect_size, size)
    target = root / category
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"{target}: exists and is not empty. Remove it or choose another folder.")
    splits: list[tuple[str, str | None, int]]
    splits = [("train/good", None, train), ("test/good", None, good)]
    types = DEFECTS if defect_size is None else SMALL_DEFECTS
    splits += [(f"test/{defect}", defect, per_defect) for defect in types]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with workshop(root) as folder:
            made = folder / category
            for number, (name, defect, count) in enumerate(splits):
                chosen = partial(render, size=size, defect=defect, lengths=defect_size or USUAL)
                _write_split(made / name, chosen, count, [seed, number], masked=bool(defect))
            if target.exists():  # empty; only some systems rename onto an empty folder
                target.rmdir()
            made.rename(target)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(
            f"{target}: cannot be written ({reason}). Make room, or choose another --output."
        ) from error
    return target


def _find_changes(normal: Floats, defective: Floats) -> Bytes:
    """Return the mask uint8 (H, W), 0 or 255, of what a careful eye can tell apart.

    Holes are filled (a wire of the wrong colour is wrong as a whole, copper included) and the
    outline grows by a pixel, which takes in its antialiased border.
    """
    seen = (np.abs(normal - defective).max(axis=2) > _VISIBLE).astype(np.uint8)
    gap = max(3, normal.shape[0] // 64 | 1)
    seen = cv2.morphologyEx(seen, cv2.MORPH_CLOSE, np.ones((gap, gap), np.uint8)).astype(np.uint8)
    outlines, _ = cv2.findContours(seen, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    mask = np.zeros(seen.shape, np.uint8)
    cv2.drawContours(mask, outlines, -1, 255, cv2.FILLED)
    return np.asarray(cv2.dilate(mask, np.ones((3, 3), np.uint8)), np.uint8)


def _expose(rng: np.random.Generator, clean: Floats) -> Bytes:
    """Return the picture as a sensor reads it: read noise, and shot noise growing with light."""
    read, shot = rng.uniform(0.004, 0.009), rng.uniform(0.006, 0.014)
    noise = rng.standard_normal(clean.shape, np.float32)
    sensed = clean + noise * (read + shot * np.sqrt(clean))
    return np.round(np.clip(sensed, 0, 1) * 255).astype(np.uint8)


def _write_split(
    folder: Path,
    draw_one: Callable[[np.random.Generator], tuple[Bytes, Bytes]],
    count: int,
    key: list[int],
    *,
    masked: bool,
) -> None:
    """Write ``count`` pictures into a folder of a split and, if wanted, their masks.

    Picture i is drawn by the generator seeded with ``[*key, i]``.
    """
    masks = folder.parents[1] / "ground_truth" / folder.name
    for directory in (folder, masks) if masked else (folder,):
        directory.mkdir(parents=True)
    for index in range(count):
        image, mask = draw_one(np.random.default_rng([*key, index]))
        Image.fromarray(image).save(folder / f"{index:03d}.png")
        if masked:
            Image.fromarray(mask).save(masks / f"{index:03d}_mask.png")


def _check_size(size: int) -> None:
    if size < _SMALLEST:
        raise DataError(f"size: {size}. Expected at least {_SMALLEST} pixels.")


def _check_lengths(lengths: Lengths | None, size: int) -> None:
    if lengths is not None and not 3 <= lengths[0] <= lengths[1] <= size // 8:
        raise DataError(
            f"defect_size: {lengths[0]} to {lengths[1]} pixels. Expected the smaller number first, "
            f"both from 3 to {size // 8}, an eighth of the picture."
        )


def _check_request(category: str, train: int, good: int, per_defect: int, seed: int) -> None:
    if category in ("", "..") or Path(category).name != category:
        raise DataError(f"category: {category!r}. Expected the name of one folder, like 'cable'.")
    if min(train, good, per_defect) < 1 or seed < 0:
        given = f"train={train}, good={good}, per_defect={per_defect}, seed={seed}"
        raise DataError(f"{given}. Expected at least one picture of each, and a seed from 0 up.")
