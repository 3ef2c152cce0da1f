"""Image files as RGB pixels: 8 bits of grey, RGB, RGBA or palette, or 16 bits.

A 16-bit file does not say how many bits its camera has. A 12-bit camera's brightest white is 4095
there, which is nearly black on the scale of 16 bits, so the depth is stated (``--bit-depth``), or
told from the values by this rule: a file with a value above 16,383, which no camera of 14 bits
reaches, has 16 bits; so has one whose values are all multiples of 257, an 8-bit picture that was
widened; and one that is all 0 is black at every depth. Any other file is refused: it may be a dark
picture of 16 bits or a bright one of 14, 12 or 10, and only its owner knows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from destseg_deploy.data.decoding import (
    Pixels,
    check_size,
    decode,
    guard_decoder,
    open_content,
    open_picture,
    stated_depth,
)
from destseg_deploy.data.pixel_formats import to_8_bit
from destseg_deploy.data.resize import remark_squeeze, resize_image
from destseg_deploy.errors import DataError

BIT_DEPTHS = (8, 10, 12, 14, 16)
"""Bits of a camera whose pixels are in a 16-bit file."""

_ASSUMED: ContextVar[int | None] = ContextVar("bit depth", default=None)


@contextmanager
def assume_bit_depth(bit_depth: int | None) -> Iterator[None]:
    """State the depth of all 16-bit files that are read within the block; None for unknown.

    Raises:
        DataError: If it is none of ``BIT_DEPTHS``.
    """
    token = _ASSUMED.set(_known(bit_depth))
    try:
        yield
    finally:
        _ASSUMED.reset(token)


def assumed_bit_depth() -> int | None:
    """Return what ``assume_bit_depth`` says here; another thread does not see it."""
    return _ASSUMED.get()


def read_image(path: Path | str, bit_depth: int | None = None) -> NDArray[np.uint8]:
    """Read an image as RGB.

    Grey is repeated over the three channels, and alpha is dropped. The pixels of a 16-bit file are
    scaled as ``pixel_formats`` scales the frames of such a camera. Files with an orientation tag or
    several pages are refused: training, evaluation and a line's frames must see the same pixels.

    Args:
        path: PNG, JPEG, BMP or TIFF, whatever its suffix is.
        bit_depth: Bits that a 16-bit file uses, one of ``BIT_DEPTHS``; what ``assume_bit_depth``
            says unless given, else by the rule at the top of this file. 8-bit files need none.

    Returns:
        uint8 (H, W, 3).

    Raises:
        DataError: If the file is missing, damaged, not an image, too large, or its values do not
            tell what they mean.
    """
    path = Path(path)
    with open_picture(path) as image:
        return _read(image, path, bit_depth)


def read_content(content: bytes, name: str, *, most_pixels: int | None = None) -> NDArray[np.uint8]:
    """Read the content of an image file by the rules of ``read_image``; no disk is touched.

    Args:
        content: All bytes of the file.
        name: What errors call it.
        most_pixels: Height times width, at most; larger images are refused by their header. None
            for what the memory limit allows.

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        DataError: As ``read_image``, or if the image has more pixels.
    """
    with open_content(content, name) as image:
        if most_pixels is not None and image.width * image.height > most_pixels:
            raise DataError(
                f"{name}: {image.width}x{image.height} pixels, expected at most "
                f"{most_pixels / 1e6:g} million. Scale it down, or use destseg-predict."
            )
        return _read(image, name, None, content)


def read_picture(image: Image.Image) -> NDArray[np.uint8]:
    """Return a Pillow image as RGB by the rules of ``read_image``: uint8 (H, W, 3).

    Raises:
        DataError: As ``read_image``.
    """
    with guard_decoder("image"):
        check_size(image, "image")
        return _read(image, "image", None)


def read_images(paths: Sequence[Path], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Read images and resize each to ``size`` (height, width); uint8 (N, H, W, 3) RGB.

    Warns once where an image has quite another aspect ratio than ``size``.

    Raises:
        DataError: As ``read_image``.
    """
    resized, squeezed = [], False
    for path in paths:
        image = read_image(path)
        squeezed = squeezed or remark_squeeze(image.shape[:2], size)
        resized.append(resize_image(image, size))
    return np.stack(resized)


def image_shape(path: Path) -> tuple[int, int]:
    """Return the height and width of an image file; only its header is read.

    Raises:
        DataError: If it cannot be read.
    """
    with open_picture(path) as image:
        return image.height, image.width


def _read(
    image: Image.Image, name: Path | str, bit_depth: int | None, content: bytes | None = None
) -> NDArray[np.uint8]:
    depth = stated_depth(image) or _known(bit_depth) or _ASSUMED.get()
    pixels = _to_bytes(_without_alpha(decode(image, name, content)), depth, name)
    colours: Any = pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2)
    return np.ascontiguousarray(colours)


def _without_alpha(pixels: Pixels) -> Pixels:
    """Return the colours, or the grey, (H, W, 3) or (H, W, 1)."""
    deep: Any = pixels.reshape(*pixels.shape[:2], -1)
    found: Pixels = deep[:, :, : 3 if deep.shape[2] >= 3 else 1]
    return found


def _to_bytes(pixels: Pixels, depth: int | None, name: Path | str) -> NDArray[np.uint8]:
    if pixels.dtype == np.uint8:
        return pixels.astype(np.uint8, copy=False)
    largest = int(pixels.max())
    if depth is None:
        depth = _told_depth(pixels, largest, name)
    if largest >= 1 << depth:
        raise DataError(
            f"{name}: its largest value is {largest}, expected at most {(1 << depth) - 1} with a "
            f"bit depth of {depth}. State the camera's depth: --bit-depth {_least(largest)}."
        )
    return to_8_bit(pixels, (1 << depth) - 1)


def _told_depth(pixels: Pixels, largest: int, name: Path | str) -> int:
    """Return 16 where the values tell it; see the top of this file."""
    if largest == 0 or largest >= 1 << 14 or not (pixels % 257).any():
        return 16
    likely = _least(largest)
    raise DataError(
        f"{name}: a 16-bit file whose largest value is {largest}: pixels of a {likely}-bit camera, "
        f"or a dark picture of 16 bits. State which: --bit-depth {likely} or --bit-depth 16; in "
        f"Python read_image(path, bit_depth={likely})."
    )


def _least(largest: int) -> int:
    """Return the smallest depth that holds a value."""
    return next(depth for depth in BIT_DEPTHS if largest < 1 << depth)


def _known(bit_depth: int | None) -> int | None:
    if bit_depth is not None and bit_depth not in BIT_DEPTHS:
        raise DataError(
            f"bit_depth {bit_depth!r}: expected one of {', '.join(map(str, BIT_DEPTHS))}."
        )
    return bit_depth
