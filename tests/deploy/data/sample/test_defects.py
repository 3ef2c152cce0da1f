"""Each defect type changes the part as its name says, and leaves the part it was given alone."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict

import numpy as np
import pytest

from destseg_deploy.data.sample.cable import BORE, WIRE_RADIUS, Part, make_part
from destseg_deploy.data.sample.defects import MAKERS

SEEDS = range(6)


def normal_part() -> Part:
    return make_part(np.random.default_rng(0))


def make(defect: str, seed: int) -> Part:
    return MAKERS[defect](np.random.default_rng(seed), normal_part())


def strand_counts(part: Part) -> list[int]:
    return [len(wire.strands) for wire in part.wires]


@pytest.mark.parametrize("defect", MAKERS)
def test_a_maker_changes_a_copy(defect: str) -> None:
    part = normal_part()
    before = deepcopy(asdict(part))
    changed = MAKERS[defect](np.random.default_rng(1), part)
    np.testing.assert_equal(asdict(part), before)
    with pytest.raises(AssertionError):
        np.testing.assert_equal(asdict(changed), before)


@pytest.mark.parametrize("defect", MAKERS)
def test_defects_of_one_type_vary(defect: str) -> None:
    one, two = (asdict(make(defect, seed)) for seed in (0, 1))
    np.testing.assert_equal(asdict(make(defect, 0)), one)
    with pytest.raises(AssertionError):
        np.testing.assert_equal(two, one)


@pytest.mark.parametrize("seed", SEEDS)
def test_bent_strands_leave_their_wire_and_lie_on_top(seed: int) -> None:
    part = make("bent_wire", seed)
    gone = sum(strand_counts(normal_part())) - sum(strand_counts(part))
    assert 1 <= gone <= 4
    assert len(part.marks) == 4 * gone


@pytest.mark.parametrize("seed", SEEDS)
def test_swapped_wires_exchange_colours_alone(seed: int) -> None:
    normal, part = normal_part(), make("cable_swap", seed)
    before = [tuple(wire.colour) for wire in normal.wires]
    after = [tuple(wire.colour) for wire in part.wires]
    assert sorted(after) == sorted(before)
    assert sum(a != b for a, b in zip(after, before, strict=True)) == 2
    assert not part.marks
    for one, two in zip(normal.wires, part.wires, strict=True):
        np.testing.assert_array_equal(one.strands, two.strands)
        np.testing.assert_array_equal(one.centre, two.centre)


@pytest.mark.parametrize("seed", SEEDS)
def test_missing_strands_are_neighbours_at_the_border(seed: int) -> None:
    normal, part = normal_part(), make("missing_strands", seed)
    assert not part.marks
    lost = np.subtract(strand_counts(normal), strand_counts(part))
    (k,) = np.flatnonzero(lost)
    assert 5 <= lost[k] <= 19
    left = {tuple(strand) for strand in part.wires[k].strands}
    all_strands = normal.wires[k].strands
    gone = np.array([tuple(strand) not in left for strand in all_strands])
    places = all_strands[:, :2] - normal.wires[k].centre
    assert places[gone].std(axis=0).min() < places.std(axis=0).min()
    assert np.hypot(*places[gone].mean(axis=0)) > 0.4 * BORE * WIRE_RADIUS


@pytest.mark.parametrize("seed", SEEDS)
def test_a_missing_wire_leaves_its_socket(seed: int) -> None:
    normal, part = normal_part(), make("missing_wire", seed)
    assert len(part.wires) == len(normal.wires) - 1
    left = {tuple(wire.centre) for wire in part.wires}
    (gone,) = (wire for wire in normal.wires if tuple(wire.centre) not in left)
    (socket,) = part.marks
    np.testing.assert_allclose(socket.points.mean(axis=0), gone.centre, atol=0.02)


@pytest.mark.parametrize("defect", ["cut_insulation", "poke"])
@pytest.mark.parametrize("seed", SEEDS)
def test_insulation_is_damaged_between_the_copper_and_the_outside(defect: str, seed: int) -> None:
    part = make(defect, seed)
    damage = np.concatenate([mark.points for mark in part.marks])
    from_wires = [np.hypot(*(damage - wire.centre).T) for wire in part.wires]
    closest = min(from_wires, key=lambda distance: float(distance.max()))
    assert BORE * WIRE_RADIUS * 0.9 < closest.min()
    assert closest.max() < 1.1 * WIRE_RADIUS


@pytest.mark.parametrize("defect", ["scratch", "stain"])
@pytest.mark.parametrize("seed", SEEDS)
def test_marks_on_the_surface_stay_on_the_cable(defect: str, seed: int) -> None:
    part = make(defect, seed)
    (mark,) = part.marks
    assert strand_counts(part) == strand_counts(normal_part())
    assert np.hypot(*mark.points.mean(axis=0)) < 0.8
    assert (mark.width > 0) == (defect == "scratch")
