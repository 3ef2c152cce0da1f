"""The defect types of the sample category: each turns a normal cable into a defective one.

A maker takes a normal part and returns another, with wires or strands changed or gone, or with
marks on top. Size and strength are drawn from ranges wide enough that each type has defects that
are easy to see and some that are hard. Lengths are in part coordinates (see cable.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from destseg_deploy.data.sample.cable import (
    BORE,
    COPPER,
    WIRE_RADIUS,
    Floats,
    Mark,
    Part,
    Rgb,
    Wire,
)


def blob(rng: np.random.Generator, centre: Floats, radius: float, rough: float) -> Floats:
    """Return (48, 2) points of an irregular closed outline."""
    turn = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    harmonics = np.arange(1, 7)[:, None]
    phase = rng.uniform(0, 2 * np.pi, (6, 1))
    waves = rng.normal(0, rough, (6, 1)) / harmonics * np.cos(harmonics * turn + phase)
    reach = radius * np.clip(1 + waves.sum(axis=0), 0.4, 2)
    around = np.stack([reach * np.cos(turn), reach * np.sin(turn)], axis=1)
    return np.asarray(centre + around, np.float32)


def direction(angle: float) -> Floats:
    """Return the unit vector (2,) at an angle in radians."""
    return np.array([math.cos(angle), math.sin(angle)], np.float32)


def pick_wire(rng: np.random.Generator, part: Part) -> tuple[int, Wire]:
    """Return the index of a wire, and the wire."""
    k = int(rng.integers(len(part.wires)))
    return k, part.wires[k]


def _with_wire(part: Part, k: int, wire: Wire) -> Part:
    """Return the part with another wire in place of wire k."""
    return replace(part, wires=(*part.wires[:k], wire, *part.wires[k + 1 :]))


def _outermost(wire: Wire, angle: float, count: int) -> npt.NDArray[np.intp]:
    """Return the indices of the strands that lie furthest towards an angle."""
    return np.argsort((wire.strands[:, :2] - wire.centre) @ direction(angle))[-count:]


def _bend_wire(rng: np.random.Generator, part: Part) -> Part:
    """Bend one to four strands out of their wire, over the insulation."""
    k, wire = pick_wire(rng, part)
    angle = rng.uniform(0, 2 * np.pi)
    bent = _outermost(wire, angle, int(rng.integers(1, 5)))
    marks: tuple[Mark, ...] = ()
    for x, y, radius, *_ in wire.strands[bent]:
        length, bow = rng.uniform(0.12, 0.34), rng.uniform(-0.5, 0.5)
        t = np.linspace(0, 1, 12, dtype=np.float32)[:, None]
        way = np.concatenate([np.cos(angle + bow * t), np.sin(angle + bow * t)], axis=1)
        points = np.array([x, y], np.float32) + length * t * way
        marks += _lying_strand(points, radius, rng.uniform(0.75, 1.05))
    left = replace(wire, strands=np.delete(wire.strands, bent, axis=0))
    return replace(_with_wire(part, k, left), marks=marks)


def _lying_strand(points: Floats, radius: float, brightness: float) -> tuple[Mark, ...]:
    """Return the marks of a strand seen from the side: shadow, dark flanks, copper, highlight."""
    r, g, b = (brightness * c for c in COPPER)
    return (
        Mark(points + 0.012, (0.06, 0.05, 0.05), 0.6, 2.2 * radius, 0.012),
        Mark(points, (0.6 * r, 0.6 * g, 0.6 * b), 1.0, 1.9 * radius),
        Mark(points, (r, g, b), 1.0, 1.1 * radius),
        Mark(points - 0.004, (1.0, 0.85, 0.7), 0.6, 0.4 * radius, 0.004),
    )


def _swap_wires(rng: np.random.Generator, part: Part) -> Part:
    """Exchange the insulation colours of two wires."""
    a, b = rng.choice(len(part.wires), 2, replace=False)
    one, two = part.wires[a], part.wires[b]
    part = _with_wire(part, a, replace(one, colour=two.colour))
    return _with_wire(part, b, replace(two, colour=one.colour))


def _cut_insulation(rng: np.random.Generator, part: Part) -> Part:
    """Cut a notch into a wire's insulation, from a nick to a cut down to the copper."""
    _, wire = pick_wire(rng, part)
    angle, opening = rng.uniform(0, 2 * np.pi), rng.uniform(0.12, 0.55)
    depth = rng.uniform(0.5, 1.0) * WIRE_RADIUS * (1 - BORE)
    across = np.linspace(-1, 1, 11, dtype=np.float32)
    rough = rng.uniform(0.75, 1.0, 11) * (1 - np.abs(across) ** 1.5)
    rim = np.stack([direction(angle + opening * a) for a in across])
    lip = wire.centre + (WIRE_RADIUS * 1.02 - depth * rough)[:, None] * rim
    notch = np.concatenate([lip, wire.centre + 1.03 * WIRE_RADIUS * rim[::-1]])
    pale = rng.uniform(0.10, 0.5)
    r, g, b = (min(1.0, float(c) + pale * 0.4) for c in wire.colour)
    dark = Mark(notch.astype(np.float32), (0.12, 0.12, 0.125), rng.uniform(0.75, 1.0), blur=0.004)
    edge = Mark(lip.astype(np.float32), (r, g, b), pale + 0.3, 0.014, 0.004)
    return replace(part, marks=(dark, edge))


def _remove_strands(rng: np.random.Generator, part: Part) -> Part:
    """Take five to nineteen neighbouring strands out of a wire."""
    k, wire = pick_wire(rng, part)
    gone = _outermost(wire, rng.uniform(0, 2 * np.pi), int(rng.integers(5, 20)))
    return _with_wire(part, k, replace(wire, strands=np.delete(wire.strands, gone, axis=0)))


def _remove_wire(rng: np.random.Generator, part: Part) -> Part:
    """Leave one wire out; its socket in the filler remains."""
    k, wire = pick_wire(rng, part)
    socket = blob(rng, wire.centre, WIRE_RADIUS * 0.93, 0.03)
    depth = rng.uniform(0.55, 0.95)
    mark = Mark(socket, (0.09, 0.09, 0.095), depth, blur=0.015, patchy=0.25)
    return replace(part, wires=part.wires[:k] + part.wires[k + 1 :], marks=(mark,))


def _poke(rng: np.random.Generator, part: Part) -> Part:
    """Poke a small hole, with a raised rim, into a wire's insulation."""
    _, wire = pick_wire(rng, part)
    middle = WIRE_RADIUS * (1 + BORE) / 2
    centre = wire.centre + middle * direction(rng.uniform(0, 2 * np.pi))
    radius = rng.uniform(0.018, 0.045)
    r, g, b = (min(1.0, float(c) * 1.5 + 0.05) for c in wire.colour)
    rim = Mark(blob(rng, centre, radius * 1.5, 0.15), (r, g, b), rng.uniform(0.3, 0.8), blur=0.006)
    hole = Mark(
        blob(rng, centre, radius, 0.15), (0.06, 0.05, 0.05), rng.uniform(0.6, 1), blur=0.003
    )
    return replace(part, marks=(rim, hole))


def _scratch(rng: np.random.Generator, part: Part) -> Part:
    """Draw a thin, bowed scratch across the cut face."""
    angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 1.1)
    start = rng.uniform(0, 0.6) * direction(rng.uniform(0, 2 * np.pi))
    t = np.linspace(-0.5, 0.5, 24)[:, None]
    along, side = direction(angle), direction(angle + np.pi / 2)
    bow = rng.normal(0, 0.12) * t**2 + rng.normal(0, 0.002, t.shape)
    points = (start + length * (t * along + bow * side)).astype(np.float32)
    tone = rng.uniform(0.68, 0.9) if rng.random() < 0.7 else 0.08
    opacity, width = rng.uniform(0.5, 1.0), rng.uniform(0.011, 0.03)
    return replace(part, marks=(Mark(points, (tone, tone, tone), opacity, width, 0.003, 0.6),))


def _stain(rng: np.random.Generator, part: Part) -> Part:
    """Leave a soft stain of oil, rust or dust anywhere on the cable."""
    tones: tuple[Rgb, ...] = ((0.09, 0.07, 0.05), (0.42, 0.24, 0.10), (0.72, 0.70, 0.64))
    centre = rng.uniform(0, 0.65) * direction(rng.uniform(0, 2 * np.pi))
    outline = blob(rng, centre, rng.uniform(0.1, 0.28), 0.25)
    tone = tones[int(rng.integers(len(tones)))]
    opacity, blur = rng.uniform(0.45, 0.95), rng.uniform(0.008, 0.03)
    return replace(part, marks=(Mark(outline, tone, opacity, blur=blur, patchy=0.8),))


MAKERS: Mapping[str, Callable[[np.random.Generator, Part], Part]] = {
    "bent_wire": _bend_wire,
    "cable_swap": _swap_wires,
    "cut_insulation": _cut_insulation,
    "missing_strands": _remove_strands,
    "missing_wire": _remove_wire,
    "poke": _poke,
    "scratch": _scratch,
    "stain": _stain,
}
