"""Masks: of every kind that tools write, where the defect is, or why it cannot be told."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from destseg_deploy.data.masks import read_mask
from destseg_deploy.data.resize import resize_plane
from destseg_deploy.errors import DataError, DataWarning

RNG = np.random.default_rng(0)


def three(grey: NDArray[np.generic]) -> NDArray[np.generic]:
    return np.repeat(grey[:, :, None], 3, axis=2)


def square(top: int = 255) -> NDArray[np.uint8]:
    """A 40 x 60 mask with a block of defect at rows 10-29 and columns 20-49."""
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 20:50] = top
    return mask


def write(pixels: NDArray[np.generic], path: Path) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def parts(*levels: int) -> NDArray[np.uint8]:
    """The square cut into vertical strips of several values."""
    mask = square()
    for strip, level in zip(np.array_split(np.arange(20, 50), len(levels)), levels, strict=True):
        mask[10:30, strip] = level
    return mask


def colours(*rgb: tuple[int, int, int]) -> NDArray[np.uint8]:
    return np.array([(0, 0, 0), *rgb], np.uint8)[parts(*range(1, len(rgb) + 1))]


def scratch(level: int) -> NDArray[np.uint8]:
    """The square, of one value, with a thin scratch of another one inside."""
    mask = square(255)
    mask[15, 25:45] = level
    return mask


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
    "0 and 2": square(2),
    "0 and 100": square(100),
    "0 and 254": square(254),
    "labels 1 to 3": parts(1, 2, 3),
    "labels with a large step": parts(1, 100, 255),
    "labels around one half": parts(100, 150, 200),
    "seven labels up to 255": parts(20, 60, 100, 140, 180, 220, 255),
    "a thin label": scratch(7),
    "labels in 16 bits": parts(1, 2, 3).astype(np.uint16) * 300,
    "12 bits in 16": square().astype(np.uint16) * 16,
    "colours": colours((128, 0, 0), (0, 128, 0), (128, 128, 0)),
    "one dark colour": colours((0, 0, 2)),
    "alpha over white": np.dstack([three(square() * 0 + 255), square()]),
    "alpha over black": np.dstack([three(square() * 0), square()]),
    "alpha of a label": np.dstack([three(square() * 0 + 9), square(3)]),
    "alpha and colour alike": np.dstack([three(square(200)), square()]),
    "black where opaque, white where not": np.dstack([three(255 - square()), square()]),
    "grey and alpha": np.dstack([square(), square() * 0 + 255]),
    "alpha over grey": np.dstack([square() * 0 + 77, square(90)]),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_reads_to_where_the_defect_is(name: str, tmp_path: Path) -> None:
    path = write(MASKS[name], tmp_path / "000_mask.png")
    mask = read_mask(path, (40, 60), (40, 60))
    assert mask.dtype == np.bool_
    assert (mask == (square() > 0)).all()


PALETTES: dict[str, list[int]] = {
    "VOC": [0, 0, 0, 128, 0, 0],
    "black label": [0, 0, 0, 0, 0, 0],
    "white background": [255, 255, 255, 0, 0, 0],
    "red background": [255, 0, 0, 0, 0, 255],
    "greys": [0, 0, 0, 90, 90, 90],
}


@pytest.mark.parametrize("name", PALETTES)
def test_a_palettes_mask_is_read_by_its_index(name: str, tmp_path: Path) -> None:
    """But a scale of greys is what it shows: some tools put white first."""
    image = Image.fromarray(square(1)).convert("P")
    image.putdata(square(1).ravel().tolist())
    image.putpalette(PALETTES[name])
    image.save(tmp_path / "mask.png")
    expected = (square() > 0) ^ (name == "white background")
    if name == "white background":
        with pytest.warns(DataWarning, match="marked as a defect"):
            mask = read_mask(tmp_path / "mask.png", (40, 60), (40, 60))
    else:
        mask = read_mask(tmp_path / "mask.png", (40, 60), (40, 60))
    assert (mask == expected).all()


def test_instances_are_told_by_their_areas(tmp_path: Path) -> None:
    """More numbers than kinds of defects: each has an area of its own."""
    mask = np.zeros((120, 160), np.uint8)
    for i in range(60):
        top, left = 10 * (i // 10) + 40, 15 * (i % 10)
        mask[top : top + 7, left : left + 9] = 4 * i + 10
    assert len(np.unique(mask)) == 61
    read = read_mask(write(mask, tmp_path / "mask.png"), mask.shape, mask.shape)
    assert (read == (mask > 0)).all()


@pytest.mark.parametrize("kind", ["area", "cubic", "blur", "drawn"])
def test_grey_edges_are_cut_at_one_half(kind: str, tmp_path: Path) -> None:
    big = np.zeros((400, 600), np.uint8)
    cv2.circle(big, (300, 200), 80, 255, -1)
    edges = {
        "area": lambda: cv2.resize(big, (100, 67), interpolation=cv2.INTER_AREA),
        "cubic": lambda: cv2.resize(big, (450, 300), interpolation=cv2.INTER_CUBIC),
        "blur": lambda: cv2.GaussianBlur(big, (0, 0), 3),
        "drawn": lambda: cv2.circle(big * 0, (300, 200), 80, 255, -1, cv2.LINE_AA),
    }[kind]()
    grey = np.asarray(edges, np.uint8)
    assert len(np.unique(grey)) > 5
    mask = read_mask(write(grey, tmp_path / "mask.png"), grey.shape, grey.shape)
    assert (mask == (grey >= 128)).all()


def test_a_jpegs_noise_is_no_defect(tmp_path: Path) -> None:
    path = tmp_path / "mask.jpg"
    Image.fromarray(square()).save(path, quality=90)
    noisy = np.asarray(Image.open(path))
    assert ((noisy > 0) & (noisy < 40)).any()
    assert (read_mask(path, (40, 60), (40, 60)) == (noisy >= 128)).all()
    Image.fromarray(square(0)).save(path)
    with pytest.warns(DataWarning, match="marks nothing"):
        assert not read_mask(path, (40, 60), (40, 60)).any()


HEAT = np.add.outer(np.arange(40), 2 * np.arange(60)).astype(np.uint8)
UNTOLD: dict[str, tuple[str, NDArray[np.generic], str]] = {
    "a heat map": (".png", HEAT, r"the mask has 0, 1, 2, 3, \.\.\. 157 .158 values"),
    "noise": (".png", RNG.integers(0, 256, (40, 60), np.uint8), "256 values"),
    "a photograph": (".png", RNG.integers(0, 256, (40, 60, 3), np.uint8), r"colours, such as \("),
    "a coloured background": (".png", 255 - colours((128, 0, 0)), "2 colours, such as"),
    "a soft coloured drawing": (
        ".png",
        np.dstack([cv2.GaussianBlur(square(), (0, 0), 2), square(0), square(0)]),
        "colours, such as",
    ),
    "colour and alpha": (".png", np.dstack([three(HEAT), square()]), "its colours and its alpha"),
    "labels in a JPEG": (".jpg", square(2), "in a JPEG, which changes labels"),
    "half in a JPEG": (".jpg", square(128), "in a JPEG, which changes labels"),
}


@pytest.mark.parametrize("name", UNTOLD)
def test_what_cannot_be_told_is_refused_with_what_was_found(name: str, tmp_path: Path) -> None:
    suffix, pixels, words = UNTOLD[name]
    path = write(pixels, tmp_path / f"000_mask{suffix}")
    with pytest.raises(DataError, match=words) as error:
        read_mask(path, (40, 60), (40, 60))
    assert str(error.value).startswith(f"{path}: the mask has ")
    assert "Save it" in str(error.value)


@pytest.mark.parametrize(
    ("pixels", "share"),
    [(255 - square(), "75%"), (square() * 0 + 255, "100%"), (square() * 0 + 1, "100%")],
)
def test_a_mask_of_more_than_half_is_remarked(
    pixels: NDArray[np.uint8], share: str, tmp_path: Path
) -> None:
    path = write(pixels, tmp_path / "000_mask.png")
    with pytest.warns(DataWarning, match=rf"000_mask\.png: {share} of the image is marked"):
        mask = read_mask(path, (40, 60), (40, 60))
    assert (mask == (pixels > 0)).all()


def test_a_mask_of_half_is_not_remarked(tmp_path: Path) -> None:
    half = np.zeros((4, 4), np.uint8)
    half[:2] = 255
    assert read_mask(write(half, tmp_path / "mask.png"), (4, 4), (4, 4)).mean() == 0.5


def test_an_empty_mask_is_empty_and_remarked(tmp_path: Path) -> None:
    path = write(square(0), tmp_path / "mask.png")
    with pytest.warns(DataWarning, match=r"mask\.png: this mask marks nothing"):
        assert not read_mask(path, (40, 60), (20, 30)).any()


@pytest.mark.parametrize(("part", "defect"), [(1, 2), (16, 235), (20, 220), (254, 255)])
def test_a_mask_without_0_does_not_tell_the_part(part: int, defect: int, tmp_path: Path) -> None:
    path = write(np.where(square() > 0, defect, part).astype(np.uint8), tmp_path / "mask.png")
    with pytest.raises(DataError, match=f"the mask has {part}, {defect} and no 0"):
        read_mask(path, (40, 60), (20, 30))


def test_an_antialiased_mask_is_cut_at_one_half(tmp_path: Path) -> None:
    row = np.repeat(np.arange(256, dtype=np.uint8), [200, *[1] * 254, 200])
    levels = np.tile(row, (4, 1))
    mask = read_mask(write(levels, tmp_path / "mask.png"), levels.shape, levels.shape)
    assert (mask == (levels >= 128)).all()


@pytest.mark.parametrize("size", [(20, 30), (23, 31), (64, 64)])
def test_a_resized_mask_is_the_resize_cut_at_one_half(
    size: tuple[int, int], tmp_path: Path
) -> None:
    smooth = cv2.GaussianBlur(RNG.random((40, 60), np.float32), (0, 0), 2)
    blobs = (np.asarray(smooth) > np.quantile(smooth, 0.6)).astype(np.uint8)
    mask = read_mask(write(blobs * np.uint8(255), tmp_path / "m.png"), (40, 60), size)
    assert mask.shape == size
    assert (mask == (resize_plane(blobs.astype(np.float32), size) >= 0.5)).all()
    nearest = cv2.resize(blobs, size[::-1], interpolation=cv2.INTER_NEAREST)
    assert (mask != nearest.astype(bool)).any()


def test_exactly_one_half_counts_as_defective(tmp_path: Path) -> None:
    pair = np.tile(np.array([[255, 0]], np.uint8), (2, 1))
    assert read_mask(write(pair, tmp_path / "pair.png"), (2, 2), (2, 1)).all()
    third = np.tile(np.array([[255, 0, 0]], np.uint8), (2, 1))
    assert not read_mask(write(third, tmp_path / "third.png"), (2, 3), (2, 1)).any()


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    path = write(square(), tmp_path / "000_mask.png")
    message = r"000_mask\.png: the mask is 60x40 pixels, its image 40x60\. Expected the same size"
    with pytest.raises(DataError, match=message):
        read_mask(path, (60, 40), (20, 20))


def test_a_mask_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_mask(tmp_path / "gone.png", (4, 4), (4, 4))
    write(square().astype(np.float32), tmp_path / "float.tif")
    with pytest.raises(DataError, match="pixels are 32-bit floats"):
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
