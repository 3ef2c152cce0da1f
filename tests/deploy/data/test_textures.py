"""Textures by number: those of a folder, and those that are drawn."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from destseg_deploy.data.images import assume_bit_depth, read_image
from destseg_deploy.data.resize import resize_image
from destseg_deploy.data.textures import (
    FolderTextures,
    ProceduralTextures,
    Textures,
    open_textures,
)
from destseg_deploy.errors import DataError

SIZE = (24, 32)
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One texture of each primary colour, in folders of their own, and one of noise."""
    root = tmp_path / "textures"
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        Image.new("RGB", (40, 30), colour).save(root / name / "0.png")
    noise = np.random.default_rng(0).integers(0, 256, (50, 61, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "noise.bmp")
    return root


# ---------------------------------------------------------------------------- the contract

MAKERS: dict[str, Callable[[Path, tuple[int, int]], Textures]] = {
    "folder": FolderTextures,
    "procedural": lambda _, size: ProceduralTextures(size, 6),
}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("size", [SIZE, (32, 24), (16, 16)])
def test_textures_are_numbered_and_of_one_size(
    kind: str, size: tuple[int, int], folder: Path
) -> None:
    textures = MAKERS[kind](folder, size)
    assert textures.size == size
    assert textures.name
    seen = set()
    for number in range(len(textures)):
        texture = textures.read(number)
        assert texture.dtype == np.uint8
        assert texture.shape == (*size, 3)
        assert np.array_equal(texture, textures.read(number))
        assert np.array_equal(texture, MAKERS[kind](folder, size).read(number))
        seen.add(texture.tobytes())
    assert len(seen) == len(textures) > 3


@pytest.mark.parametrize("kind", MAKERS)
def test_any_thread_may_read(kind: str, folder: Path) -> None:
    textures = MAKERS[kind](folder, SIZE)
    numbers = list(range(len(textures))) * 8
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(textures.read, numbers))
    for number, texture in zip(numbers, read, strict=True):
        assert np.array_equal(texture, textures.read(number))


@pytest.mark.parametrize("kind", MAKERS)
def test_the_digest_is_that_of_the_collection_and_its_size(kind: str, folder: Path) -> None:
    digest = MAKERS[kind](folder, SIZE).digest()
    assert digest == MAKERS[kind](folder, SIZE).digest()
    assert digest != MAKERS[kind](folder, (32, 24)).digest()


# ---------------------------------------------------------------------------- a folder


def test_a_folders_textures_are_those_of_any_depth_resized_with_the_resize(folder: Path) -> None:
    (folder / "._hidden.png").touch()
    (folder / "readme.txt").touch()
    textures = FolderTextures(folder, SIZE)
    assert textures.name == str(folder)
    for number, path in enumerate(textures.files):
        assert np.array_equal(textures.read(number), resize_image(read_image(path), SIZE))
    order = ["blue/0.png", "green/0.png", "noise.bmp", "red/0.png"]
    assert [path.relative_to(folder).as_posix() for path in textures.files] == order
    assert (textures.read(3) == (255, 0, 0)).all()


def test_the_digest_changes_with_a_file(folder: Path) -> None:
    seen = [FolderTextures(folder, SIZE).digest()]
    Image.new("RGB", (40, 30)).save(folder / "more.png")
    seen.append(FolderTextures(folder, SIZE).digest())  # one more
    (folder / "more.png").rename(folder / "other.png")
    seen.append(FolderTextures(folder, SIZE).digest())  # another name
    with (folder / "other.png").open("ab") as file:
        file.write(b"\0")
    seen.append(FolderTextures(folder, SIZE).digest())  # another size
    assert len(set(seen)) == 4
    (folder / "other.png").unlink()
    assert FolderTextures(folder, SIZE).digest() == seen[0]
    (folder / "green").rename(folder / "grass")
    assert FolderTextures(folder, SIZE).digest() not in seen  # another folder


def test_the_digest_does_not_depend_on_place_or_time(folder: Path, tmp_path: Path) -> None:
    digest = FolderTextures(folder, SIZE).digest()
    moved = folder.rename(tmp_path / "elsewhere")
    os.utime(moved / "noise.bmp", (1, 1))
    (moved / "readme.txt").touch()
    assert FolderTextures(moved, SIZE).digest() == digest


def test_a_damaged_texture_is_refused_when_it_is_read(folder: Path) -> None:
    (folder / "noise.bmp").write_bytes((folder / "noise.bmp").read_bytes()[:200])
    textures = FolderTextures(folder, SIZE)
    textures.read(1)
    with pytest.raises(DataError, match=r"noise\.bmp: "):
        textures.read(2)


def test_a_texture_that_went_away_is_refused(folder: Path) -> None:
    textures = FolderTextures(folder, SIZE)
    (folder / "noise.bmp").unlink()
    with pytest.raises(DataError, match=r"noise\.bmp: no such file"):
        textures.read(2)
    with pytest.raises(DataError, match=r"noise\.bmp: cannot be read"):
        textures.digest()


def test_a_folder_without_textures_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(DataError, match=r"no texture images\. Expected a folder such as"):
            FolderTextures(folder, SIZE)


# ---------------------------------------------------------------------------- drawn


def test_procedural_textures_do_not_depend_on_how_many_there_are() -> None:
    few, more = ProceduralTextures(SIZE, 3), ProceduralTextures(SIZE, 30)
    assert (len(few), len(more), len(ProceduralTextures(SIZE))) == (3, 30, 1024)
    assert np.array_equal(few.read(2), more.read(2))
    assert few.digest() != more.digest()


def test_procedural_textures_do_not_depend_on_what_was_read_before() -> None:
    textures = ProceduralTextures(SIZE, 10)
    last = [textures.read(number) for number in range(10)][-1]
    np.random.default_rng(0).random()
    assert np.array_equal(ProceduralTextures(SIZE, 10).read(9), last)


def test_procedural_textures_are_not_flat() -> None:
    assert all(ProceduralTextures(SIZE).read(number).std() > 5 for number in range(20))


# ---------------------------------------------------------------------------- either


def test_open_textures_takes_a_folder_or_none(folder: Path, tmp_path: Path) -> None:
    given, built_in = open_textures(folder, SIZE), open_textures(None, SIZE)
    assert isinstance(given, FolderTextures)
    assert isinstance(built_in, ProceduralTextures)
    assert (given.name, built_in.name) == (str(folder), "procedural")
    assert given.size == built_in.size == SIZE
    with pytest.raises(DataError, match="gone: no texture images"):
        open_textures(tmp_path / "gone", SIZE)


def test_the_depth_of_textures_is_known_to_any_thread(tmp_path: Path) -> None:
    """Training decodes textures in threads, which do not see a value set in another one."""
    cv2.imwrite(str(tmp_path / "a.png"), np.full((8, 8), 3212, np.uint16))
    with assume_bit_depth(12):
        textures = FolderTextures(tmp_path, (8, 8))
        with ThreadPoolExecutor(1) as pool:
            assert (pool.submit(textures.read, 0).result() == 200).all()
    with pytest.raises(DataError, match="--bit-depth 12"):  # the control
        FolderTextures(tmp_path, (8, 8)).read(0)
