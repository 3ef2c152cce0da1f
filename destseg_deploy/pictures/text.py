"""The words on a picture: a strip with the verdict, the scores and what the outlines mean.

The verdict comes first, then the normalised score, which means the same for every model: above 0.5
is NG. The raw score and its threshold follow in small letters. The verdict is NG if and only if
score > threshold, compared as float32, else OK. The colours of badges and outlines are here, beside
the words that explain them.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, TypeAlias, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from destseg_deploy.errors import ShapeError
from destseg_deploy.spec import BY_HAND, Threshold
from destseg_deploy.text import printable

RgbImage: TypeAlias = npt.NDArray[np.uint8]
Colour: TypeAlias = tuple[int, int, int]

SMALLEST_SIDE = 256  # pixels; less leaves no room for readable words

GROUND: Colour = (24, 26, 30)
TEXT: Colour = (226, 228, 232)
BADGE_TEXT: Colour = (255, 255, 255)
NG: Colour = (208, 44, 44)
OK: Colour = (30, 140, 70)
NEUTRAL: Colour = (152, 156, 164)
PREDICTED: Colour = (255, 255, 255)
GROUND_TRUTH: Colour = (0, 229, 255)

SMALL = 0.8  # size of the raw numbers beside the other words


class Label(NamedTuple):
    """One piece of the caption: words, small ones, a filled badge, or a line with its meaning."""

    text: str
    colour: Colour
    kind: Literal["text", "small", "badge", "line"] = "text"

    def font(self, size: float) -> ImageFont.FreeTypeFont:
        """Return the font of this piece in a row of a size."""
        return caption_font(size * SMALL if self.kind == "small" else size)

    def width(self, size: float) -> float:
        """Return the width in pixels without a gap."""
        extra = {"text": 0.0, "small": 0.0, "badge": 1.0, "line": 1.6}[self.kind]
        return self.font(size).getlength(self.text) + extra * size


def caption_rows(
    score: float, threshold: float | None, pixel_threshold: float | None, has_mask: bool
) -> list[list[Label]]:
    """Return the rows of the strip: the verdict, and what the outlines mean if there are any.

    Args:
        score: The image score.
        threshold: The image threshold; None for no verdict.
        pixel_threshold: Map values above it are outlined; None for no outline.
        has_mask: Whether the ground truth is drawn.

    Returns:
        One or two rows, read from left to right.

    Raises:
        ShapeError: If a number is not finite.
    """
    numbers = {"score": score, "threshold": threshold, "pixel_threshold": pixel_threshold}
    for name, value in numbers.items():
        if value is not None and not math.isfinite(value):
            raise ShapeError(
                f"{name}: expected a finite number, got {value}. Check the model's outputs with "
                "destseg-evaluate."
            )
    legend = []
    if pixel_threshold is not None:
        legend.append(Label(f"map > {float(pixel_threshold):.3g}", PREDICTED, "line"))
    if has_mask:
        legend.append(Label("ground truth", GROUND_TRUTH, "line"))
    verdict = _verdict_row(score, threshold)
    return [verdict, legend] if legend else [verdict]


def _verdict_row(score: float, threshold: float | None) -> list[Label]:
    """Return the first row; numbers that are compared get enough digits to look different."""
    if threshold is None:
        return [Label(f"score {float(score):.3f}", TEXT), Label("no threshold", NEUTRAL)]
    # As float32, like every score: np.float32(0.4) > 0.4 must not become true on the way here.
    left, right = float(np.float32(score)), float(np.float32(threshold))
    verdict = Label("NG", NG, "badge") if left > right else Label("OK", OK, "badge")
    normalized = Threshold(right, right, BY_HAND).normalized(left)
    raw = f"raw {_told_apart(left, right, 3)}, threshold {_told_apart(right, left, 3)}"
    return [
        verdict,
        Label(_told_apart(normalized, 0.5, 2), TEXT),
        Label(raw, NEUTRAL, "small"),
    ]


def _told_apart(value: float, other: float, digits: int) -> str:
    """Return a number with as many digits, up to 9, as tell it from another one."""
    while value != other and digits < 9 and f"{value:.{digits}f}" == f"{other:.{digits}f}":
        digits += 1
    return f"{value:.{digits}f}"


def add_strip(picture: RgbImage, rows: list[list[Label]]) -> RgbImage:
    """Return the picture with the rows on a dark strip under it.

    Args:
        picture: uint8 (H, W, 3) RGB; centred when narrower than 256 px.
        rows: One row at least, none of them empty. The font shrinks until all fit.

    Returns:
        uint8 (H', W', 3) RGB; H' and W' depend on H, W and the number of rows alone.
    """
    height, width = picture.shape[:2]
    canvas_width = max(width, SMALLEST_SIDE)
    size = max(12, round(min(math.sqrt(height * width), canvas_width) / 26))
    row_height = round(size * 1.75)  # from the nominal size: longer numbers do not move the strip
    strip_height = row_height * len(rows) + size // 2
    canvas = Image.new("RGB", (canvas_width, height + strip_height), GROUND)
    canvas.paste(Image.fromarray(picture), ((canvas_width - width) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    while size > 6 and max(_row_width(row, size) for row in rows) > canvas_width:
        size -= 1
    for index, row in enumerate(rows):
        middle = height + (strip_height - row_height * len(rows)) / 2 + row_height * (index + 0.5)
        _draw_row(draw, row, size, middle)
    return np.array(canvas, dtype=np.uint8)


def _row_width(row: list[Label], size: float) -> float:
    return sum(label.width(size) + size for label in row)


def _draw_row(draw: ImageDraw.ImageDraw, row: list[Label], size: float, middle: float) -> None:
    """Write labels from left to right about the line y = ``middle``."""
    left = size * 0.5
    for label in row:
        indent, colour = 0.0, label.colour
        if label.kind == "badge":
            box = (left, middle - size * 0.72, left + label.width(size), middle + size * 0.72)
            draw.rounded_rectangle(box, radius=size * 0.25, fill=label.colour)
            indent, colour = size * 0.5, BADGE_TEXT
        elif label.kind == "line":
            sample = (left, middle, left + size * 1.2, middle)
            draw.line(sample, fill=label.colour, width=max(2, round(size / 6)))
            indent, colour = size * 1.6, TEXT
        place = (left + indent, middle)
        draw.text(place, label.text, fill=colour, font=label.font(size), anchor="lm")
        left += label.width(size) + size


def caption_font(size: float) -> ImageFont.FreeTypeFont:
    """Return Pillow's own font, which is there on every machine."""
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))  # a size asks for FreeType


def shorten(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Return a text on one line, at most `width` pixels wide; what is too long loses its middle.

    A path says most at its two ends.
    """
    # Pillow measures single lines only, and draws no lone surrogates.
    text = printable(" ".join(text.split()))
    kept, short = len(text), text
    while kept > 0 and font.getlength(short) > width:
        kept -= 1
        head = kept // 3
        short = f"{text[:head]}...{text[len(text) - (kept - head) :]}"
    return short
