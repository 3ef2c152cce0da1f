"""Opening picture files: PNG, JPEG, BMP and TIFF, told by their content, within stated limits.

A decoder is a program that strangers feed. So a file's first bytes choose one of four decoders
(Pillow would start Ghostscript for an EPS that is called ``frame.png``), only regular files are
opened, sizes are checked before pixels are decoded, and every failure of a decoder is a DataError.
What would change the picture without a word (several pages, an orientation tag, floats, more than
16 bits) is refused by name.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import jpeg_factory
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from destseg_deploy.errors import DataError
from destseg_deploy.memory import refuse_shortage
from destseg_deploy.spec import is_number

Pixels = NDArray[np.uint8] | NDArray[np.uint16]

EXPECTED = "PNG, JPEG, BMP or TIFF"
LARGEST_SIDE = 65_536
"""In pixels; a spec allows no larger input."""

MEMORY = "DESTSEG_MAX_IMAGE_MIB"
"""Environment variable: the most memory that the RGB pixels of one file may take, in MiB."""

DEFAULT_MEMORY = 1024

OPENERS: dict[bytes, Callable[[IO[bytes], str], Image.Image]] = {
    b"\x89PNG\r\n\x1a\n": PngImageFile,
    b"\xff\xd8\xff": jpeg_factory,
    b"BM": BmpImageFile,
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0"), TiffImageFile),
}
"""First bytes -> decoder."""

OTHERS = {
    b"%!PS": "PostScript",
    b"\xc5\xd0\xd3\xc6": "PostScript",
    b"%PDF": "PDF",
    b"GIF8": "GIF",
    b"RIFF": "WebP",
    b"\0\0\0\x0cjP": "JPEG 2000",
    b"MM\0+": "a BigTIFF with the high byte first, which Pillow does not read",
    b"version https://git-lfs": "a pointer of Git LFS (git lfs pull brings the picture)",
}
"""First bytes of what is often found under the name of a picture -> what it is."""

TIFF_BITS = (1, 2, 4, 8, 12, 16)
"""Bits of a TIFF's values that Pillow reads."""

BITS, PHOTOMETRIC, ORIENTATION, SAMPLE_FORMAT = 258, 262, 274, 339  # tags of TIFF and EXIF


def check_regular(path: Path) -> None:
    """Refuse what is no regular file: reading a pipe would wait for ever.

    Raises:
        DataError: If it is not there, or is a folder, a pipe, a socket or a device.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        lost = f"a link to {os.readlink(path)}, which is not there" if path.is_symlink() else ""
        raise DataError(f"{path}: {lost or 'no such file'}. Expected an image.") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({_reason(error)}). Expected an image.") from error
    if stat.S_ISDIR(mode):
        raise DataError(f"{path}: a folder, expected an image file. Name a file in it.")
    if not stat.S_ISREG(mode):
        kind = "a pipe" if stat.S_ISFIFO(mode) else "a device or a socket"
        raise DataError(f"{path}: {kind}, expected an image file. Write the image to a file first.")


@contextmanager
def open_picture(path: Path) -> Iterator[Image.Image]:
    """Open a file and check all that its header says; Pillow decodes it when pixels are asked for.

    Raises:
        DataError: If the file is missing, damaged, of another format, too large, or a picture whose
            meaning cannot be told; also for whatever the decoder raises within the block.
    """
    check_regular(path)
    with guard_decoder(path), path.open("rb") as file, _opened(file, path) as image:
        yield image


@contextmanager
def open_content(content: bytes, name: str) -> Iterator[Image.Image]:
    """Do what ``open_picture`` does for the content of a file; no disk is touched.

    Args:
        content: All bytes of the file.
        name: What errors call it.

    Raises:
        DataError: As ``open_picture``.
    """
    with guard_decoder(name), _opened(BytesIO(content), name) as image:
        yield image


@contextmanager
def _opened(file: IO[bytes], name: Path | str) -> Iterator[Image.Image]:
    opener = _opener(file.read(32), name)
    file.seek(0)
    if opener is TiffImageFile:
        _check_tiff(file, name)
    with opener(file, str(name)) as image:
        check_size(image, name)
        yield image


@contextmanager
def guard_decoder(name: Path | str) -> Iterator[None]:
    """Turn whatever a decoder raises on damage, which is of every kind, into a DataError."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        refuse_shortage(error, str(name))
        raise DataError(
            f"{name}: the image cannot be read ({_reason(error)}). Replace or remove it."
        ) from error


def decode(image: Image.Image, name: Path | str, content: bytes | None = None) -> Pixels:
    """Return the pixels of an open picture.

    Args:
        image: From ``open_picture`` or ``open_content``, or a caller's.
        name: What errors call it; the file's path where the picture comes from ``open_picture``.
        content: All bytes of the file, where the picture comes from ``open_content``.

    Returns:
        uint8, or uint16 as the file holds them: (H, W) grey, (H, W, 2) grey and alpha, (H, W, 3)
        RGB, (H, W, 4) RGBA.

    Raises:
        DataError: If it has several pages or an orientation tag, or its pixels are floats or of
            more than 16 bits.
    """
    _check_pages(image, name)
    # Before the next check: it decodes a PNG, whose tags may lie behind the pixels.
    deep = _holds_deep_colours(image)
    _check_orientation(image, name)
    if deep:
        return _decode_deep(image, name, content)
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "32-bit floats"
        raise _unusual(name, kind)
    if image.mode in ("L", "LA", "RGB", "RGBA"):
        return np.asarray(image)
    if image.mode == "1":
        return np.asarray(image.convert("L"))
    return np.asarray(image.convert("RGBA" if image.mode in ("PA", "RGBa", "La") else "RGB"))


def stated_depth(image: Image.Image) -> int | None:
    """Return the bits per pixel where the file itself states them, as a 12-bit TIFF does."""
    return 12 if _raw_mode(image) == "I;12" else None


def check_size(image: Image.Image, name: Path | str) -> None:
    """Refuse a picture that is too large, before a byte of it is decoded.

    Raises:
        DataError: If a side is beyond ``LARGEST_SIDE``, or the pixels beyond the memory limit.
    """
    width, height = image.size
    if not 1 <= min(image.size) <= max(image.size) <= LARGEST_SIDE:
        raise DataError(
            f"{name}: {width}x{height} pixels, expected 1 to {LARGEST_SIDE} a side. Cut it."
        )
    each = 6 if ";16" in f"{_raw_mode(image)};{image.mode}" else 3
    needed, limit = -(-width * height * each // 2**20), _memory_limit()
    if needed > limit:
        raise DataError(
            f"{name}: {width}x{height} pixels take {needed} MiB, the limit for an image is {limit} "
            f"MiB. Scale it down, or raise the limit with the environment variable {MEMORY}."
        )


def _memory_limit() -> int:
    text = os.environ.get(MEMORY, str(DEFAULT_MEMORY))
    if not is_number(text) or int(text) < 1:
        raise DataError(f"{MEMORY}={text}: expected a whole number of MiB, such as 1024.")
    return int(text)


def _opener(head: bytes, path: Path | str) -> Callable[[IO[bytes], str], Image.Image]:
    for magic, opener in OPENERS.items():
        if head.startswith(magic):
            return opener
    if not head:
        raise DataError(f"{path}: an empty file, expected {EXPECTED}. Replace or remove it.")
    other = next((name for magic, name in OTHERS.items() if head.startswith(magic)), None)
    if head[4:8] == b"ftyp":
        other = "HEIF, AVIF or a film"
    found = f"its content is {other}" if other else f"not an image, it begins with {head[:8]!r}"
    raise DataError(f"{path}: {found}. Expected {EXPECTED}. Convert or remove it.")


def _check_tiff(file: IO[bytes], path: Path | str) -> None:
    """Name what Pillow cannot read, or would read without its meaning."""
    head = file.read(8)
    head += file.read(8) if head[2:3] == b"+" else b""  # BigTIFF
    tags = ImageFileDirectory_v2(head)
    file.seek(tags.next)
    tags.load(file)
    file.seek(0)
    bits = max(np.atleast_1d(tags.get(BITS, 1)))
    kinds = set(np.atleast_1d(tags.get(SAMPLE_FORMAT, 1)).tolist())
    if not kinds <= {1, 4}:
        raise _unusual(
            path, f"{bits}-bit {'floats' if 3 in kinds else 'signed or complex numbers'}"
        )
    if bits not in TIFF_BITS:
        raise _unusual(path, f"{bits}-bit integers")
    if bits > 8 and tags.get(PHOTOMETRIC) == 0:
        # Pillow inverts such pixels at 8 bits and does not at 16.
        raise _unusual(path, f"{bits} bits with 0 as white")


def _unusual(name: Path | str, found: str) -> DataError:
    return DataError(
        f"{name}: pixels are {found}, expected unsigned integers of 8 or 16 bits. Convert it."
    )


def _check_pages(image: Image.Image, name: Path | str) -> None:
    pages = getattr(image, "n_frames", 1)
    if pages > 1:
        raise DataError(
            f"{name}: {pages} pages, expected one image in a file. Save each page as a file."
        )


def _check_orientation(image: Image.Image, name: Path | str) -> None:
    """Refuse a picture that viewers show turned.

    A camera's raw frames, as the C++ library gets them, have no such tag. A mask that was drawn in
    a viewer lies as the viewer showed the picture, and pixels read without the tag lie otherwise.
    """
    tags = getattr(image, "tag_v2", None)
    # From a TIFF's own tags: once it is decoded, Pillow has turned it and deleted the tag.
    found = image.getexif().get(ORIENTATION, 1) if tags is None else tags.get(ORIENTATION, 1)
    if found in range(2, 9):
        raise DataError(
            f"{name}: orientation tag {found}, so that viewers turn or mirror it. Expected an "
            "upright image without the tag. Save it upright, as 'mogrify -auto-orient' does, and "
            "check that its mask lies alike."
        )


def _raw_mode(image: Image.Image) -> str:
    """Return how the file holds its pixels, such as ``RGB;16B``; empty once they are decoded."""
    tiles: Any = getattr(image, "tile", None)
    if not tiles:
        return ""
    arguments = tiles[0][3]
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _holds_deep_colours(image: Image.Image) -> bool:
    """Tell whether the file has 16 bits per colour, of which Pillow would keep the high byte."""
    return ";16" in _raw_mode(image) and not image.mode.startswith("I")


def _decode_deep(image: Image.Image, name: Path | str, content: bytes | None) -> Pixels:
    """Decode 16-bit colours with OpenCV."""
    if image.mode not in ("RGB", "RGBA", "RGBX", "LA"):
        raise _unusual(name, f"16-bit {image.mode}")
    if content is None:
        if not isinstance(name, Path):
            raise DataError(f"{name}: 16 bits per colour, of which Pillow keeps 8. Pass its path.")
        content = name.read_bytes()
    # imdecode instead of imread: imread cannot open paths with non-ASCII letters on Windows.
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16 or pixels.shape[:2] != image.size[::-1]:
        raise DataError(f"{name}: the image is damaged. Replace or remove the file.")
    order = [2, 1, 0, 3][: 1 if pixels.ndim == 2 else pixels.shape[2]]  # BGR to RGB
    return np.asarray(pixels if pixels.ndim == 2 else pixels[:, :, order], np.uint16)


def _reason(error: Exception) -> str:
    """Return an error's own words in one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
