"""Each format against a slow reading of its rule, pixel for pixel."""

from typing import get_args

import numpy as np
import pytest

from destseg_deploy.data.pixel_formats import FrameFormat, to_rgb
from destseg_deploy.errors import ShapeError
from destseg_deploy.predictor import Predictor
from destseg_deploy.testing import FakeRuntime

COLOURS = {"rg": "RGGB", "gr": "GRBG", "gb": "GBRG", "bg": "BGGR"}


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def mirrored(index: int, size: int) -> int:
    return 1 if index < 0 else size - 2 if index >= size else index


def nearest_mean(frame: np.ndarray, pattern: str, y: int, x: int, colour: str) -> int:
    """Return a colour at a pixel: its own, or the rounded mean of those nearest to it."""
    found: dict[int, list[int]] = {}
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            if COLOURS[pattern][(y + dy) % 2 * 2 + (x + dx) % 2] == colour:
                here = frame[mirrored(y + dy, frame.shape[0]), mirrored(x + dx, frame.shape[1])]
                found.setdefault(abs(dy) + abs(dx), []).append(int(here))
    values = found[min(found)]
    return (sum(values) + len(values) // 2) // len(values)


@pytest.mark.parametrize("pattern", COLOURS)
@pytest.mark.parametrize("size", [(6, 8), (5, 7), (2, 2)])
def test_bayer(pattern, size):
    frame = noise(*size)
    rgb = to_rgb(frame, f"bayer_{pattern}8")
    for y in range(size[0]):
        for x in range(size[1]):
            expected = [nearest_mean(frame, pattern, y, x, colour) for colour in "RGB"]
            assert rgb[y, x].tolist() == expected, (y, x)


def test_a_flat_colour_stays_what_it_is():
    frame = np.zeros((6, 6), np.uint8)
    frame[0::2, 0::2], frame[0::2, 1::2], frame[1::2, 0::2], frame[1::2, 1::2] = 10, 20, 20, 30
    assert np.array_equal(
        np.unique(to_rgb(frame, "bayer_rg8").reshape(-1, 3), axis=0), [[10, 20, 30]]
    )


@pytest.mark.parametrize(("kind", "most"), [("mono10", 1023), ("mono12", 4095), ("mono16", 65535)])
def test_grey_of_16_bit_is_rounded_to_the_nearest_level(kind, most):
    values = np.arange(65536).astype(np.uint16).reshape(256, 256)
    exact = np.minimum(values, most).astype(np.float64) * 255 / most
    found = to_rgb(values, kind)
    assert np.abs(found - exact).max() <= 0.5
    assert (found[values >= most] == 255).all()
    assert np.array_equal(to_rgb(values, kind, 300), to_rgb(np.minimum(values, 300), kind, 300))


@pytest.mark.parametrize("kind", ["yuv422_8", "yuv422_8_uyvy"])
def test_yuv_is_bt601_within_one_level(kind):
    frame = noise(16, 32, 2)
    order = slice(None) if kind == "yuv422_8" else slice(None, None, -1)
    luma, chroma = np.moveaxis(frame[..., order].astype(np.float64), 2, 0)
    u, v = np.repeat(chroma[:, 0::2] - 128, 2, 1), np.repeat(chroma[:, 1::2] - 128, 2, 1)
    exact = np.stack(
        [luma + 1.402 * v, luma - 0.344136 * u - 0.714136 * v, luma + 1.772 * u], axis=2
    )
    assert np.abs(to_rgb(frame, kind) - np.clip(exact, 0, 255)).max() <= 0.51
    grey = np.full((2, 2, 2), 128, np.uint8)
    assert np.array_equal(to_rgb(grey, kind), np.full((2, 2, 3), 128))


def test_channels_that_are_only_moved():
    rgb = noise(5, 7, 3)
    four = np.dstack([rgb, noise(5, 7, seed=1)])
    assert np.array_equal(to_rgb(rgb, "rgb8"), rgb)
    assert np.array_equal(to_rgb(rgb[..., ::-1], "bgr8"), rgb)
    assert np.array_equal(to_rgb(four, "rgba8"), rgb)
    assert np.array_equal(to_rgb(four[..., [2, 1, 0, 3]], "bgra8"), rgb)
    assert np.array_equal(to_rgb(np.moveaxis(rgb, 2, 0), "rgb8_planar"), rgb)
    assert np.array_equal(to_rgb(rgb[..., 0], "mono8"), rgb[..., 0])


def test_views_bottom_up_and_with_gaps_are_taken():
    frame = noise(9, 12)
    wide = noise(9, 20)
    wide[:, :12] = frame
    assert np.array_equal(to_rgb(wide[:, :12], "bayer_gr8"), to_rgb(frame, "bayer_gr8"))
    upside = np.ascontiguousarray(frame[::-1])
    assert np.array_equal(to_rgb(upside[::-1], "bayer_gr8"), to_rgb(frame, "bayer_gr8"))


@pytest.mark.parametrize(
    ("frame", "kind", "maximum", "words"),
    [
        (noise(4, 4), "mono12", None, r"expected uint16 \(H, W\)"),
        (noise(4, 4).astype(np.uint16), "mono8", None, r"expected uint8 \(H, W\)"),
        (
            noise(4, 4, 3),
            "rgba8",
            None,
            r"\(H, W, 4\) for frame_format 'rgba8', got uint8 \(4, 4, 3\)",
        ),
        (noise(4, 4, 3), "rgb8_planar", None, r"expected uint8 \(3, H, W\)"),
        (noise(4, 5, 2), "yuv422_8", None, "an even width"),
        (noise(1, 5), "bayer_rg8", None, "at least 2x2"),
        (noise(4, 4), "mono8", 200, "maximum: 200 for frame_format 'mono8'"),
        (noise(4, 4), "mono12", "200", "maximum: '200' for frame_format 'mono12'"),
        (noise(4, 4), "mono12", 1.5, "maximum: 1.5 for frame_format 'mono12'"),
        (noise(4, 4), "mono12", True, "maximum: True for frame_format 'mono12'"),
        (noise(4, 4).astype(np.uint16), "mono12", 0, "expected 1 to 65535"),
        (noise(4, 4), "bayer", None, "expected one of mono8, rgb8"),
        ([[1]], "mono8", None, "got list"),
        (np.zeros((0, 4), np.uint8), "mono8", None, r"got uint8 \(0, 4\)"),
    ],
)
def test_what_is_refused(frame, kind, maximum, words):
    with pytest.raises(ShapeError, match=words):
        to_rgb(frame, kind, maximum)


@pytest.mark.parametrize("kind", get_args(FrameFormat))
def test_the_predictor_takes_a_frame_a_stack_and_a_list(kind):
    """The fake runtime's score tells what it was given."""
    dtype = np.uint16 if kind in ("mono10", "mono12", "mono16") else np.uint8
    shape = {"rgb8_planar": (3, 16, 16)}.get(kind, (16, 16))
    last = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "yuv422_8": 2, "yuv422_8_uyvy": 2}
    shape = (*shape, last[kind]) if kind in last else shape
    frames = np.random.default_rng(0).integers(0, 256, (3, *shape)).astype(dtype)
    predictor = Predictor(FakeRuntime())
    plain = predictor([to_rgb(frame, kind) for frame in frames])
    for given in (frames, list(frames)):
        found = predictor(given, frame_format=kind)
        assert np.array_equal(found.anomaly_map, plain.anomaly_map)
        assert found.frame_sizes == plain.frame_sizes == ((16, 16),) * 3
    one = predictor(frames[0], frame_format=kind)
    assert np.array_equal(one.score, plain.score[:1])


def test_a_file_says_its_format_itself(tmp_path):
    with pytest.raises(ShapeError, match="leave frame_format out"):
        Predictor(FakeRuntime())(tmp_path / "frame.png", frame_format="mono8")
