"""The normal part: alike enough to learn, varied enough to need learning, drawn without chance."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import cv2
import numpy as np
import pytest

from destseg_deploy.data.sample.cable import (
    BORE,
    WIRE_RADIUS,
    Floats,
    Mark,
    draw,
    make_part,
    make_scene,
)

SIZE = 64


def picture(seed: int) -> Floats:
    rng = np.random.default_rng(seed)
    return draw(make_scene(rng, SIZE), make_part(rng))


def test_a_picture_is_rgb_in_range_and_well_lit() -> None:
    drawn = picture(0)
    assert drawn.shape == (SIZE, SIZE, 3)
    assert drawn.dtype == np.float32
    assert 0 <= drawn.min() < 0.2
    assert 0.6 < drawn.max() <= 1


def test_drawing_leaves_nothing_to_chance_and_its_part_unchanged() -> None:
    scene, part = make_scene(np.random.default_rng(1), SIZE), make_part(np.random.default_rng(2))
    other = make_part(np.random.default_rng(3))
    first = draw(scene, part)
    assert not np.array_equal(draw(scene, other), first)
    np.testing.assert_array_equal(draw(scene, part), first)


def test_normal_parts_differ() -> None:
    blurred = [cv2.GaussianBlur(picture(seed), (0, 0), 2) for seed in range(5)]
    for one, two in combinations(blurred, 2):
        assert np.abs(one - two).mean() > 2 / 255


def test_normal_parts_stay_alike_enough_to_learn() -> None:
    thumbs = [cv2.resize(picture(seed), (8, 8), interpolation=cv2.INTER_AREA) for seed in range(5)]
    likeness = np.asarray(np.corrcoef([thumb.ravel() for thumb in thumbs]))
    assert likeness[np.triu_indices(5, 1)].min() > 0.85
    turned = [np.rot90(thumbs[0]).ravel(), thumbs[0].ravel()]
    assert np.asarray(np.corrcoef(turned))[0, 1] < 0.85


def test_the_pose_varies_within_what_training_rotates() -> None:
    poses = [make_scene(np.random.default_rng(i), SIZE).pose for i in range(12)]
    angles = [np.degrees(np.arctan2(pose[0, 1], pose[0, 0])) for pose in poses]
    shifts = np.array([pose[:, 2] for pose in poses])
    assert 1 < np.std(angles) < np.max(np.abs(angles)) < 5
    assert (shifts.std(axis=0) > 0.3).all()


@pytest.mark.parametrize("seed", range(3))
def test_strands_fill_their_wire_without_lying_on_each_other(seed: int) -> None:
    for wire in make_part(np.random.default_rng(seed)).wires:
        places, radii = wire.strands[:, :2] - wire.centre, wire.strands[:, 2]
        assert np.hypot(*places.T).max() < BORE * WIRE_RADIUS
        assert (radii**2).sum() > 0.8 * (BORE * WIRE_RADIUS) ** 2
        apart = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1))
        touching = radii[:, None] + radii[None]
        pairs = np.triu_indices(len(places), 1)
        assert (apart / touching)[pairs].min() > 0.6
        at_random = np.random.default_rng(seed).permutation(places[:, 0])
        loose = np.hypot(*(at_random[:, None] - at_random[None], places[:, 1, None] - places[:, 1]))
        assert (loose / touching)[pairs].min() < 0.6  # the control


@pytest.mark.parametrize("width", [0.0, 0.05])
def test_a_mark_shows_where_its_points_are(width: float) -> None:
    scene, part = make_scene(np.random.default_rng(4), SIZE), make_part(np.random.default_rng(5))
    points = np.array([[0.2, 0.1], [0.4, 0.1], [0.4, 0.3], [0.2, 0.3]], np.float32)
    marked = replace(part, marks=(Mark(points, (1.0, 0.0, 1.0), width=width),))
    change = np.abs(draw(scene, marked) - draw(scene, part)).max(axis=2)
    ys, xs = np.nonzero(change > 0.05)
    left_top, right_bottom = scene.to_pixels(points[[0, 2]]) / 2  # the canvas has twice the size
    np.testing.assert_allclose([xs.min(), ys.min()], left_top, atol=2.5)
    np.testing.assert_allclose([xs.max(), ys.max()], right_bottom, atol=2.5)
    middle_x, middle_y = np.round((left_top + right_bottom) / 2).astype(int)
    assert (change[middle_y, middle_x] > 0.05) == (width == 0)  # filled, or open like a stroke
