"""Mask files: where the defect is.

Tools write masks in many ways, and the same number means different things in them. Read are:

- labels: any value above 0 is a defect, be it 1, 2, 100 or 255;
- grey edges: a mask that was drawn or resized with antialiasing, from 0 to 255 with values between
  on the edges alone; cut at one half, as in the reference;
- palettes: index 0 is the background, unless the palette is a scale of greys with black;
- alpha: the opaque part is the defect where only alpha varies;
- colours: black is the background, a few other colours are labels.

What fits none of these is refused with the values found.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from destseg_deploy.data.decoding import Pixels, decode, open_picture
from destseg_deploy.data.resize import resize_plane
from destseg_deploy.errors import DataError, DataWarning

MOST_LABELS = 32
"""Different values or colours that a mask of thin labels may have; larger ones show by area."""

Plane = NDArray[np.uint16]


def read_mask(path: Path, shape: tuple[int, int], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Read a defect mask and resize it to the size at which maps are evaluated.

    It is resized with the kernel of ``data.resize`` and cut at one half, as in the reference. Warns
    where more than half of the image is a defect, because the mask may be inverted, and where none
    of it is.

    Args:
        path: A mask of one of the kinds above.
        shape: Height and width of the image that it belongs to.
        size: Height and width of the result.

    Returns:
        bool (height, width).

    Raises:
        DataError: If it cannot be read, its values do not tell the defect, or its size is not the
            image's.
    """
    with open_picture(path) as image:
        values, lossy = _values(image, path), image.format in ("JPEG", "MPO")
    if values.shape != shape:
        raise DataError(
            f"{path}: the mask is {values.shape[1]}x{values.shape[0]} pixels, its image "
            f"{shape[1]}x{shape[0]}. Expected the same size; export the mask again."
        )
    coverage = _lossy_coverage(values, path) if lossy else _coverage(values, path)
    if remark := _odd_share(float((coverage >= 0.5).mean())):
        warnings.warn(f"{path}: {remark}", DataWarning, stacklevel=1)
    return resize_plane(coverage, size) >= 0.5


def _odd_share(share: float) -> str:
    """Say what is odd about the share of an image that its mask marks, in [0, 1]; "" if nothing."""
    if share == 0:
        return (
            "this mask marks nothing, and its image is of a defect. Draw the mask, or move the "
            "image to the good parts."
        )
    if share > 0.5:
        return (
            f"{share:.0%} of the image is marked as a defect. If the mask is inverted, swap its "
            "values: 0 is the part, all above is the defect."
        )
    return ""


def _values(image: Image.Image, path: Path) -> Plane:
    """Return one value per pixel, (H, W): 0 for the background."""
    if image.mode == "P":
        decode(image, path)  # for its checks
        return _palette_values(image)
    pixels = decode(image, path)
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        colours, alpha = pixels[:, :, :-1], pixels[:, :, -1]
        if alpha.min() != alpha.max():
            return _alpha_values(colours, alpha, path)
        pixels = colours
    if pixels.ndim == 3 and (pixels != pixels[:, :, :1]).any():
        return _colour_values(pixels, path)
    return _as_plane(pixels if pixels.ndim == 2 else pixels[:, :, 0])


def _palette_values(image: Image.Image) -> Plane:
    indices = np.asarray(image)
    used = np.unique(indices)
    palette = np.array(image.getpalette() or [], np.uint8).reshape(-1, 3)
    if used[-1] >= len(palette):
        return _as_plane(indices)
    colours = palette[used]
    grey = (colours == colours[:, :1]).all() and len(np.unique(colours[:, 0])) == len(used)
    if grey and colours.min() == 0:
        return _as_plane(palette[indices][:, :, 0])
    return (indices > 0).astype(np.uint16)


def _alpha_values(colours: Pixels, alpha: Pixels, path: Path) -> Plane:
    opaque = colours[alpha > 0]
    same = ((colours > 0).any(axis=2) == (alpha > 0)).all()
    if same or (opaque == opaque[0]).all():
        return _as_plane(alpha)
    raise _untold(path, "both its colours and its alpha vary", "Save it without alpha.")


def _colour_values(pixels: Pixels, path: Path) -> Plane:
    wide = pixels.astype(np.int64)
    codes = wide[:, :, 0] << 32 | wide[:, :, 1] << 16 | wide[:, :, 2]
    found = np.unique(codes)
    shown = [str((int(c >> 32), int(c >> 16 & 0xFFFF), int(c & 0xFFFF))) for c in found[:3]]
    if found[0] != 0 or len(found) > MOST_LABELS or _is_grey_edge(_as_plane(pixels.max(axis=2))):
        raise _untold(
            path,
            f"{len(found)} colours, such as {', '.join(shown)}",
            "Save it as grey: 0 for the part, 255 for the defect.",
        )
    return (codes > 0).astype(np.uint16)


def _as_plane(values: Pixels) -> Plane:
    """Return values as uint16; those of an 8-bit mask that was widened to 16 bits, as 8 bits."""
    plane = values.astype(np.uint16)
    return plane // np.uint16(257) if plane.max() > 255 and not (plane % 257).any() else plane


def _coverage(values: Plane, path: Path) -> NDArray[np.float32]:
    """Return how much of each pixel is defective, in [0, 1]."""
    found = np.unique(values)
    if found[0] > 0 and len(found) > 1:
        raise _untold(path, f"{_list(found)} and no 0", "Save it with 0 for the part.")
    if _is_grey_edge(values):
        return values.astype(np.float32) / np.float32(_top(values))
    if len(found) <= MOST_LABELS or _has_areas(values):
        return (values > 0).astype(np.float32)
    raise _untold(path, _list(found), "Save it with 0 for the part and 255 for the defect.")


def _lossy_coverage(values: Plane, path: Path) -> NDArray[np.float32]:
    """Return the same of a JPEG, whose values are off by a few grey levels near edges."""
    clear = (values <= 32) | (values >= 223)
    if values.max() == 0 or (values.max() >= 223 and clear.mean() >= 0.95):
        return values.astype(np.float32) / np.float32(255)
    raise _untold(
        path, f"{_list(np.unique(values))} in a JPEG, which changes labels", "Save it as PNG."
    )


def _is_grey_edge(values: Plane) -> bool:
    """Tell whether values between black and white are the edges of a drawing.

    Edges are the smaller part of a mask, and have darker and brighter pixels beside them; a label
    has its own value, 0, and rarely a third one. Fewer than three values between are no evidence:
    they are labels.
    """
    between = (values > 0) & (values < values.max())
    if values.max() < 0.98 * _top(values) or len(np.unique(values[between])) < 3:
        return False
    if between.mean() > 0.5:
        return False
    window = np.ones((5, 5), np.uint8)
    darker, brighter = cv2.erode(values, window) < values, cv2.dilate(values, window) > values
    return bool((darker & brighter)[between].mean() >= 0.8)


def _has_areas(values: Plane) -> bool:
    """Tell whether most pixels above 0 lie amid pixels of the same value, as labels do."""
    window = np.ones((3, 3), np.uint8)
    flat = cv2.erode(values, window) == cv2.dilate(values, window)
    return bool(flat[values > 0].mean() >= 0.5)


def _top(values: Plane) -> int:
    return 255 if values.max() <= 255 else 65535


def _list(found: Plane) -> str:
    few = [str(value) for value in (found if len(found) <= 6 else found[:4])]
    return ", ".join(few) + ("" if len(found) <= 6 else f", ... {found[-1]} ({len(found)} values)")


def _untold(path: Path, found: str, action: str) -> DataError:
    return DataError(
        f"{path}: the mask has {found}. Expected labels (0 and a few others), or black and white "
        f"with grey edges. {action}"
    )
