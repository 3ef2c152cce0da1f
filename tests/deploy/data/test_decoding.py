"""Opening files: four formats by content, within limits, and every failure in one line."""

from __future__ import annotations

import io
import os
import socket
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from destseg_deploy.data import decoding
from destseg_deploy.data.images import image_shape, read_image
from destseg_deploy.errors import DataError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (13, 18, 3), dtype=np.uint8)
RGB16 = RNG.integers(0, 1 << 16, (13, 18, 3), dtype=np.uint16)
GREY16 = RGB16[:, :, 0].copy()


SIZELESS = [i for i in range(60) if not 16 <= i < 26]
"""Positions in a header that hold no width or height: a huge one takes seconds to refuse."""


def encoded(suffix: str) -> bytes:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, {".jpg": "JPEG"}.get(suffix, suffix[1:].upper()))
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF|Truncated File:UserWarning")  # Pillow's, of tif
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tiff"])
def test_a_truncated_file_is_an_error_that_names_it(suffix: str, tmp_path: Path) -> None:
    data, path = encoded(suffix), tmp_path / f"half{suffix}"
    path.write_bytes(data)
    assert read_image(path).shape == (40, 40, 3)  # the whole file is fine
    for share in (0.001, 0.01, 0.1, 0.5, 0.9):
        path.write_bytes(data[: int(len(data) * share) + 1])
        with pytest.raises(DataError, match=path.name):
            read_image(path)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of damaged tags
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tiff"])
def test_damage_anywhere_is_a_data_error_or_a_picture(suffix: str, tmp_path: Path) -> None:
    data, path, rng = encoded(suffix), tmp_path / f"damaged{suffix}", np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(data)
        for position in rng.choice(SIZELESS, 3):
            damaged[position] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            read_image(path)
        except DataError:
            refused += 1
    assert refused > 5


# ---------------------------------------------------------------------------- what is no image


def one_line(path: Path, words: str) -> None:
    with pytest.raises(DataError, match=words) as error:
        read_image(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file, expected PNG, JPEG, BMP or TIFF"),
        (b"Cable 4\nlooks odd.", r"not an image, it begins with b'Cable 4\\n'"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "its content is PostScript"),
        (b"\xc5\xd0\xd3\xc6" + bytes(28), "its content is PostScript"),
        (b"GIF89a" + bytes(30), "its content is GIF"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "its content is WebP"),
        (b"\0\0\0\x18ftypheic", "its content is HEIF"),
        (b"%PDF-1.7", "its content is PDF"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS .git lfs pull"),
        (b"BM", "cannot be read"),
        (b"II*\0\xff\xff\xff\xff", "cannot be read"),
        (b"II*\0\x08\0\0\0\0\0", "cannot be read"),
        (b"\x89PNG\r\n\x1a\n", "cannot be read"),
        (b"\xff\xd8\xff", "cannot be read"),
    ],
)
@pytest.mark.parametrize("suffix", [".png", ".tif", ".JPG"])
def test_a_file_is_what_its_content_says(
    content: bytes, words: str, suffix: str, tmp_path: Path
) -> None:
    (tmp_path / f"frame{suffix}").write_bytes(content)
    one_line(tmp_path / f"frame{suffix}", words)


def test_no_file_starts_ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow runs the first ``gs`` on the path for an EPS, whatever the file is called."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    eps = tmp_path / "frame.png"
    eps.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    with pytest.raises(OSError, match="cannot identify"), Image.open(eps) as image:
        image.load()
    assert (tmp_path / "started").exists(), "the trap works"
    (tmp_path / "started").unlink()
    one_line(eps, "PostScript")
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".eps", ""])
def test_a_suffix_does_not_matter(suffix: str, tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / f"frame{suffix}", "BMP")
    assert (read_image(tmp_path / f"frame{suffix}") == RGB).all()


def test_only_regular_files_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "lost.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as door:
        door.bind("socket.png")
        one_line(tmp_path / "socket.png", "a device or a socket, expected an image file")
    one_line(tmp_path / "pipe.png", "a pipe, expected an image file")
    one_line(tmp_path / "folder.png", "a folder, expected an image file")
    one_line(tmp_path / "link.png", r"a link to .*lost\.png, which is not there")
    one_line(tmp_path / "loop.png", "cannot be read")
    one_line(tmp_path / "gone.png", "no such file")
    one_line(tmp_path / ("x" * 300 + ".png"), "cannot be read|no such file")
    one_line(Path("/dev/zero"), "a device or a socket")


def test_a_link_to_an_image_is_read(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "frame.png")
    (tmp_path / "link.png").symlink_to("frame.png")
    assert (read_image(tmp_path / "link.png") == RGB).all()


@pytest.mark.parametrize(
    "error",
    [
        cv2.error("(-215) failed\n in line 2"),
        ZeroDivisionError("a\nb"),
        RuntimeError(),
    ],
)
def test_whatever_a_decoder_raises_is_one_line(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise error

    cv2.imwrite(str(tmp_path / "deep.png"), RGB16)
    monkeypatch.setattr(cv2, "imdecode", fail)
    one_line(tmp_path / "deep.png", r"cannot be read \(.+\)\. Replace")


def test_deep_colours_that_opencv_cannot_read_are_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cv2.imwrite(str(tmp_path / "deep.png"), RGB16)
    monkeypatch.setattr(cv2, "imdecode", lambda *args: None)
    one_line(tmp_path / "deep.png", "damaged")


# ---------------------------------------------------------------------------- limits


def large(path: Path, width: int, height: int) -> Path:
    """Write a PNG whose header states a size and whose pixels are missing."""
    data = bytearray(encoded(".png"))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    # Pillow checks the checksum of the header.
    import zlib

    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    path.write_bytes(data)
    return path


def test_a_large_image_is_refused_with_the_limit_and_what_raises_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = large(tmp_path / "large.png", 30_000, 20_000)
    one_line(path, "30000x20000 pixels take 1717 MiB, the limit for an image is 1024 MiB.*_MIB")
    monkeypatch.setenv(decoding.MEMORY, "1717")
    one_line(path, "cannot be read")  # it is tried, and its pixels are missing
    assert image_shape(path) == (20_000, 30_000)
    monkeypatch.setenv(decoding.MEMORY, "1716")
    one_line(path, "the limit for an image is 1716 MiB")


@pytest.mark.parametrize("size", [(65_537, 1), (1, 65_537)])
def test_a_side_beyond_the_specs_is_refused(size: tuple[int, int], tmp_path: Path) -> None:
    one_line(large(tmp_path / "long.png", *size), "expected 1 to 65536 a side")
    one_line(large(tmp_path / "fits.png", 65_536, 1), "cannot be read")


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "1 GiB"])
def test_a_limit_that_is_no_number_is_refused(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(decoding.MEMORY, text)
    Image.fromarray(RGB).save(tmp_path / "frame.png")
    with pytest.raises(DataError, match=f"{decoding.MEMORY}={text}: expected a whole number"):
        read_image(tmp_path / "frame.png")


def test_pillows_own_limit_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(RGB).save(tmp_path / "frame.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_image(tmp_path / "frame.png").shape == RGB.shape


# ---------------------------------------------------------------------------- pages and turns


@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_several_pages_are_refused(suffix: str, tmp_path: Path) -> None:
    pages = [Image.fromarray(RGB), Image.fromarray(255 - RGB), Image.fromarray(RGB)]
    path = tmp_path / f"pages{suffix}"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    one_line(path, "3 pages, expected one image in a file")
    pages[0].save(path)
    assert (read_image(path) == RGB).all()


def test_a_photograph_with_a_second_picture_is_refused(tmp_path: Path) -> None:
    first, second = Image.fromarray(RGB), Image.fromarray(255 - RGB)
    first.save(tmp_path / "pair.jpg", "MPO", save_all=True, append_images=[second])
    one_line(tmp_path / "pair.jpg", "2 pages")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
@pytest.mark.parametrize("turn", range(10))
def test_an_orientation_tag_is_refused(suffix: str, turn: int, tmp_path: Path) -> None:
    path, exif = tmp_path / f"turned{suffix}", Image.Exif()
    exif[274] = turn
    Image.fromarray(RGB).save(path, exif=exif)
    if turn in (0, 1, 9):  # 0 is a camera that does not know, 9 has no meaning
        assert read_image(path).shape == RGB.shape
    else:
        one_line(path, f"orientation tag {turn}, so that viewers turn or mirror it")


def test_an_orientation_tag_behind_the_pixels_is_seen(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(RGB).save(tmp_path / "turned.png", exif=exif)
    data = (tmp_path / "turned.png").read_bytes()
    start, end = data.index(b"eXIf") - 4, data.index(b"IDAT") - 4
    last = data.index(b"IEND") - 4
    assert start < end < last
    moved = data[:start] + data[end:last] + data[start:end] + data[last:]
    (tmp_path / "late.png").write_bytes(moved)
    one_line(tmp_path / "late.png", "orientation tag 6")


# ---------------------------------------------------------------------------- kinds of pixels


def tiff(path: Path, pixels: NDArray[np.generic], **tags: int) -> Path:
    """Write a TIFF with other tags than its pixels have."""
    info = TiffImagePlugin.ImageFileDirectory_v2()
    Image.fromarray(pixels).save(path, tiffinfo=info)
    if tags:
        data = path.read_bytes()
        numbers = {"bits": 258, "photometric": 262, "format": 339}
        for name, number in numbers.items():
            value = tags.get(name)
            if value is not None:
                entry = number.to_bytes(2, "little") + b"\x03\0\x01\0\0\0"
                at = data.index(entry) + len(entry)
                data = data[:at] + value.to_bytes(2, "little") + data[at + 2 :]
        path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (GREY16.astype(np.float32), "pixels are 32-bit floats"),
        (GREY16.astype(np.int32), "pixels are 32-bit signed"),
        (-GREY16.astype(np.int32), "pixels are 32-bit signed"),
    ],
)
def test_wide_numbers_and_floats_are_refused_by_name(
    pixels: NDArray[np.generic], words: str, tmp_path: Path
) -> None:
    one_line(tiff(tmp_path / "deep.tif", pixels), f"{words}.*expected unsigned integers of 8 or 16")


def test_floats_in_colour_are_refused_by_name(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "deep.tif"), RGB16.astype(np.float32) / 65535)
    one_line(tmp_path / "deep.tif", "pixels are 32-bit floats")


def test_white_as_zero_is_inverted_at_8_bits_and_refused_at_16(tmp_path: Path) -> None:
    """Pillow inverts the first and not the second."""
    grey = RGB[:, :, 0].copy()
    path = tiff(tmp_path / "white.tif", grey, photometric=0)
    assert (read_image(path)[:, :, 0] == 255 - grey).all()
    one_line(tiff(tmp_path / "deep.tif", GREY16, photometric=0), "16 bits with 0 as white")


@pytest.mark.parametrize("bits", [10, 14])
def test_packed_values_that_pillow_cannot_read_are_named(bits: int, tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", np.zeros((4, 4), np.uint16), bits=bits)
    with pytest.raises(DataError, match=f"pixels are {bits}-bit integers, expected"):
        read_image(path)


def test_a_big_tiff_with_the_high_byte_first_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"MM\0+\0\x08\0\0" + bytes(32))
    with pytest.raises(DataError, match="its content is a BigTIFF with the high byte first"):
        read_image(tmp_path / "a.tif")
