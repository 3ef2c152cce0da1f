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
from PIL import Image, UnidentifiedImageError

from destseg_deploy.data.images import expand, is_image, list_images, read_image, read_mask
from destseg_deploy.data.resize import resize_plane
from destseg_deploy.errors import DataError

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
    "16 bit grey png": (".png", pillow(GREY16), three(GREY16 >> 8)),
    "16 bit grey tif": (".tif", pillow(GREY16), three(GREY16 >> 8)),
    "16 bit big-endian tif": (".tif", pillow(GREY16.astype(">u2")), three(GREY16 >> 8)),
    "16 bits in 32": (".tif", pillow(GREY16.astype(np.int32)), three(GREY16 >> 8)),
    "16 bit grey tif by cv2": (".tif", opencv(GREY16), three(GREY16 >> 8)),
    "16 bit colour tif": (".tif", opencv(RGB16), RGB16 >> 8),
    "16 bit colour png": (".png", opencv(RGB16), RGB16 >> 8),
    "16 bit rgba tif": (".tif", opencv(RGBA16), RGB16 >> 8),
    "16 bit rgba png": (".png", opencv(RGBA16), RGB16 >> 8),
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


@pytest.mark.parametrize("pixels", [RGB16, RGBA16, GREY16, RGB])
def test_what_pillow_does_not_know_is_read_by_opencv(
    pixels: NDArray[np.generic], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16-bit colour TIFF is such a format for some versions of Pillow."""

    def fail(path: Path) -> None:
        raise UnidentifiedImageError

    opencv(pixels)(tmp_path / "image.tif")
    expected = read_image(tmp_path / "image.tif")
    monkeypatch.setattr(Image, "open", fail)
    assert (read_image(tmp_path / "image.tif") == expected).all()


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


def test_an_orientation_tag_is_ignored(tmp_path: Path) -> None:
    image = Image.fromarray(RGB)
    exif = image.getexif()
    exif[274] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    assert (read_image(tmp_path / "turned.png") == RGB).all()


# ---------------------------------------------------------------------------- damage

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
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
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


def test_an_assertion_inside_opencv_is_a_data_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise cv2.error("(-215:Assertion failed) size.width <= CV_IO_MAX_IMAGE_WIDTH")

    path = tmp_path / "image.tif"
    path.write_text("unknown to Pillow")
    monkeypatch.setattr(cv2, "imdecode", fail)
    with pytest.raises(DataError, match=r"image\.tif: not an image"):
        read_image(path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    with pytest.raises(DataError, match=r"empty\.png: not an image, or a damaged one \(0 bytes\)"):
        read_image(tmp_path / "empty.png")


def test_a_text_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("Cable 4 looks odd.")
    with pytest.raises(DataError, match=r"notes\.png: not an image, or a damaged one \(18 bytes\)"):
        read_image(tmp_path / "notes.png")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png: no such file"):
        read_image(tmp_path / "gone.png")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_image(tmp_path)


@pytest.mark.parametrize(
    "pixels",
    [
        GREY16.astype(np.float32) / 65535,
        RGB16.astype(np.float32) / 65535,
        GREY16.astype(np.int32) << 8,
        -GREY16.astype(np.int32),
    ],
)
def test_pixels_without_a_known_range_are_refused(
    pixels: NDArray[np.generic], tmp_path: Path
) -> None:
    path = tmp_path / "deep.tif"
    (opencv if pixels.ndim == 3 else pillow)(pixels)(path)
    with pytest.raises(DataError, match=rf"pixels are {pixels.dtype}, expected 8 or 16 bits"):
        read_image(path)


# ---------------------------------------------------------------------------- finding files


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Images a.png, b.JPG, sub/c.tif; a text, a hidden image, a file that is no image by name."""
    (tmp_path / "sub").mkdir()
    for name in ("b.JPG", "a.png", "sub/c.tif", "notes.txt", ".hidden.png", "sub/raw.dat"):
        (tmp_path / name).write_bytes(encoded(".png"))
    return tmp_path


def names(paths: list[Path], root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.png", True),
        ("a.b.TIFF", True),
        ("a.jpeg", True),
        ("a.bmp", True),
        ("a.txt", False),
        ("png", False),
        ("._a.png", False),
    ],
)
def test_is_image_goes_by_the_suffix(name: str, expected: bool) -> None:
    assert is_image(Path("folder") / name) is expected


def test_list_images_is_sorted_and_leaves_other_files_out(tree: Path) -> None:
    assert names(list_images(tree), tree) == ["a.png", "b.JPG"]


def test_list_images_refuses_a_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / ".hidden.png").touch()
    with pytest.raises(DataError, match=r"no images in it. Expected files ending in \.png"):
        list_images(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        list_images(tmp_path / "gone")


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["a.png"], ["a.png"]),
        (["notes.txt"], ["notes.txt"]),  # named by hand: reading it will tell
        (["."], ["a.png", "b.JPG", "sub/c.tif"]),
        (["sub"], ["sub/c.tif"]),
        (["*.png"], ["a.png"]),
        (["*/*"], ["sub/c.tif"]),
        (["**/*.tif"], ["sub/c.tif"]),
        (["b.JPG", "a.png"], ["b.JPG", "a.png"]),
        (["a.png", "*.png", ".", "a.png"], ["a.png", "b.JPG", "sub/c.tif"]),
    ],
)
def test_expand_finds_files_folders_and_globs_once(
    patterns: list[str], expected: list[str], tree: Path
) -> None:
    assert names(expand([str(tree / pattern) for pattern in patterns]), tree) == expected


@pytest.mark.parametrize("pattern", ["*.tif", "gone.png", "empty"])
def test_expand_refuses_what_names_no_image(pattern: str, tree: Path) -> None:
    (tree / "empty").mkdir()
    with pytest.raises(DataError, match="no images there"):
        expand([str(tree / "a.png"), str(tree / pattern)])


def test_expand_takes_brackets_in_a_file_name_literally(tree: Path) -> None:
    (tree / "part[1].png").write_bytes(encoded(".png"))
    assert names(expand([str(tree / "part[1].png")]), tree) == ["part[1].png"]


# ---------------------------------------------------------------------------- masks


def square(top: int = 255) -> NDArray[np.uint8]:
    """A 40 x 60 mask with a block of defect at rows 10-29 and columns 20-49."""
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 20:50] = top
    return mask


def write(pixels: NDArray[np.generic], path: Path) -> Path:
    Image.fromarray(pixels).save(path)
    return path


MASKS: dict[str, NDArray[np.generic]] = {
    "0 and 255": square(),
    "0 and 1": square(1),
    "bits": square() > 0,
    "colour": three(square()),
    "one channel of colour": np.dstack([square() * 0, square(), square() * 0]),
    "with alpha": np.dstack([three(square()), square() * 0 + 255]),
    "16 bits": square().astype(np.uint16) * 257,
    "255 in 16 bits": square().astype(np.uint16),
    "1 in 16 bits": square(1).astype(np.uint16),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_reads_to_where_the_defect_is(name: str, tmp_path: Path) -> None:
    path = write(MASKS[name], tmp_path / "000_mask.png")
    mask = read_mask(path, (40, 60), (40, 60))
    assert mask.dtype == np.bool_
    assert (mask == (square() > 0)).all()


def test_an_empty_mask_is_empty(tmp_path: Path) -> None:
    path = write(square(0), tmp_path / "mask.png")
    assert not read_mask(path, (40, 60), (20, 30)).any()


def test_an_antialiased_mask_is_cut_at_one_half(tmp_path: Path) -> None:
    levels = np.tile(np.arange(0, 256, dtype=np.uint8), (4, 1))
    mask = read_mask(write(levels, tmp_path / "mask.png"), (4, 256), (4, 256))
    assert (mask == (levels >= 128)).all()


@pytest.mark.parametrize("size", [(20, 30), (23, 31), (64, 64)])
def test_a_resized_mask_is_the_resize_cut_at_one_half(
    size: tuple[int, int], tmp_path: Path
) -> None:
    smooth = cv2.GaussianBlur(RNG.random((40, 60), np.float32), (0, 0), 2)
    blobs = (np.asarray(smooth) > 0.5).astype(np.uint8)
    mask = read_mask(write(blobs * np.uint8(255), tmp_path / "m.png"), (40, 60), size)
    assert mask.shape == size
    assert (mask == (resize_plane(blobs.astype(np.float32), size) >= 0.5)).all()
    nearest = cv2.resize(blobs, size[::-1], interpolation=cv2.INTER_NEAREST)
    assert (mask != nearest.astype(bool)).any()


def test_exactly_one_half_counts_as_defective(tmp_path: Path) -> None:
    pair = np.tile(np.array([[255, 0]], np.uint8), (2, 1))
    assert read_mask(write(pair, tmp_path / "pair.png"), (2, 2), (2, 1)).all()
    less = np.tile(np.array([[254, 0]], np.uint8), (2, 1))
    assert not read_mask(write(less, tmp_path / "less.png"), (2, 2), (2, 1)).any()


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    path = write(square(), tmp_path / "000_mask.png")
    message = r"000_mask\.png: the mask is 60x40 pixels, its image 40x60\. Expected the same size"
    with pytest.raises(DataError, match=message):
        read_mask(path, (60, 40), (20, 20))


def test_a_mask_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_mask(tmp_path / "gone.png", (4, 4), (4, 4))
    write(square().astype(np.float32), tmp_path / "float.tif")
    with pytest.raises(DataError, match="pixels are float32"):
        read_mask(tmp_path / "float.tif", (40, 60), (4, 4))


def test_real_masks_are_read(shared: Path) -> None:
    for truth in (shared / "datasets/mvtec/screw/ground_truth", shared / "datasets/magnetic_tile"):
        paths = sorted(truth.rglob("*_mask.png"))[::40]
        assert paths
        for path in paths:
            with Image.open(path) as image:
                shape = (image.height, image.width)
            mask = read_mask(path, shape, shape)
            assert 0 < mask.mean() < 0.9
