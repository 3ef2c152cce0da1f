"""Small defects for large pictures: marks of a few pixels on insulation or sheath.

A defect of ``defects.py`` is as large a share of the part at every size of the picture. The length
of these is in pixels of the picture, so that they vanish when a large picture is shrunk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from destseg_deploy.data.sample.cable import BORE, WIRE_RADIUS, Floats, Mark, Part
from destseg_deploy.data.sample.defects import blob, direction, pick_wire

_SHEATH_MIDDLE = 0.795  # radius half way between the sheath's two edges, in part coordinates


def part_length(rng: np.random.Generator, pixels: tuple[int, int], size: int) -> float:
    """Draw a length in pixels and return it in part coordinates.

    Args:
        rng: Generator of the length.
        pixels: Smallest and largest length.
        size: Width of the picture in pixels, which is 2 in part coordinates.
    """
    return float(rng.uniform(*pixels)) * 2 / size


def _place(rng: np.random.Generator, part: Part) -> Floats:
    """Return a point (2,) on a wire's insulation or on the sheath, where the normal part is even.

    Between the strands, which shine and have gaps, nobody would see a mark of this size.
    """
    towards = direction(rng.uniform(0, 2 * np.pi))
    if rng.random() < 0.4:
        return _SHEATH_MIDDLE * towards
    _, wire = pick_wire(rng, part)
    return np.asarray(wire.centre + WIRE_RADIUS * (1 + BORE) / 2 * towards, np.float32)


def _pit(rng: np.random.Generator, part: Part, length: float) -> Part:
    """Leave a dark pit with a bright rim; the length is the rim's diameter."""
    at, tone = _place(rng, part), rng.uniform(0.75, 0.95)
    rim = Mark(blob(rng, at, length / 2, 0.1), (tone, tone, tone), rng.uniform(0.7, 1))
    pit = Mark(blob(rng, at, 0.3 * length, 0.1), (0.05, 0.05, 0.05), rng.uniform(0.8, 1))
    return replace(part, marks=(rim, pit))


def _nick(rng: np.random.Generator, part: Part, length: float) -> Part:
    """Scratch a short bright line, a quarter as wide as it is long."""
    at, along = _place(rng, part), direction(rng.uniform(0, 2 * np.pi))
    # The round ends of the stroke add its width to the length.
    reach = np.array([[-0.375], [0.375]], np.float32) * length
    tone = rng.uniform(0.75, 0.95)
    stroke = Mark(at + reach * along, (tone, tone, tone), rng.uniform(0.8, 1), width=0.25 * length)
    return replace(part, marks=(stroke,))


SMALL_MAKERS: Mapping[str, Callable[[np.random.Generator, Part, float], Part]] = {
    "pit": _pit,
    "nick": _nick,
}
"""Defect type -> what makes it, from a normal part and a length in part coordinates."""
