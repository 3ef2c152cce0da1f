"""Built-in textures: deterministic, of many kinds, and never flat."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from destseg_deploy.data import procedural_textures as textures
from destseg_deploy.data.procedural_textures import FAMILIES, procedural_texture
from destseg_deploy.errors import ShapeError

NAMES = [family.__name__ for family in FAMILIES]


def draw(seed: int, size: int = 64) -> np.ndarray:
    return procedural_texture(np.random.default_rng(seed), size)


@pytest.fixture(params=FAMILIES, ids=NAMES)
def family(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> textures.Field:
    """Each family in turn, the only one that is drawn."""
    monkeypatch.setattr(textures, "FAMILIES", (request.param,))
    chosen: textures.Field = request.param
    return chosen


def test_there_are_at_least_ten_families() -> None:
    assert len(set(NAMES)) == len(NAMES) >= 10
    assert sorted(NAMES) == NAMES


@pytest.mark.usefixtures("family")
@pytest.mark.parametrize("size", [16, 65, 256])
def test_each_family_draws_rgb_of_the_size_asked_for(size: int) -> None:
    image = draw(7, size)
    assert image.shape == (size, size, 3)
    assert image.dtype == np.uint8


def test_the_default_size_is_that_of_the_network() -> None:
    assert procedural_texture(np.random.default_rng(0)).shape == (256, 256, 3)


@pytest.mark.usefixtures("family")
def test_the_same_generator_state_gives_the_same_texture() -> None:
    assert np.array_equal(draw(3), draw(3))
    assert not np.array_equal(draw(3), draw(4))


def test_one_generator_gives_one_texture_after_another() -> None:
    rng = np.random.default_rng(0)
    drawn = [procedural_texture(rng, 32) for _ in range(20)]
    assert len({texture.tobytes() for texture in drawn}) == 20


def test_every_family_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[str] = set()

    def stub(name: str) -> textures.Field:
        def field(rng: np.random.Generator, size: int) -> np.ndarray:
            seen.add(name)
            return np.zeros((size, size), np.float32)

        return field

    monkeypatch.setattr(textures, "FAMILIES", tuple(map(stub, NAMES)))
    rng = np.random.default_rng(0)
    for _ in range(200):
        procedural_texture(rng, 16)
    assert seen == set(NAMES)


def test_fields_use_their_range(family: textures.Field) -> None:
    """A field squeezed into few values would look flat under any palette."""
    spreads = []
    for seed in range(6):
        field = family(np.random.default_rng(seed), 64)
        assert field.shape == (64, 64)
        assert field.dtype == np.float32
        assert np.isfinite(field).all()
        assert field.min() > -0.3
        assert field.max() < 1.3
        spreads.append(field.std())
    assert np.median(spreads) > 0.08


def test_textures_differ_in_colour_and_contrast() -> None:
    drawn = [draw(seed).astype(float) for seed in range(60)]
    means = np.array([texture.mean(axis=(0, 1)) for texture in drawn])
    assert (means.std(axis=0) > 25).all()
    saturation = np.ptp(means, axis=1)
    assert saturation.min() < 15
    assert saturation.max() > 80
    contrast = np.array([texture.std(axis=(0, 1)).max() for texture in drawn])
    assert contrast.min() > 1
    assert contrast.max() > 4 * contrast.min()


def test_textures_differ_in_scale() -> None:
    """The mean spatial frequency of stripes runs over more than a factor of three."""

    def fineness(seed: int) -> float:
        field = textures._stripes(np.random.default_rng(seed), 128)
        power = np.abs(np.fft.fft2(field - field.mean())) ** 2
        frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(128), np.fft.fftfreq(128)))
        return float((power * frequency).sum() / power.sum())

    shares = [fineness(seed) for seed in range(20)]
    assert max(shares) > 3 * min(shares)


def test_families_are_not_one_another() -> None:
    fields = {family.__name__: family(np.random.default_rng(5), 64) for family in FAMILIES}
    for one, two in combinations(fields, 2):
        assert np.abs(fields[one] - fields[two]).mean() > 0.02, (one, two)


def test_tiny_sizes_are_refused() -> None:
    with pytest.raises(ShapeError, match="at least 16"):
        draw(0, 15)
