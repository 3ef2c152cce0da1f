"""Built-in textures: an anomaly source for training when no folder of texture photographs is there.

DeSTSeg pastes photographs of the Describable Textures Dataset (DTD) into normal images (paper,
section 3.1). These textures replace the photographs. They are generic patterns in random colours,
without any knowledge of inspected parts or defects, and vary less than photographs: use a folder of
photographs when you have one.

A texture is a field of values in [0, 1], drawn by one of the families and coloured by a random
palette.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

from destseg_deploy.errors import ShapeError

Floats = npt.NDArray[np.float32]
Field = Callable[[np.random.Generator, int], Floats]


# ---------------------------------------------------------------------------- ingredients


def _fractal(rng: np.random.Generator, size: int, cells: float, octaves: int = 4) -> Floats:
    """Return (size, size) noise in [0, 1]; the slowest octave has `cells` cells a side."""
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        count = min(size, round(cells * 2**octave) + 1)
        grid = rng.standard_normal((count, count), np.float32)
        smooth = cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)
        total += np.asarray(smooth, np.float32) / 2**octave
    return _stretch(total)


def _stretch(field: Floats) -> Floats:
    low, high = float(field.min()), float(field.max())
    return np.asarray((field - low) / max(high - low, 1e-6), np.float32)


def _grid(rng: np.random.Generator, size: int, low: float, high: float) -> tuple[Floats, Floats]:
    """Return x and y, each (size, size), in periods of a pattern: turned, stretched and warped.

    Between `low` and `high` periods fit into the side. Half of the grids bend.
    """
    periods = np.exp(rng.uniform(np.log(low), np.log(high)))
    angle, stretch = rng.uniform(0, np.pi), np.exp(rng.uniform(-0.4, 0.4))
    axis = np.linspace(-0.5, 0.5, size, dtype=np.float32) * periods
    x = axis[None] * np.cos(angle) + axis[:, None] * np.sin(angle)
    y = (axis[:, None] * np.cos(angle) - axis[None] * np.sin(angle)) * stretch
    x, y = x + rng.uniform(), y + rng.uniform()
    if rng.random() < 0.5:
        bend = rng.uniform(0.2, 1.2)
        x = x + bend * _fractal(rng, size, 2, 2)
        y = y + bend * _fractal(rng, size, 2, 2)
    return np.asarray(x, np.float32), np.asarray(y, np.float32)


def _edge(rng: np.random.Generator, wave: Floats) -> Floats:
    """Return a wave in [-1, 1] as [0, 1], anywhere between soft and hard-edged."""
    hardness = np.exp(rng.uniform(0, 3))
    return np.asarray(0.5 + 0.5 * np.tanh(hardness * wave), np.float32)


def _seeded_cells(rng: np.random.Generator, size: int) -> tuple[Floats, npt.NDArray[np.int32]]:
    """Return the distance to the nearest of 12 to 400 random points, and its number, per pixel."""
    count = int(np.exp(rng.uniform(np.log(12), np.log(400))))
    free = np.full((size, size), 255, np.uint8)
    rows, columns = rng.integers(size, size=(2, count))
    free[rows, columns] = 0
    distance, labels = cv2.distanceTransformWithLabels(
        free, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    return np.asarray(distance, np.float32), np.asarray(labels, np.int32)


# ------------------------------------------------------------------------------- families


def _stripes(rng: np.random.Generator, size: int) -> Floats:
    x, _ = _grid(rng, size, 3, 40)
    return _edge(rng, np.sin(2 * np.pi * x) + np.float32(rng.uniform(-0.6, 0.6)))


def _checks(rng: np.random.Generator, size: int) -> Floats:
    x, y = _grid(rng, size, 2, 20)
    return _edge(rng, np.sin(2 * np.pi * x) * np.sin(2 * np.pi * y))


def _zigzag(rng: np.random.Generator, size: int) -> Floats:
    x, y = _grid(rng, size, 3, 20)
    teeth = np.abs(x % 1 - 0.5) * np.float32(rng.uniform(0.6, 2.5))
    return _edge(rng, np.sin(2 * np.pi * (y + teeth)))


def _rings(rng: np.random.Generator, size: int) -> Floats:
    x, y = _grid(rng, size, 1, 4)
    radius = np.hypot(x, y) * np.float32(rng.uniform(2, 8))
    return _edge(rng, np.sin(2 * np.pi * radius))


def _blotches(rng: np.random.Generator, size: int) -> Floats:
    noise = _fractal(rng, size, rng.uniform(2, 12), int(rng.integers(2, 6)))
    return _edge(rng, (noise - np.median(noise)) * 2)


def _cells(rng: np.random.Generator, size: int) -> Floats:
    distance, labels = _seeded_cells(rng, size)
    tone = rng.random(int(labels.max()) + 1).astype(np.float32)[labels]
    share = np.float32(rng.uniform(0, 0.8))
    return np.asarray(tone * (1 - share) + _stretch(distance) * share, np.float32)


def _cracks(rng: np.random.Generator, size: int) -> Floats:
    """Dark seams between the cells of dried, crystalline or leathery ground."""
    _, labels = _seeded_cells(rng, size)
    shift = np.stack([_fractal(rng, size, 12, 3) for _ in range(2)]) * rng.uniform(4, 16)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    bent = cv2.remap(
        labels.astype(np.float32),
        x + shift[0],
        y + shift[1],
        cv2.INTER_NEAREST,
        borderMode=cv2.BORDER_REFLECT,
    )
    whole = (cv2.morphologyEx(bent, cv2.MORPH_GRADIENT, np.ones((2, 2))) == 0).astype(np.uint8)
    depth = np.asarray(cv2.distanceTransform(whole, cv2.DIST_L2, 3), np.float32)
    seam = np.clip(depth / np.float32(rng.uniform(1, 5)), 0, 1)
    return np.asarray(seam * (0.6 + 0.4 * _fractal(rng, size, 6, 3)), np.float32)


def _dots(rng: np.random.Generator, size: int) -> Floats:
    x, y = _grid(rng, size, 4, 24)
    across = np.hypot(x % 1 - 0.5, y % 1 - 0.5)
    sizes = rng.uniform(0.15, 0.5, (16, 16)).astype(np.float32)
    radius = sizes[np.floor(y).astype(np.intp) % 16, np.floor(x).astype(np.intp) % 16]
    return _edge(rng, (radius - across) * 3)


def _bubbles(rng: np.random.Generator, size: int) -> Floats:
    """Shaded discs of many sizes, one over another."""
    field = np.full((size, size), rng.uniform(0, 1), np.float32)
    count = int(rng.integers(40, 160))
    largest = size * rng.uniform(0.04, 0.15)
    for share in np.sort(rng.uniform(0.1, 1, count))[::-1]:
        r = max(2, int(share * largest))
        ball = np.hypot(*np.meshgrid(np.arange(-r, r + 1), np.arange(-r, r + 1))) / r
        row, column = rng.integers(-r, size, 2)
        top, left = max(row, 0), max(column, 0)
        ball = ball[top - row :, left - column :][: size - top, : size - left]
        area = field[top : top + ball.shape[0], left : left + ball.shape[1]]
        area[...] = np.where(ball < 1, rng.uniform(0, 0.4) + 0.6 * ball, area)
    return field


def _hatching(rng: np.random.Generator, size: int) -> Floats:
    """Short strokes in one to three directions."""
    sheet = np.zeros((size, size), np.uint8)
    for angle in rng.uniform(0, np.pi, int(rng.integers(1, 4))):
        reach = size * rng.uniform(0.03, 0.25) * np.array([np.cos(angle), np.sin(angle)])
        thickness = int(rng.integers(1, 4))
        for middle in rng.uniform(0, size, (int(rng.integers(60, 200)), 2)):
            one, two = np.round((middle - reach) * 16), np.round((middle + reach) * 16)
            ends = (one.astype(int).tolist(), two.astype(int).tolist())
            tone = int(rng.integers(90, 256))
            cv2.line(sheet, ends[0], ends[1], tone, thickness, cv2.LINE_AA, 4)
    return np.asarray(sheet / 255, np.float32)


def _gradient(rng: np.random.Generator, size: int) -> Floats:
    x, y = _grid(rng, size, 0.5, 1.5)
    ramp = x if rng.random() < 0.5 else np.hypot(x - 0.5, y - 0.5)
    return _stretch(ramp + np.float32(rng.uniform(0.1, 0.6)) * _fractal(rng, size, 8, 5))


def _grain(rng: np.random.Generator, size: int) -> Floats:
    """Fine noise, blurred along one axis more than along the other: grit, fur or brushed metal."""
    noise = rng.standard_normal((size, size), np.float32)
    across, along = rng.uniform(0.3, 1.5), np.exp(rng.uniform(-1, 2.7))
    if rng.random() < 0.5:
        across, along = along, across
    blurred = cv2.GaussianBlur(noise, (0, 0), sigmaX=along, sigmaY=across)
    return _stretch(np.asarray(blurred, np.float32))


def _weave(rng: np.random.Generator, size: int) -> Floats:
    """Two sets of threads, each over and under the other in turn."""
    x, y = _grid(rng, size, 5, 24)
    over = (np.floor(x) + np.floor(y)) % 2 == 0
    upright, lying = np.sin(np.pi * (x % 1)), np.sin(np.pi * (y % 1))
    dip = np.float32(rng.uniform(0.2, 0.7))
    one, two = upright * (1 - dip + dip * lying), lying * (1 - dip + dip * upright)
    tone = np.float32(rng.uniform(0.3, 1))
    return np.asarray(np.where(over, one, two * tone), np.float32)


def _marble(rng: np.random.Generator, size: int) -> Floats:
    """Veins: stripes displaced far by noise."""
    x, _ = _grid(rng, size, 1, 6)
    veins = np.sin(2 * np.pi * (x + np.float32(rng.uniform(1, 4)) * _fractal(rng, size, 3, 5)))
    return np.asarray(np.abs(veins) ** np.float32(rng.uniform(0.3, 1.5)), np.float32)


FAMILIES: tuple[Field, ...] = (
    _blotches,
    _bubbles,
    _cells,
    _checks,
    _cracks,
    _dots,
    _gradient,
    _grain,
    _hatching,
    _marble,
    _rings,
    _stripes,
    _weave,
    _zigzag,
)
"""Their order is part of what a seed draws."""


# --------------------------------------------------------------------------------- colour


def _palette(rng: np.random.Generator) -> Floats:
    """Return (256, 3) RGB in [0, 255]: two to four random colours and the way between them.

    The contrast is drawn too, from faint to full: real textures are seldom garish.
    """
    colours = rng.uniform(0, 255, (int(rng.integers(2, 5)), 3))
    if rng.random() < 0.5:
        grey = colours.mean(axis=1, keepdims=True)
        colours = grey + (colours - grey) * rng.uniform(0, 0.3)
    middle = colours.mean(axis=0)
    colours = np.clip(middle + (colours - middle) * rng.uniform(0.4, 1.6), 0, 255)
    stops = np.linspace(0, 255, len(colours))
    channels = [np.interp(np.arange(256), stops, channel) for channel in colours.T]
    return np.stack(channels, axis=1).astype(np.float32)


def procedural_texture(rng: np.random.Generator, size: int = 256) -> npt.NDArray[np.uint8]:
    """Return a random texture of a random family.

    Args:
        rng: The same state gives the same texture.
        size: Height and width, at least 16.

    Returns:
        uint8 (size, size, 3) RGB.

    Raises:
        ShapeError: If the size is too small.
    """
    if size < 16:
        raise ShapeError(f"size: {size}. Expected at least 16 pixels.")
    family = FAMILIES[int(rng.integers(len(FAMILIES)))]
    field = np.clip(family(rng, size), 0, 1)
    image = _palette(rng)[(field * 255).astype(np.uint8)]  # (size, size, 3)
    light = 1 + rng.uniform(0, 0.5) * (_fractal(rng, size, 2, 3) - 0.5)
    noise = rng.standard_normal((size, size, 1), np.float32) * rng.uniform(0, 10)
    lit = image * light[..., None] + noise
    return np.asarray(np.clip(lit, 0, 255), np.uint8)
