"""Reading image and mask files: png, jpg, bmp, tif; grey, RGB, RGBA, palette and 16-bit."""

from __future__ import annotations

from collections.abc import Sequence
from glob import glob
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from destseg_deploy.data.resize import resize_plane
from destseg_deploy.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def is_image(path: Path) -> bool:
    """Tell by its suffix whether a path is an image; hidden files are not."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def list_images(folder: Path) -> list[Path]:
    """Return the images directly in a folder, sorted by name.

    Raises:
        DataError: If the folder does not exist or holds no image.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. Expected a folder of images.")
    images = sorted(path for path in folder.iterdir() if is_image(path))
    if not images:
        raise DataError(
            f"{folder}: no images in it. Expected files ending in {', '.join(SUFFIXES)}."
        )
    return images


def expand(patterns: Sequence[str]) -> list[Path]:
    """Return the images that files, folders (at any depth) and globs name, without repeats.

    Raises:
        DataError: If one of them names no image.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            images = sorted(p for p in path.rglob("*") if is_image(p))
        elif path.exists():
            images = [path]
        else:
            images = sorted(p for p in map(Path, glob(pattern, recursive=True)) if is_image(p))
        if not images:
            raise DataError(
                f"{pattern}: no images there. Expected a file, a folder or a quoted glob of "
                f"{', '.join(SUFFIXES)}."
            )
        found.update(dict.fromkeys(images))
    return list(found)


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read an image as RGB.

    Grey is repeated over the three channels, alpha is dropped, and of 16-bit pixels the high byte
    is kept. An orientation tag is ignored, as in training: a camera's frame is taken as it lies.

    Returns:
        uint8 (H, W, 3).

    Raises:
        DataError: If the file is missing, damaged, or not an image.
    """
    pixels = _decode(path)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    return np.ascontiguousarray(_to_bytes(pixels[:, :, :3], path))


def read_mask(path: Path, shape: tuple[int, int], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Read a defect mask and bring it to the size at which maps are evaluated.

    It is resized with THE resize and cut at one half, as the reference does (methods.md 3.1.9).
    Masks of 0 and 1 are understood like masks of 0 and 255.

    Args:
        path: A grey image; 255 is defective, or 1 where no value is larger.
        shape: Height and width of the image it belongs to.
        size: Height and width wanted.

    Returns:
        bool (height, width).

    Raises:
        DataError: If it cannot be read, or is not as large as its image.
    """
    pixels = _decode(path)
    plane = pixels if pixels.ndim == 2 else pixels[:, :, :3].max(axis=2)
    if plane.max() > 255 or not np.issubdtype(plane.dtype, np.integer):
        plane = _to_bytes(plane, path)
    if plane.shape != shape:
        raise DataError(
            f"{path}: the mask is {plane.shape[1]}x{plane.shape[0]} pixels, its image "
            f"{shape[1]}x{shape[0]}. Expected the same size; export the mask again."
        )
    top = np.float32(1 if plane.max() <= 1 else 255)
    return resize_plane(plane.astype(np.float32) / top, size) >= 0.5


def _decode(path: Path) -> NDArray[np.generic]:
    """Return the file's pixels: (H, W) or (H, W, 3 or 4), of whatever integer type they have."""
    try:
        with Image.open(path) as image:
            if image.mode in ("L", "RGB", "RGBA") or image.mode.startswith(("I", "F")):
                return np.asarray(image)
            return np.asarray(image.convert("L" if image.mode in ("1", "LA") else "RGB"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. Expected an image.") from None
    except UnidentifiedImageError:
        return _decode_with_opencv(path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path}: the image cannot be read ({error}). Replace or remove the file."
        ) from error


def _decode_with_opencv(path: Path) -> NDArray[np.generic]:
    """Decode what Pillow does not know, such as 16-bit colour TIFF."""
    data = np.fromfile(path, dtype=np.uint8)
    try:
        pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    except cv2.error:  # damaged headers fail its assertions
        pixels = None
    if pixels is None:
        raise DataError(
            f"{path}: not an image, or a damaged one ({data.size} bytes). Replace or remove it."
        )
    return pixels if pixels.ndim == 2 else pixels[:, :, [2, 1, 0]]


def _to_bytes(pixels: NDArray[np.generic], path: Path) -> NDArray[np.uint8]:
    if pixels.dtype == np.uint8:
        return pixels.astype(np.uint8, copy=False)
    if np.issubdtype(pixels.dtype, np.integer) and 0 <= pixels.min() and pixels.max() < 1 << 16:
        return (pixels.astype(np.uint16) >> 8).astype(np.uint8)
    raise DataError(
        f"{path}: pixels are {pixels.dtype}, expected 8 or 16 bits per channel. Convert it."
    )
