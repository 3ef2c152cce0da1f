"""The examples read BMP, PNG, PGM and PPM; damaged files are refused."""

import os
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cpp.library import wheel_folder
from tests.tiny import write_packing_model

PIXELS = np.random.default_rng(7).integers(0, 256, (40, 24, 3), dtype=np.uint8)
GREY = PIXELS[..., 1].copy()


def write_rgb(folder: Path) -> None:
    image = Image.fromarray(PIXELS)
    image.save(folder / "a.ppm")
    image.save(folder / "b.png")
    image.save(folder / "c.bmp")
    opaque = np.dstack([PIXELS, np.full((40, 24), 255, np.uint8)])
    Image.fromarray(opaque).save(folder / "d.png")
    Image.fromarray(opaque).save(folder / "e.bmp")
    bmp = bytearray((folder / "c.bmp").read_bytes())  # top down: a negative height
    bmp[22:26] = struct.pack("<i", -40)
    start = struct.unpack_from("<I", bmp, 10)[0]
    bmp[start:] = PIXELS[..., ::-1].tobytes()  # 24 pixels of 3 bytes need no gap
    (folder / "f.bmp").write_bytes(bmp)


def write_grey(folder: Path) -> None:
    image = Image.fromarray(GREY)
    for name in ("a.pgm", "b.png", "c.bmp"):
        image.save(folder / name)


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DESTSEG_ONNXRUNTIME_LIBRARY": str(wheel_folder("onnxruntime"))}
    command = [str(program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


@pytest.mark.parametrize(("write", "count"), [(write_rgb, 6), (write_grey, 3)])
def test_the_same_pixels_have_the_same_score(library, examples, packing, tmp_path, write, count):
    """The packing model's score is the first pixel, and its map holds all of them."""
    library.need("onnxruntime")
    folder = tmp_path / "frames"
    folder.mkdir()
    write(folder)
    done = run(examples / "inspect_folder", packing[0], folder, "onnxruntime")
    assert done.returncode == 0, done.stderr
    scores = [line.split()[1] for line in done.stdout.splitlines()[:count]]
    first = PIXELS[0, 0] if write is write_rgb else np.repeat(GREY[0, 0], 3)
    red, green, blue = map(int, first)
    expected = np.float32((red + 256 * green + 65536 * blue) / 2**24)
    assert [np.float32(score) for score in scores] == [expected] * count
    maps = set()
    for path in sorted(folder.iterdir()):
        done = run(examples / "inspect_one", packing[0], path, tmp_path / "map.pgm")
        assert done.returncode in (0, 2), done.stderr
        maps.add((tmp_path / "map.pgm").read_bytes())
    assert len(maps) == 1


def test_a_model_without_a_threshold_says_neither_ok_nor_ng(library, examples, packing, tmp_path):
    library.need("onnxruntime")
    (tmp_path / "frame.ppm").write_bytes(b"P6 24 40 255\n" + bytes(40 * 24 * 3))
    for threshold, status, word in ((packing[1].threshold, 0, "OK"), (None, 3, "undecided")):
        write_packing_model(tmp_path / "tiny.onnx", (40, 24), threshold=threshold)
        given = [tmp_path / "tiny.onnx", tmp_path / "frame.ppm", tmp_path / "map.pgm"]
        done = run(examples / "inspect_one", *given)
        assert (done.returncode, done.stdout.split()[-1]) == (status, word)


def damaged(folder: Path) -> dict[str, tuple[bytes, str]]:
    """Return files that must be refused: bytes, and the words of the error."""
    write_rgb(folder)
    ppm, png, bmp = ((folder / name).read_bytes() for name in ("a.ppm", "b.png", "c.bmp"))
    palette = Image.fromarray(PIXELS).quantize(16)
    palette.save(folder / "palette.bmp")
    Image.fromarray(GREY.astype(np.uint16) * 16).save(folder / "camera.png")
    return {
        "short.ppm": (ppm[:-1], "is cut off"),
        "short.bmp": (bmp[:-1], "is cut off"),
        "short.png": (png[: len(png) // 2], "is a damaged PNG"),
        "camera.png": ((folder / "camera.png").read_bytes(), "has 16 bits a pixel; save it with 8"),
        "colours.bmp": ((folder / "palette.bmp").read_bytes(), "save it with 24 bit"),
        "packed.bmp": (bmp[:30] + b"\x01" + bmp[31:], "is no uncompressed BMP"),
        "image.jpg": (b"\xff\xd8\xff\xe0 a JPEG", "is no BMP, PNG, PGM or PPM"),
        "empty.png": (b"", "is no BMP, PNG, PGM or PPM"),
    }


def test_damaged_images_are_refused_with_one_line(library, examples, packing, tmp_path):
    for name, (content, words) in damaged(tmp_path).items():
        (tmp_path / name).write_bytes(content)
        done = run(examples / "inspect_one", packing[0], tmp_path / name, tmp_path / "map.pgm")
        assert done.returncode == 1
        assert done.stderr.startswith(f"Error: {tmp_path / name}: ")
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "map.pgm").exists()
