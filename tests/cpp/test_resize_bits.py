"""The host's resize gives the same bits as Python's, for any sizes and any pixels."""

import numpy as np
import pytest

from destseg_deploy.data.resize import resize_image
from tests.tiny import unpacked, write_packing_model

SIZES = [
    *((height, width) for height in range(1, 12) for width in (1, 7, 23, 24, 25, 60)),
    (40, 24),
    (40, 1000),
    (900, 24),
    (39, 23),
    (41, 25),
    (80, 48),
    (127, 129),
    (480, 640),
    (600, 333),
    (1080, 1920),
]


def frame(size: tuple[int, int], seed: int) -> np.ndarray:
    """Noise of two levels, whose sums fall on halves often, or of all levels."""
    random = np.random.default_rng(seed)
    levels = np.array([0, 255] if seed % 2 else range(256), np.uint8)
    return levels[random.integers(len(levels), size=(*size, 3))]


def test_any_size_to_the_same_bits(library, packing):
    path, spec = packing
    with library.open(path, library.need("onnxruntime")) as handle:
        for seed, size in enumerate(SIZES):
            image = frame(size, seed)
            maps, _ = handle.scores([image])
            assert np.array_equal(unpacked(maps)[0], resize_image(image, spec.size)), size


@pytest.mark.parametrize("target", [(1, 1), (3, 2), (256, 256), (130, 257)])
def test_other_targets(library, tmp_path, target):
    path = tmp_path / "tiny.onnx"
    spec = write_packing_model(path, target)
    sizes = [(1, 1), (2, 3), (100, 300), (333, 257), (1024, 1024), (1500, 700)]
    with library.open(path, library.need("onnxruntime")) as handle:
        for seed, size in enumerate(sizes):
            image = frame(size, seed)
            maps, _ = handle.scores([image])
            assert np.array_equal(unpacked(maps)[0], resize_image(image, spec.size)), size


def test_the_comparison_sees_a_single_bit(library, packing):
    path, spec = packing
    image = frame((80, 48), 0)
    with library.open(path, library.need("onnxruntime")) as handle:
        maps, _ = handle.scores([image])
    found = unpacked(maps)[0]
    found[5, 7, 2] ^= 1
    assert not np.array_equal(found, resize_image(image, spec.size))


def test_grey_frames_are_resized_as_three_equal_channels(library, packing):
    path, spec = packing
    grey = frame((61, 99), 1)[..., 0].copy()
    with library.open(path, library.need("onnxruntime")) as handle:
        maps, _ = handle.scores([grey])
    expected = resize_image(np.repeat(grey[..., None], 3, axis=2), spec.size)
    assert np.array_equal(unpacked(maps)[0], expected)
