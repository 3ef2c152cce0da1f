"""RegionSpec: the part of a frame that is inspected. Outside of it the map is 0."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from destseg_deploy.errors import SpecError
from destseg_deploy.spec.limits import RESTORE
from destseg_deploy.spec.parts import is_number
from destseg_deploy.spec.tiling import Size

MAX_MASK_TEXT = 1 << 20
"""Characters of a mask in a spec, which has at most 4 MiB."""


@dataclass(frozen=True)
class RegionSpec:
    """A rectangle in the frame's pixels, or the pixels that a mask selects in it.

    Attributes:
        x: First column.
        y: First row.
        width: Columns.
        height: Rows.
        mask: PNG in base64, of the rectangle's size; 0 is outside. None for the whole rectangle.
    """

    x: int
    y: int
    width: int
    height: int
    mask: str | None = None

    def __str__(self) -> str:
        """Return ``x,y,width,height``, and that there is a mask."""
        rectangle = f"{self.x},{self.y},{self.width},{self.height}"
        return rectangle if self.mask is None else f"a mask in {rectangle}"

    @classmethod
    def named(cls, text: str) -> RegionSpec | Path:
        """Read ``x,y,width,height`` as a rectangle, and a text without commas as a mask's path.

        Raises:
            SpecError: If a text with a comma is no rectangle.
        """
        return cls.parse(text) if "," in text else Path(text)

    @classmethod
    def parse(cls, text: str) -> RegionSpec:
        """Read ``x,y,width,height``.

        Raises:
            SpecError: If the text is something else.
        """
        parts = text.split(",")
        if len(parts) != 4 or not all(map(is_number, parts)):
            raise SpecError(
                f"region {text!r}: expected X,Y,WIDTH,HEIGHT in pixels of the frame, such as "
                "100,50,640,480, or a mask in a PNG file"
            )
        x, y, width, height = map(int, parts)
        return cls(x, y, width, height)

    @classmethod
    def of_mask(cls, mask: NDArray[np.bool_]) -> RegionSpec:
        """Make a region from a mask.

        Args:
            mask: bool (height, width) of the frame, True inside.

        Raises:
            SpecError: If nothing is inside, or the mask is too large for a spec.
        """
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(rows):
            raise SpecError("mask: no pixel is inside, expected some that are not 0")
        y, x = int(rows[0]), int(columns[0])
        inside = mask[y : int(rows[-1]) + 1, x : int(columns[-1]) + 1]
        text = None if inside.all() else _encode(inside)
        return cls(x, y, inside.shape[1], inside.shape[0], text)

    @classmethod
    def read_mask(cls, path: Path, frame: Size) -> RegionSpec:
        """Read a mask from a PNG file of the frame's size; 0 is outside, all else inside.

        Raises:
            SpecError: If it is no PNG, of another size, or nothing is inside.
        """
        try:
            mask = _decode(path.read_bytes(), frame)
            return cls.of_mask(mask)
        except OSError as error:
            raise SpecError(f"{path}: {error.strerror or error}. Pass a PNG file.") from error
        except SpecError as error:
            raise SpecError(f"{path}: {error}") from None

    def mask_at(self, frame: Size, size: Size) -> NDArray[np.bool_]:
        """Return which pixels of a scaled frame are inside.

        A pixel is inside where the pixel of the frame under its centre is.

        Args:
            frame: Height and width of the frame.
            size: Height and width of the scaled frame.

        Returns:
            bool (height, width).

        Raises:
            SpecError: If the mask is not what it should be.
        """
        rows, columns = (
            (2 * np.arange(new) + 1) * old // (2 * new)
            for new, old in zip(size, frame, strict=True)
        )
        rows, columns = rows - self.y, columns - self.x
        inside_rows = (rows >= 0) & (rows < self.height)
        inside_columns = (columns >= 0) & (columns < self.width)
        result = np.outer(inside_rows, inside_columns)
        if self.mask is not None:
            mask = self._decoded()
            result[result] = mask[np.ix_(rows[inside_rows], columns[inside_columns])].ravel()
        return result

    def check(self, frame: Size, size: Size, top_k: int, where: str) -> None:
        """Refuse a region that is not in the frame, or too small for a score.

        Args:
            frame: Height and width of the frame.
            size: Height and width of the map that the score is taken from.
            top_k: Pixels that the score averages.
            where: The file and the entry, for the error.

        Raises:
            SpecError: Naming what is wrong.
        """
        for first, start, extent, length, side in (
            ("x", self.x, "width", self.width, frame[1]),
            ("y", self.y, "height", self.height, frame[0]),
        ):
            if start < 0 or length < 1 or start + length > side:
                raise SpecError(
                    f"{where}: {first} is {start} and {extent} {length}, expected a part of 0 to "
                    f"{side}, which the frame has. Choose a region inside of it."
                )
        try:
            inside = int(self.mask_at(frame, size).sum())
        except SpecError as error:
            raise SpecError(f"{where}: {error}") from None
        if inside < top_k:
            raise SpecError(
                f"{where}: it holds {inside} pixels of the map of {size[1]}x{size[0]}, expected at "
                f"least {top_k}, whose mean is the score. Choose a larger region."
            )

    def _decoded(self) -> NDArray[np.bool_]:
        try:
            content = base64.b64decode((self.mask or "").encode(), validate=True)
        except (binascii.Error, UnicodeError):
            raise SpecError(f"mask is not base64. {RESTORE}") from None
        return _decode(content, (self.height, self.width))


def _encode(mask: NDArray[np.bool_]) -> str:
    content = BytesIO()
    Image.fromarray(mask).save(content, format="PNG", optimize=True)
    text = base64.b64encode(content.getvalue()).decode()
    if len(text) > MAX_MASK_TEXT:
        raise SpecError(
            f"mask: {len(text)} characters as PNG in base64, expected at most {MAX_MASK_TEXT}. "
            "Smooth its border, or use a rectangle."
        )
    return text


def _decode(content: bytes, size: Size) -> NDArray[np.bool_]:
    """Return where a PNG is not 0; its size is compared before its pixels are unpacked."""
    try:
        with Image.open(BytesIO(content), formats=["PNG"]) as image:
            found = image.size[1], image.size[0]
            if found != size:
                raise SpecError(
                    f"mask has {found[1]}x{found[0]} pixels, expected {size[1]}x{size[0]}. Pass a "
                    "mask of that size."
                )
            # Pillow's bits become bools whose bytes are 255, which OpenVINO does not take for true.
            mode = {"P": "RGB", "1": "L"}.get(image.mode, image.mode)
            bands = np.asarray(image.convert(mode))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise SpecError(f"mask is not a PNG{reason}. Pass a PNG file.") from None
    if bands.ndim == 2:
        return bands.astype(bool)
    colours = 1 if bands.shape[2] == 2 else 3  # without an opacity, 255 where a pixel is black
    return np.asarray(bands[..., :colours].any(axis=2), bool)
