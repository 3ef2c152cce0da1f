"""What cameras give, brought to RGB or grey of 8 bit.

Everything is done in whole numbers, so that ``cpp/src/pixel_formats.cpp`` gives the same bits:

- 10, 12 and 16 bit grey: ``(min(v, maximum) * 255 + maximum // 2) // maximum``; files of such a
  camera, too, so that a frame has the same pixels on the line as in a folder.
- Bayer: a missing colour is the mean of the nearest pixels that have it, halves rounded up; beyond
  an edge lies the pixel on its other side, so colours keep their places.
- YUV 4:2:2: BT.601 with all numbers from 0 to 255, in units of 2⁻¹⁶; two pixels share a colour.

Names are those of GenICam's PFNC, in lower case.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.errors import ShapeError

FrameFormat = Literal[
    "mono8",
    "rgb8",
    "bgr8",
    "rgba8",
    "bgra8",
    "mono10",
    "mono12",
    "mono16",
    "rgb8_planar",
    "bayer_rg8",
    "bayer_gb8",
    "bayer_gr8",
    "bayer_bg8",
    "yuv422_8",
    "yuv422_8_uyvy",
]
"""In the order of their numbers in ``destseg.h``, from 1 on."""

MAXIMA = {"mono10": 1023, "mono12": 4095, "mono16": 65535}
"""The value of white in formats of 16 bit, unless another is declared."""


@dataclass(frozen=True)
class Layout:
    """How an array of a format looks.

    Attributes:
        shape: As an error shows it, such as ``(H, W, 4)``.
        ndim: Dimensions of one frame.
        channels: Where the colours lie: the axis and its length, or None.
    """

    shape: str
    ndim: int
    channels: tuple[int, int] | None = None


def layout_of(frame_format: FrameFormat) -> Layout:
    """Return how an array of a format looks.

    Raises:
        ShapeError: If there is no such format.
    """
    if frame_format not in get_args(FrameFormat):
        raise ShapeError(
            f"frame_format: {frame_format!r}, expected one of {', '.join(get_args(FrameFormat))}."
        )
    if frame_format in ("rgb8", "bgr8"):
        return Layout("(H, W, 3)", 3, (2, 3))
    if frame_format in ("rgba8", "bgra8"):
        return Layout("(H, W, 4)", 3, (2, 4))
    if frame_format == "rgb8_planar":
        return Layout("(3, H, W)", 3, (0, 3))
    if frame_format.startswith("yuv"):
        return Layout("(H, W, 2)", 3, (2, 2))
    return Layout("(H, W)", 2)


def to_rgb(
    frame: NDArray[Any], frame_format: FrameFormat, maximum: int | None = None
) -> NDArray[np.uint8]:
    """Bring a frame to RGB or grey.

    Args:
        frame: Of the format's shape, rows in any distance and direction: uint8 (H, W) for ``mono8``
            and Bayer; uint16 (H, W) for ``mono10``, ``mono12`` and ``mono16``, the value in the low
            bits; uint8 (H, W, 3) or (H, W, 4); (3, H, W) for ``rgb8_planar``; (H, W, 2) for YUV.
        frame_format: What the pixels are.
        maximum: The value of white, 1 to 65535, in the formats of 16 bit; greater ones are white.

    Returns:
        uint8 (H, W, 3) RGB, or (H, W) for the grey formats.

    Raises:
        ShapeError: If type, shape or size are not those of the format, or the maximum is none.
    """
    most = _maximum(frame_format, maximum)
    _check(frame, frame_format)
    if most is not None:
        return to_8_bit(frame, most)
    if frame_format.startswith("bayer"):
        return _from_bayer(frame, frame_format[6:8])
    return _CONVERSIONS[frame_format](frame)


def to_8_bit(values: NDArray[np.unsignedinteger[Any]], maximum: int) -> NDArray[np.uint8]:
    """Scale values of any shape so that ``maximum``, 1 to 65535, is 255; halves are rounded up."""
    levels = np.minimum(np.arange(1 << 16, dtype=np.uint32), maximum)
    table = ((levels * 255 + maximum // 2) // maximum).astype(np.uint8)
    scaled: NDArray[np.uint8] = table[values]
    return scaled


def _maximum(frame_format: FrameFormat, maximum: int | None) -> int | None:
    """Return the value of white in formats of 16 bit, else None."""
    usual = MAXIMA.get(frame_format)
    if maximum is None:
        return usual
    whole = isinstance(maximum, int | np.integer) and not isinstance(maximum, bool)
    if usual is None or not whole or not 1 <= maximum <= 65535:
        raise ShapeError(
            f"maximum: {maximum!r} for frame_format {frame_format!r}, expected 1 to 65535 for "
            f"{', '.join(MAXIMA)}, else none."
        )
    return int(maximum)


def _check(frame: NDArray[Any], frame_format: FrameFormat) -> None:
    layout = layout_of(frame_format)
    dtype = np.dtype(np.uint16 if frame_format in MAXIMA else np.uint8)
    if not isinstance(frame, np.ndarray) or isinstance(frame, np.ma.MaskedArray):
        raise ShapeError(
            f"frame: expected {dtype} {layout.shape} for frame_format {frame_format!r}, got "
            f"{type(frame).__name__}."
        )
    fits = frame.dtype == dtype and frame.ndim == layout.ndim and 0 not in frame.shape
    if fits and layout.channels is not None:
        fits = frame.shape[layout.channels[0]] == layout.channels[1]
    if not fits:
        raise ShapeError(
            f"frame: expected {dtype} {layout.shape} for frame_format {frame_format!r}, got "
            f"{frame.dtype} {frame.shape}."
        )
    if frame_format.startswith("bayer") and min(frame.shape) < 2:
        raise ShapeError(
            f"frame: {frame.shape[1]}x{frame.shape[0]} pixels of a Bayer format, expected at least "
            "2x2."
        )
    if frame_format.startswith("yuv") and frame.shape[1] % 2:
        raise ShapeError(
            f"frame: {frame.shape[1]}x{frame.shape[0]} pixels of YUV422, expected an even width."
        )


def _from_bayer(frame: NDArray[np.uint8], pattern: str) -> NDArray[np.uint8]:
    """Fill in the colours of a Bayer pattern, named by its first two pixels."""
    around = np.pad(frame.astype(np.uint16), 1, mode="reflect")
    north, south = around[:-2, 1:-1], around[2:, 1:-1]
    west, east = around[1:-1, :-2], around[1:-1, 2:]
    beside = (west + east + 1) >> 1
    upright = (north + south + 1) >> 1
    cross = (north + south + west + east + 2) >> 2
    corners = (around[:-2, :-2] + around[:-2, 2:] + around[2:, :-2] + around[2:, 2:] + 2) >> 2
    rgb = np.empty((*frame.shape, 3), np.uint8)
    red_row, red_column = {"rg": (0, 0), "gr": (0, 1), "gb": (1, 0), "bg": (1, 1)}[pattern]
    for row in (0, 1):
        for column in (0, 1):
            part = np.s_[row::2, column::2]
            own = 0 if row == red_row else 2  # the colour of this row beside green
            if (row == red_row) == (column == red_column):
                values = {own: frame, 1: cross, 2 - own: corners}
            else:
                values = {own: beside, 1: frame, 2 - own: upright}
            for channel, value in values.items():
                rgb[(*part, channel)] = value[part]
    return rgb


def _from_yuv(frame: NDArray[np.uint8], *, luma: int) -> NDArray[np.uint8]:
    """Bring (H, W, 2), whose luminance is the one or the other channel, to RGB."""
    y = frame[..., luma].astype(np.int32)
    chroma = frame[..., 1 - luma].astype(np.int32) - 128
    u, v = (np.repeat(chroma[:, i::2], 2, axis=1) for i in (0, 1))
    red = y + ((91881 * v + 32768) >> 16)
    green = y - ((22554 * u + 46802 * v + 32768) >> 16)
    blue = y + ((116130 * u + 32768) >> 16)
    return np.asarray(np.clip(np.stack([red, green, blue], axis=2), 0, 255), np.uint8)


_CONVERSIONS: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    "mono8": np.ascontiguousarray,
    "rgb8": np.ascontiguousarray,
    "rgba8": lambda frame: np.ascontiguousarray(frame[..., :3]),
    "bgr8": lambda frame: np.ascontiguousarray(frame[..., ::-1]),
    "bgra8": lambda frame: np.ascontiguousarray(frame[..., 2::-1]),
    "rgb8_planar": lambda frame: np.ascontiguousarray(frame.transpose(1, 2, 0)),
    "yuv422_8": lambda frame: _from_yuv(frame, luma=0),
    "yuv422_8_uyvy": lambda frame: _from_yuv(frame, luma=1),
}
"""What is neither of 16 bit nor Bayer."""
