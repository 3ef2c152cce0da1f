"""Image and mask files: every format reads to the pixels that were written, or says why not."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from destseg_deploy.data.finding import list_images
from destseg_deploy.data.images import (
    assume_bit_depth,
    read_image,
    read_images,
)
from destseg_deploy.data.pixel_formats import FrameFormat, to_rgb
from destseg_deploy.data.resize import resize_image
from destseg_deploy.errors import DataError, DataWarning

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (13, 18, 3), dtype=np.uint8)
GREY = RGB[:, :, 0].copy()
ALPHA = RNG.integers(0, 256, (13, 18), dtype=np.uint8)
RGB16 = RNG.integers(0, 1 << 16, (13, 18, 3), dtype=np.uint16)
GREY16 = RGB16[:, :, 0].copy()
BITS = GREY > 127

Writer = Callable[[Path], object]


def three(grey: NDArray[np.generic]) -> NDArray[np.generic]:
    return np.repeat(grey[:, :, None], 3, axis=2)


def scaled(pixels: NDArray[np.uint16], bits: int) -> NDArray[np.float64]:
    """Return what 8 bits hold of a camera's pixels; halves are rounded up."""
    return np.floor(pixels / (2**bits - 1) * 255 + 0.5)


def palette() -> Image.Image:
    image = Image.new("P", (18, 13))
    image.putdata((GREY % 4).ravel().tolist())
    image.putpalette([200, 0, 10, 0, 100, 20, 7, 8, 9, 255, 254, 253])
    return image


def pillow(pixels: NDArray[np.generic], mode: str | None = None) -> Writer:
    image = Image.fromarray(pixels)
    return (image.convert(mode) if mode else image).save


def opencv(pixels: NDArray[np.generic]) -> Writer:
    """Write with OpenCV, which takes BGR: channels are swapped, so that the file holds RGB."""
    swapped: Any = pixels if pixels.ndim == 2 else pixels[:, :, [2, 1, 0, 3][: pixels.shape[2]]]
    return lambda path: cv2.imwrite(str(path), swapped)


COLOURS = np.array([[200, 0, 10], [0, 100, 20], [7, 8, 9], [255, 254, 253]], np.uint8)
RGBA, RGBA16 = np.dstack([RGB, ALPHA]), np.dstack([RGB16, GREY16])
EXACT: dict[str, tuple[str, Writer, NDArray[np.generic]]] = {
    "png": (".png", pillow(RGB), RGB),
    "bmp": (".bmp", pillow(RGB), RGB),
    "tif": (".tif", pillow(RGB), RGB),
    "tiff": (".tiff", pillow(RGB), RGB),
    "upper case": (".PNG", pillow(RGB), RGB),
    "grey png": (".png", pillow(GREY), three(GREY)),
    "grey bmp": (".bmp", pillow(GREY), three(GREY)),
    "grey tif": (".tif", pillow(GREY), three(GREY)),
    "rgba png": (".png", pillow(RGBA), RGB),
    "rgba tif": (".tif", pillow(RGBA), RGB),
    "grey and alpha": (".png", pillow(np.dstack([GREY, ALPHA])), three(GREY)),
    "palette png": (".png", lambda path: palette().save(path), COLOURS[GREY % 4]),
    "palette bmp": (".bmp", lambda path: palette().save(path), COLOURS[GREY % 4]),
    "1 bit png": (".png", pillow(BITS), three(BITS * np.uint8(255))),
    "1 bit tif": (".tif", pillow(BITS), three(BITS * np.uint8(255))),
    "16 bit grey png": (".png", pillow(GREY16), three(scaled(GREY16, 16))),
    "16 bit grey tif": (".tif", pillow(GREY16), three(scaled(GREY16, 16))),
    "16 bit big-endian tif": (".tif", pillow(GREY16.astype(">u2")), three(scaled(GREY16, 16))),
    "16 bit grey tif by cv2": (".tif", opencv(GREY16), three(scaled(GREY16, 16))),
    "16 bit colour tif": (".tif", opencv(RGB16), scaled(RGB16, 16)),
    "16 bit colour png": (".png", opencv(RGB16), scaled(RGB16, 16)),
    "16 bit rgba tif": (".tif", opencv(RGBA16), scaled(RGB16, 16)),
    "16 bit rgba png": (".png", opencv(RGBA16), scaled(RGB16, 16)),
}


# ---------------------------------------------------------------------------- formats


@pytest.mark.parametrize("name", EXACT)
def test_a_lossless_file_reads_to_its_pixels(name: str, tmp_path: Path) -> None:
    suffix, write, expected = EXACT[name]
    path = tmp_path / f"image{suffix}"
    write(path)
    image = read_image(path)
    assert image.dtype == np.uint8
    assert image.flags["C_CONTIGUOUS"]
    assert image.shape == (13, 18, 3)
    assert (image == expected).all()


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg"])
@pytest.mark.parametrize("grey", [False, True])
def test_jpeg_reads_to_about_its_pixels(suffix: str, grey: bool, tmp_path: Path) -> None:
    smooth = cv2.resize(RGB[:3, :4], (64, 48), interpolation=cv2.INTER_CUBIC)
    pixels = np.asarray(smooth[:, :, 0] if grey else smooth, np.uint8)
    path = tmp_path / f"image{suffix}"
    Image.fromarray(pixels).save(path, quality=95)
    expected = three(pixels) if grey else pixels
    image = read_image(path).astype(int)
    assert image.shape == (48, 64, 3)
    assert np.abs(image - expected).mean() < 5
    if not grey:
        assert np.abs(image - expected[:, :, ::-1]).mean() > 20  # BGR would be noticed


def test_cmyk_reads_as_rgb(tmp_path: Path) -> None:
    red = Image.new("CMYK", (4, 4), (0, 255, 255, 0))
    red.save(tmp_path / "red.tif")
    assert (read_image(tmp_path / "red.tif") == (255, 0, 0)).all()


# ---------------------------------------------------------------------------- 16 bits


def deep(path: Path, pixels: NDArray[np.uint16]) -> Path:
    opencv(pixels)(path)
    return path


DARK = (GREY16 >> 8).astype(np.uint16) + 3
"""Values up to 258: not the multiples of 257 that a widened picture has."""


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("pixels", [GREY16, RGB16, RGBA16])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_cameras_bits_are_scaled_by_the_stated_depth(
    bits: int, pixels: NDArray[np.uint16], suffix: str, tmp_path: Path
) -> None:
    path = deep(tmp_path / f"camera{suffix}", pixels >> (16 - bits))
    expected = three(pixels) if pixels.ndim == 2 else pixels[:, :, :3]
    stored = expected >> (16 - bits)
    assert (read_image(path, bits) == scaled(stored, bits)).all()
    with assume_bit_depth(bits):
        assert (read_image(path) == scaled(stored, bits)).all()
    assert (read_image(path, 16) == scaled(stored, 16)).all()
    with pytest.raises(DataError) as error:
        read_image(path)
    largest = stored.max()
    assert f"largest value is {largest}: pixels of a {bits}-bit camera" in str(error.value)
    assert f"--bit-depth {bits} or --bit-depth 16" in str(error.value)


@pytest.mark.parametrize(
    ("bits", "frame_format", "maximum"),
    [(10, "mono10", None), (12, "mono12", None), (14, "mono16", 16383), (16, "mono16", None)],
)
def test_a_file_has_the_pixels_of_the_frame_that_a_line_gives(
    bits: int, frame_format: FrameFormat, maximum: int | None, tmp_path: Path
) -> None:
    frame = np.arange(2**bits, dtype=np.uint16).reshape(32, -1)
    read = read_image(deep(tmp_path / "camera.png", frame), bits)
    assert (read == three(to_rgb(frame, frame_format, maximum))).all()
    assert (read != three(frame >> (bits - 8))).any()  # the control: the upper 8 bits are others


def test_a_depth_that_is_too_small_is_refused(tmp_path: Path) -> None:
    path = deep(tmp_path / "camera.png", GREY16 >> 4)
    largest = GREY16.max() >> 4
    with pytest.raises(DataError, match=f"{largest}, expected at most 1023 with a bit depth of 10"):
        read_image(path, 10)


@pytest.mark.parametrize(
    ("pixels", "told"),
    [
        (GREY16, True),
        (np.full((4, 4), 16384, np.uint16), True),
        (np.full((4, 4), 16383, np.uint16), False),
        (np.zeros((4, 4), np.uint16), True),
        (np.full((4, 4), 1, np.uint16), False),
        (np.full((4, 4), 255, np.uint16), False),
        ((GREY16 >> 10) * np.uint16(257), True),  # 8 bits widened to 16, and dark
        ((GREY16 >> 10) * np.uint16(256), False),
        (DARK, False),
    ],
)
def test_a_16_bit_file_is_read_only_where_its_values_tell_the_depth(
    pixels: NDArray[np.uint16], told: bool, tmp_path: Path
) -> None:
    path = deep(tmp_path / "frame.png", pixels)
    if told:
        assert (read_image(path) == scaled(three(pixels), 16)).all()
        return
    with pytest.raises(DataError, match=r"a dark picture of 16 bits\. State which: --bit-depth"):
        read_image(path)
    assert (read_image(path, 16) == scaled(three(pixels), 16)).all()


@pytest.mark.parametrize("bit_depth", [None, 10, 16])
def test_8_bit_files_need_no_depth(bit_depth: int | None, tmp_path: Path) -> None:
    pillow(RGB)(tmp_path / "frame.png")
    assert (read_image(tmp_path / "frame.png", bit_depth) == RGB).all()


@pytest.mark.parametrize("bit_depth", [0, 7, 9, 32, -12])
def test_a_depth_that_no_camera_has_is_refused(bit_depth: int, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"bit_depth {bit_depth}: expected one of 8, 10, 12"):
        read_image(deep(tmp_path / "frame.png", GREY16), bit_depth)
    with pytest.raises(DataError, match=f"bit_depth {bit_depth}"), assume_bit_depth(bit_depth):
        pass


def test_an_assumed_depth_ends_with_its_block(tmp_path: Path) -> None:
    path = deep(tmp_path / "camera.png", GREY16 >> 4)
    with assume_bit_depth(12), assume_bit_depth(None), pytest.raises(DataError):
        read_image(path)
    with pytest.raises(RuntimeError), assume_bit_depth(12):
        raise RuntimeError
    with pytest.raises(DataError):
        read_image(path)


def test_a_12_bit_tiff_states_its_depth(tmp_path: Path) -> None:
    """Two pixels in three bytes; the tag says 12 bits, so nobody has to."""
    data = bytearray()
    Image.fromarray(np.zeros((2, 4), np.uint16)).save(buffer := io.BytesIO(), "TIFF")
    data += buffer.getvalue()
    at = data.index((258).to_bytes(2, "little") + b"\x03\0") + 8
    data[at : at + 2] = (12).to_bytes(2, "little")
    strip = data.index((273).to_bytes(2, "little")) + 8
    start = int.from_bytes(data[strip : strip + 4], "little")
    data[start : start + 3] = bytes([0xFF, 0xF0, 0x10])  # 4095, 16
    (tmp_path / "packed.tif").write_bytes(data)
    assert read_image(tmp_path / "packed.tif")[0, :3, 0].tolist() == [255, 1, 0]


@pytest.mark.parametrize("name", ["grey10in16.png", "grey12in16.png", "rgb12in16.png"])
def test_the_inputs_that_failed_read_as_their_8_bit_picture(name: str, shared: Path) -> None:
    path = shared / "faults" / name
    with pytest.raises(DataError, match="State which"):
        read_image(path)
    assert abs(read_image(path, int(name[-10:-8])).mean() - 67.6) < 0.5


# ---------------------------------------------------------------------------- several images


@pytest.mark.parametrize("size", [(64, 64), (48, 96)])
def test_images_are_read_in_order_and_resized(category: Path, size: tuple[int, int]) -> None:
    paths = list_images(category / "train/good")
    images = read_images(paths, size)
    assert images.shape == (len(paths), *size, 3)
    assert images.dtype == np.uint8
    for path, image in zip(paths, images, strict=True):
        assert np.array_equal(image, resize_image(read_image(path), size))
    assert len({image.tobytes() for image in images}) == len(paths)


def test_a_squeeze_is_remarked_once_for_many_images(tmp_path: Path) -> None:
    paths = []
    for i, size in enumerate(((20, 500), (500, 20), (30, 600))):
        paths.append(tmp_path / f"{i}.png")
        pillow(np.full(size, 100 + i, np.uint8))(paths[-1])
    with pytest.warns(DataWarning, match="images of 500x20 pixels are resized to 64x64") as seen:
        read_images(paths, (64, 64))
    assert len(seen) == 1
    assert "squeezed 25 times as much" in str(seen[0].message)
    read_images(paths[:1], (20, 600))  # not squeezed, and so not remarked


def test_a_damaged_image_among_several_is_refused(category: Path, tmp_path: Path) -> None:
    paths = list_images(category / "train/good")
    (tmp_path / "bad.png").write_bytes(paths[0].read_bytes()[:100])
    with pytest.raises(DataError, match=r"bad\.png"):
        read_images([*paths, tmp_path / "bad.png"], (64, 64))
