"""The part of the sample category: a three-wire cable, described first and then drawn.

`make_part` and `make_scene` choose all that varies from one normal picture to the next, but for the
sensor's noise: how the wires lie and are coloured, pose, light, the traces of the cut, focus.
`draw` chooses nothing, so two parts in one scene give pictures that differ only where the parts do.

Part coordinates: x right, y down, origin in the middle, half the width of the image is 1. A picture
is drawn on a canvas of N x N pixels, twice its size, and then reduced.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import EllipsisType

import cv2
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Rgb = tuple[float, float, float]

COPPER: Rgb = (0.80, 0.47, 0.29)
WIRE_RADIUS = 0.325  # in part coordinates
BORE = 0.67  # radius of the copper bundle, as a fraction of the wire's

_OVERSAMPLE = 2
_SHEATH, _HOLLOW = 0.86, 0.73  # radii, in part coordinates
_STRANDS = 44  # in each wire
_GOLDEN_ANGLE = 2.39996  # radians
_INSULATION: tuple[Rgb, ...] = ((0.21, 0.47, 0.27), (0.19, 0.33, 0.61), (0.47, 0.34, 0.26))


@dataclass(frozen=True, eq=False)
class Wire:
    """One insulated wire, in part coordinates."""

    centre: Floats  # (2,)
    colour: Floats  # (3,) RGB in [0, 1]
    wobble: Floats  # (2, 3) amplitude and phase of harmonics 2..4 of the outline
    strands: Floats  # (S, 7): x, y, radius, brightness, tilt x, tilt y, glint


@dataclass(frozen=True, eq=False)
class Mark:
    """A painted area (`width` 0) or stroke on top of the part; lengths in part coordinates."""

    points: Floats  # (P, 2)
    colour: Rgb
    opacity: float = 1.0
    width: float = 0.0
    blur: float = 0.0
    patchy: float = 0.0  # share of the opacity that follows the surface texture


@dataclass(frozen=True, eq=False)
class Part:
    """A cable. Wires, then marks, are drawn in their order: the last one lies on top."""

    wires: tuple[Wire, ...]
    sheath: Floats  # (2, 3) wobble of the outline
    marks: tuple[Mark, ...] = ()  # a normal part has none


@dataclass(frozen=True, eq=False)
class Scene:
    """Camera, light and surface: all that a normal and a defective picture share."""

    size: int
    scale: float  # canvas pixels per unit of part coordinates
    pose: Floats  # (2, 3) part coordinates to canvas pixels
    light: Floats  # (2,) unit vector, in the image, towards the light
    gain: Floats  # (3, N, N) illumination and white balance
    cloud: Floats  # (N, N) slow surface texture, about N(0, 1)
    blade: Floats  # (N, N) parallel traces of the cut, about N(0, 1)
    grain: Floats  # (N, N) fine surface texture, about N(0, 1)
    defocus: float  # Gaussian sigma in image pixels

    def to_pixels(self, points: Floats) -> Floats:
        """Return points (..., 2) of the part as canvas pixels."""
        return np.asarray(points @ self.pose[:, :2].T + self.pose[:, 2], np.float32)


def _wobble(rng: np.random.Generator, amplitude: float) -> Floats:
    """Return (2, 3): amplitude and phase of harmonics 2..4, the higher the weaker."""
    harmonics = np.arange(2, 5)
    size = rng.normal(0, amplitude, 3) / harmonics
    return np.stack([size, rng.uniform(0, 2 * np.pi, 3)]).astype(np.float32)


def _pack_strands(rng: np.random.Generator, radius: float) -> Floats:
    """Return (S, 7) strands packed at random in a disc, by letting random points repel.

    The spiral start makes the density even; the repulsion keeps strands from overlapping.
    """
    turn = np.arange(_STRANDS) * _GOLDEN_ANGLE + rng.uniform(0, 2 * np.pi)
    reach = radius * np.sqrt((np.arange(_STRANDS) + 0.5) / _STRANDS)
    points = np.stack([reach * np.cos(turn), reach * np.sin(turn)], axis=1)
    points += rng.normal(0, 0.09 * radius, points.shape)
    pitch = radius * 1.84 / math.sqrt(_STRANDS)
    for _ in range(20):
        apart = points[:, None] - points[None]
        distance = np.hypot(apart[..., 0], apart[..., 1]) + 1e-6
        push = np.clip(pitch - distance, 0, None) / distance * 0.25
        points += (apart * push[..., None]).sum(axis=1)
        points *= np.minimum(1, 0.93 * radius / np.hypot(*points.T))[:, None]
    strands = np.empty((_STRANDS, 7), np.float32)
    strands[:, :2] = points
    strands[:, 2] = pitch * 0.5 * rng.normal(1.12, 0.03, _STRANDS)
    strands[:, 3] = np.clip(rng.normal(0.84, 0.16, _STRANDS), 0.45, 1.2)
    strands[:, 4:6] = rng.normal(0, 0.25, (_STRANDS, 2))
    strands[:, 6] = rng.uniform(0, 1, _STRANDS) ** 3
    return strands


def _make_wire(rng: np.random.Generator, angle: float, colour: Rgb) -> Wire:
    """Return a wire that lies at an angle about the middle of the part."""
    centre = 0.385 * np.array([np.cos(angle), np.sin(angle)]) + rng.normal(0, 0.008, 2)
    strands = _pack_strands(rng, WIRE_RADIUS * BORE)
    strands[:, :2] += centre
    tint = np.asarray(colour) * rng.normal(1, 0.05) + rng.normal(0, 0.012, 3)
    wobble = _wobble(rng, 0.02)
    return Wire(centre.astype(np.float32), tint.astype(np.float32), wobble, strands)


def make_part(rng: np.random.Generator) -> Part:
    """Return a normal part: wires in a triangle, the first at the top, colours in a fixed order."""
    angles = [2 * np.pi * k / 3 - np.pi / 2 for k in range(3)]
    wires = [_make_wire(rng, *pair) for pair in zip(angles, _INSULATION, strict=True)]
    return Part(tuple(wires), _wobble(rng, 0.012))


def _noise(rng: np.random.Generator, n: int, rows: int, columns: int) -> Floats:
    """Return (n, n) smooth noise, about N(0, 1), from ``rows`` x ``columns`` independent values."""
    grid = rng.standard_normal((rows, columns), np.float32)
    return np.asarray(cv2.resize(grid, (n, n), interpolation=cv2.INTER_CUBIC), np.float32)


def _make_pose(rng: np.random.Generator, n: int) -> npt.NDArray[np.float64]:
    """Return (2, 3): part coordinates to canvas pixels, slightly turned, scaled and shifted."""
    half = n / 2
    pose = cv2.getRotationMatrix2D((0, 0), rng.uniform(-4, 4), half * rng.uniform(0.98, 1.02))
    pose[:, 2] = half - 0.5 + rng.uniform(-0.025, 0.025, 2) * half
    return np.asarray(pose, np.float64)


def _make_light(rng: np.random.Generator, n: int) -> tuple[Floats, Floats]:
    """Return the direction of the light (2,), and its gain (3, n, n): a slope and vignetting."""
    towards = math.radians(rng.uniform(-150, -100))
    light = np.array([math.cos(towards), math.sin(towards)], np.float32)
    y, x = np.mgrid[-1 : 1 : n * 1j, -1 : 1 : n * 1j].astype(np.float32)
    slope = rng.uniform(0.02, 0.13) * (x * light[0] + y * light[1])
    gain = rng.normal(1, 0.04) * (1 + slope - 0.10 * (x * x + y * y))
    balance = _rgb(rng.normal(1, 0.015, 3).astype(np.float32))
    return light, gain.astype(np.float32) * balance


def _make_blade_traces(rng: np.random.Generator, size: int, n: int) -> Floats:
    """Return (n, n) parallel streaks, turned by a chance angle."""
    traces = _noise(rng, n, size, 6) * 0.7 + _noise(rng, n, size // 3, 3)
    turn = cv2.getRotationMatrix2D((n / 2, n / 2), rng.uniform(15, 45), 1.5)
    turned = cv2.warpAffine(traces, turn, (n, n), borderMode=cv2.BORDER_REFLECT)
    return np.asarray(turned, np.float32)


def make_scene(rng: np.random.Generator, size: int) -> Scene:
    """Return the camera, light and surface of a picture of size x size pixels."""
    n = size * _OVERSAMPLE  # the order of the calls below decides which picture a seed gives
    pose = _make_pose(rng, n)
    light, gain = _make_light(rng, n)
    blade = _make_blade_traces(rng, size, n)
    return Scene(
        size=size,
        scale=float(np.hypot(pose[0, 0], pose[1, 0])),
        pose=pose.astype(np.float32),
        light=light,
        gain=gain,
        cloud=_noise(rng, n, 7, 7) * 0.6 + _noise(rng, n, 28, 28) * 0.5,
        blade=blade,
        grain=_noise(rng, n, size, size),
        defocus=rng.uniform(0.35, 0.75),
    )


@dataclass(frozen=True, eq=False)
class _Disc:
    """A disc on the canvas, cropped to its surroundings of (h, w) canvas pixels."""

    window: tuple[EllipsisType, slice, slice]
    x: Floats  # (1, w) from the centre, in radii
    y: Floats  # (h, 1)
    rho: Floats  # (h, w) distance from the centre, 1 on the outline
    edge: float  # width of the outline's slope, in radii

    def paint(self, canvas: Floats, colour: Floats, *, inside: float = 1.0) -> None:
        """Blend a colour, (3, 1, 1) or (3, h, w), into the canvas where rho < inside."""
        alpha = np.clip((inside - self.rho) / self.edge + 0.5, 0, 1)
        canvas[self.window] += alpha * (colour - canvas[self.window])

    def facing(self, direction: Floats, *, inside: float = 1.0) -> Floats:
        """Return (h, w): how much a bevel at the outline faces a (2,) direction, in [-1, 1]."""
        rho = self.rho / inside
        sharp = np.minimum(rho, 1) ** 12 / np.maximum(self.rho, 0.05)
        return np.asarray((self.x * direction[0] + self.y * direction[1]) * sharp, np.float32)


def _place_disc(
    scene: Scene, centre: Floats, radius: float, wobble: Floats | None = None, soft: float = 0.0
) -> _Disc:
    """Return an antialiased disc; `soft` is the width of its edge in radii."""
    n = scene.grain.shape[0]
    (cx, cy), r = scene.to_pixels(centre).tolist(), radius * scene.scale
    reach = r * (1.08 + soft) + 2
    x0, x1 = max(0, int(cx - reach)), min(n, int(cx + reach))
    y0, y1 = max(0, int(cy - reach)), min(n, int(cy + reach))
    x = (np.arange(x0, x1, dtype=np.float32)[None] - cx) / r
    y = (np.arange(y0, y1, dtype=np.float32)[:, None] - cy) / r
    rho = np.hypot(x, y)
    if wobble is not None:
        theta = np.arctan2(y, x)
        for k, (amplitude, phase) in enumerate(wobble.T, start=2):
            rho *= 1 - amplitude * np.cos(k * theta + phase)
    return _Disc((..., slice(y0, y1), slice(x0, x1)), x, y, rho, max(soft, 1 / r))


def _rgb(colour: Rgb | Floats) -> Floats:
    """Return a colour as (3, 1, 1), to be spread over a canvas."""
    return np.asarray(colour, np.float32)[:, None, None]


def _surface(scene: Scene, disc: _Disc, blade: float, cloud: float) -> Floats:
    """Return (h, w): the brightness of a cut face, about 1."""
    window = disc.window
    shade = 1 + 0.05 * scene.grain[window]
    shade += blade * scene.blade[window]
    shade += cloud * scene.cloud[window]
    return shade


def _draw_body(scene: Scene, part: Part, canvas: Floats) -> None:
    """Draw the shadow on the table, the sheath, and its hollow filled with dark compound."""
    shadow = _place_disc(scene, -0.05 * scene.light, _SHEATH * 1.02, soft=0.16)
    shadow.paint(canvas, _rgb((0.05, 0.05, 0.055)))
    disc = _place_disc(scene, np.zeros(2, np.float32), _SHEATH, part.sheath)
    hollow = _HOLLOW / _SHEATH
    grey = _surface(scene, disc, 0.05, 0.03) + 0.22 * disc.facing(scene.light)
    disc.paint(canvas, _rgb((0.56, 0.57, 0.57)) * grey)
    grey = _surface(scene, disc, 0.03, 0.12) - 0.5 * disc.facing(scene.light, inside=hollow)
    disc.paint(canvas, _rgb((0.30, 0.30, 0.31)) * grey, inside=hollow)


def _draw_wire(scene: Scene, wire: Wire, canvas: Floats) -> None:
    """Draw a wire's shadow, its insulation, and the strands in its dark bore."""
    shadow = _place_disc(scene, wire.centre - 0.02 * scene.light, WIRE_RADIUS * 1.03, soft=0.18)
    shadow.paint(canvas, _rgb((0.10, 0.10, 0.10)))
    disc = _place_disc(scene, wire.centre, WIRE_RADIUS, wire.wobble)
    shade = _surface(scene, disc, 0.09, 0.05) + 0.35 * disc.facing(scene.light)
    disc.paint(canvas, _rgb(wire.colour) * shade)
    disc.paint(canvas, _rgb((0.15, 0.095, 0.065)), inside=BORE)
    for strand in wire.strands:
        _draw_strand(scene, strand, canvas)


def _draw_strand(scene: Scene, strand: Floats, canvas: Floats) -> None:
    """Draw the cut end of one strand: a tilted facet with a dark rim, and a glint on some."""
    _, _, radius, brightness, tilt_x, tilt_y, glint = strand.tolist()
    disc = _place_disc(scene, strand[:2], radius)
    x, y = disc.x, disc.y
    facet = brightness * (1 + tilt_x * x + tilt_y * y + 0.15 * disc.facing(scene.light))
    facet *= 1 - 0.45 * np.minimum(disc.rho, 1) ** 7
    facet += 0.07 * scene.grain[disc.window] + 0.05 * scene.blade[disc.window]
    spot = (x - 2 * tilt_x) ** 2 + (y - 2 * tilt_y) ** 2
    shine = 0.7 * glint * np.exp(-2.5 * spot)
    disc.paint(canvas, _rgb(COPPER) * facet + _rgb((1.0, 0.93, 0.8)) * shine)


def _draw_mark(scene: Scene, mark: Mark, canvas: Floats) -> None:
    """Blend one mark, drawn with 1/16 pixel vertices."""
    cover = np.zeros(canvas.shape[1:], np.uint8)
    vertices = [np.round(scene.to_pixels(mark.points) * 16).astype(np.int32)]
    if mark.width:
        thickness = max(1, round(mark.width * scene.scale))
        cv2.polylines(cover, vertices, False, 255, thickness, cv2.LINE_AA, 4)
    else:
        cv2.fillPoly(cover, vertices, 255, cv2.LINE_AA, 4)
    alpha = cover.astype(np.float32) * (mark.opacity / 255)
    if mark.blur:
        blurred = cv2.GaussianBlur(alpha, (0, 0), mark.blur * scene.scale)
        alpha = np.asarray(blurred, np.float32)
    texture = np.clip(0.5 + 0.35 * scene.cloud + 0.15 * scene.grain, 0, 1)
    alpha *= 1 - mark.patchy * texture
    canvas += alpha * (_rgb(mark.colour) * (1 + 0.05 * scene.grain) - canvas)


def draw(scene: Scene, part: Part) -> Floats:
    """Return the picture before sensor noise: float32 (size, size, 3) RGB in [0, 1]."""
    texture = 1 + 0.10 * scene.cloud + 0.06 * scene.grain
    canvas = _rgb((0.150, 0.152, 0.160)) * texture  # (3, N, N)
    _draw_body(scene, part, canvas)
    for wire in part.wires:
        _draw_wire(scene, wire, canvas)
    for mark in part.marks:
        _draw_mark(scene, mark, canvas)
    lit = np.ascontiguousarray((canvas * scene.gain).transpose(1, 2, 0))
    soft = cv2.GaussianBlur(lit, (0, 0), scene.defocus * _OVERSAMPLE)
    small = cv2.resize(soft, (scene.size, scene.size), interpolation=cv2.INTER_AREA)
    return np.asarray(np.clip(small, 0, 1), np.float32)
