"""Batches of training samples, made on the training device.

Images and textures stay there as uint8, and only the random choices travel. What a sample consists
of is decided by ``Sampler``, from the sample's number and the seed alone; ``synthesize_batch`` is
``data.synthesis`` for a whole batch at once. ``literal`` makes the same samples image by image, as
the reference does.

Perlin noise over a grid of any number of cells is a sum of products of a row's weight and a
column's weight. So the noise of a batch of grids of different sizes is two batched matrix products:

    noise = sqrt(2) * (V * dy) @ S @ U.T + sqrt(2) * V @ C @ (U * dx).T

V (H, 33) and U (W, 33) are the faded nearness of each pixel row and column to each grid line. dy
and dx are the signed distances to the grid lines, in cells. S and C are the sines and cosines of
the gradients; they are zero where a smaller grid has no gradient.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from destseg_deploy.data.synthesis import FILL, MAX_OCTAVE, NOISE_THRESHOLD, Draw, draw
from destseg_deploy.data.textures import Textures

BATCHES_AHEAD = 4
"""Batches whose textures are decoded while the device still trains on earlier ones."""

CAPACITY_BYTES = 2 << 30
"""Room for all 5,640 textures of DTD at 256 x 256 pixels (1.1 GB). Textures that do not fit are
decoded at each use."""

LINES = 2**MAX_OCTAVE + 1

Batch = tuple[Tensor, Tensor, Tensor]
"""Corrupted and clean images, float32 (N, 3, H, W) in [0, 255], and masks, float32 (N, 1, H, W)."""

Read = Callable[[int], NDArray[np.uint8]]
Fetch = Callable[[], NDArray[np.uint8]]
Submit = Callable[[Read, int], Fetch]
"""Starts a decoding now or later. The function that it returns waits for the texture."""


@dataclass(frozen=True, eq=False)
class SamplePlan:
    """What one sample consists of.

    Attributes:
        image: Number of the normal image.
        texture: Number of the texture.
        choices: The random choices of the synthesis.
    """

    image: int
    texture: int
    choices: Draw


@dataclass(frozen=True)
class Sampler:
    """An endless list of sample plans.

    Plan ``i`` depends only on the seed and ``i``. So a run is the same for any number of workers
    and wherever it is continued. All normal images are used once, in random order, before any is
    used again. There may be fewer images than a batch has samples.

    Attributes:
        images: Number of normal images.
        textures: Number of textures.
        rotation: One of ``synthesis.ROTATIONS``.
        seed: Seed of every random choice.
    """

    images: int
    textures: int
    rotation: str
    seed: int

    def plan(self, index: int) -> SamplePlan:
        """Return the plan of sample ``index``."""
        # The middle number keeps the two streams apart: 0 is the order of images, 1 a sample.
        rng = np.random.default_rng([self.seed, 1, index])
        epoch, position = divmod(index, self.images)
        order = np.random.default_rng([self.seed, 0, epoch]).permutation(self.images)
        texture = int(rng.integers(self.textures))
        return SamplePlan(int(order[position]), texture, draw(rng, self.rotation))


@dataclass(frozen=True)
class Request:
    """Textures that a batch will need.

    Attributes:
        numbers: The texture of each image.
        arriving: The textures that were not in the bank at the time of the request.
    """

    numbers: Sequence[int]
    arriving: dict[int, Fetch]


class TextureBank:
    """Keeps textures as uint8 on a device and hands them out by number.

    Each is decoded at its first use. Two batches that request the same new texture before either is
    taken may both decode it. A texture that is stored is never decoded again.
    """

    def __init__(
        self, textures: Textures, device: torch.device, capacity_bytes: int = CAPACITY_BYTES
    ) -> None:
        """Reserve memory for the textures; a CPU gives physical memory only to what is filled."""
        height, width = textures.size
        count = min(len(textures), capacity_bytes // (3 * height * width))
        self.textures = textures
        self.device = device
        self._store = torch.empty((count, 3, height, width), dtype=torch.uint8, device=device)
        self._slots: dict[int, int] = {}

    def request(self, numbers: Sequence[int], submit: Submit) -> Request:
        """Begin to decode the textures that are not stored yet."""
        missing = {number for number in numbers if number not in self._slots}
        return Request(numbers, {n: submit(self.textures.read, n) for n in sorted(missing)})

    def take(self, request: Request) -> Tensor:
        """Return a batch of textures, uint8 (N, 3, H, W); store the new ones that fit.

        Raises:
            DataError: If a texture cannot be read.
        """
        arrived = {n: f() for n, f in request.arriving.items() if n not in self._slots}
        passing = self._keep(arrived)
        slots = [self._slots.get(number, 0) for number in request.numbers]
        if not passing:
            return self._store[self._move(torch.tensor(slots))]
        known = self._store[self._move(torch.tensor(slots))] if len(self._store) else None
        taken = [
            passing[number] if number in passing or known is None else known[i]
            for i, number in enumerate(request.numbers)
        ]
        return torch.stack(taken)

    def _keep(self, arrived: dict[int, NDArray[np.uint8]]) -> dict[int, Tensor]:
        """Store the textures that fit; return the others."""
        if not arrived:
            return {}
        stacked = np.stack(list(arrived.values())).transpose(0, 3, 1, 2)
        moved = self._move(torch.from_numpy(np.ascontiguousarray(stacked)))
        first, free = len(self._slots), len(self._store) - len(self._slots)
        names = list(arrived)
        kept = names[:free]
        self._store[first : first + len(kept)] = moved[: len(kept)]
        self._slots.update({number: first + i for i, number in enumerate(kept)})
        return {number: moved[i] for i, number in enumerate(names) if i >= free}

    def _move(self, tensor: Tensor) -> Tensor:
        """Copy to the device; the host does not wait for the copy."""
        if self.device.type == "cpu":
            return tensor
        # Only a copy from pinned memory runs beside the host.
        return tensor.pin_memory().to(self.device, non_blocking=True)


class DeviceLoader:
    """Makes batches on the training device; the host never waits for the device."""

    def __init__(
        self,
        images: NDArray[np.uint8],
        bank: TextureBank,
        sampler: Sampler,
        *,
        batch_size: int,
        workers: int = 2,
    ) -> None:
        """Copy the images to the bank's device.

        Args:
            images: uint8 (M, H, W, 3), normal images.
            bank: Textures of the same size, on the training device.
            sampler: What each sample consists of.
            batch_size: Images per batch.
            workers: Threads that decode textures ahead; 0 decodes them when they are needed.
        """
        self.device = bank.device
        pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        self.images = pixels.to(self.device)
        self.bank = bank
        self.sampler = sampler
        self.batch_size = batch_size
        self.workers = workers

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield batches ``start`` to ``stop - 1``; each depends only on its number.

        Raises:
            DataError: If a texture cannot be read.
        """
        pool = ThreadPoolExecutor(self.workers) if self.workers else None
        # Without a pool the decoding is put off until the batch is made.
        submit: Submit = partial if pool is None else lambda *what: pool.submit(*what).result
        orders: deque[_Order] = deque()
        try:
            planned = start
            for step in range(start, stop):
                while planned < min(step + BATCHES_AHEAD, stop):
                    orders.append(self._order(planned, submit))
                    planned += 1
                yield self._make(orders.popleft())
        finally:
            # Also reached when the caller drops the generator. Textures being decoded are waited
            # for, queued ones are cancelled, and no thread outlives the run.
            if pool is not None:
                pool.shutdown(cancel_futures=True)

    def _order(self, step: int, submit: Submit) -> _Order:
        first = step * self.batch_size
        plans = [self.sampler.plan(first + i) for i in range(self.batch_size)]
        images = torch.tensor([plan.image for plan in plans])
        textures = self.bank.request([plan.texture for plan in plans], submit)
        return _Order(images, textures, stack_draws([plan.choices for plan in plans]))

    def _make(self, order: _Order) -> Batch:
        chosen = order.images
        if self.device.type != "cpu":
            # Only a copy from pinned memory runs without the host waiting for it.
            chosen = chosen.pin_memory().to(self.device, non_blocking=True)
        textures = self.bank.take(order.textures)
        return synthesize_batch(self.images[chosen], textures, order.draws.to(self.device))


@dataclass(frozen=True, eq=False)
class _Order:
    """A batch that is planned and whose textures are being decoded."""

    images: Tensor
    textures: Request
    draws: Draws


@dataclass(frozen=True, eq=False)
class Draws:
    """The random choices of a batch, as tensors that travel to the device together.

    Attributes:
        numbers: float32 (N, 7): cosine and sine of the image's turn and of the noise's, rows,
            columns, beta.
        gradients: float32 (N, 2, 33, 33): sines and cosines of the gradients, zero beyond the grid.
        turned: Whether any image is rotated.
    """

    numbers: Tensor
    gradients: Tensor
    turned: bool

    def to(self, device: torch.device) -> Draws:
        """Return them on a device; the host does not wait for the copy."""
        if device.type == "cpu":
            return self
        numbers, gradients = self.numbers.pin_memory(), self.gradients.pin_memory()
        return Draws(
            numbers.to(device, non_blocking=True),
            gradients.to(device, non_blocking=True),
            self.turned,
        )


def stack_draws(choices: Sequence[Draw]) -> Draws:
    """Return the choices of a batch as tensors."""
    numbers = np.empty((len(choices), 7), np.float32)
    gradients = np.zeros((len(choices), 2, LINES, LINES), np.float32)
    for i, one in enumerate(choices):
        image, noise = np.deg2rad(one.turn), np.deg2rad(one.noise_turn)
        rows, columns = one.angles.shape
        turns = (np.cos(image), np.sin(image), np.cos(noise), np.sin(noise))
        numbers[i] = (*turns, rows - 1, columns - 1, one.beta)
        gradients[i, 0, :rows, :columns] = np.sin(one.angles)
        gradients[i, 1, :rows, :columns] = np.cos(one.angles)
    turned = any(one.turn != 0 for one in choices)
    return Draws(torch.from_numpy(numbers), torch.from_numpy(gradients), turned)


def synthesize_batch(images: Tensor, textures: Tensor, draws: Draws) -> Batch:
    """Make a batch of training samples.

    Args:
        images: uint8 (N, 3, H, W), normal images. Larger ones are turned and then cut to their
            middle, as in ``synthesis.synthesize``.
        textures: uint8 (N, 3, H, W), the look of their anomalies.
        draws: The random choices, on the same device.

    Returns:
        The batch, within rounding of ``synthesis.synthesize`` image by image.
    """
    height, width = textures.shape[-2:]
    numbers = draws.numbers
    clean = images.float()
    if draws.turned:
        # Shifted by the fill colour, so that the zeros that a rotation brings in become grey. One
        # number serves all channels; a tensor would be copied to the GPU, and the host would wait.
        grey = FILL[0]
        clean = _turn(clean - grey, numbers[:, 0], numbers[:, 1]) + grey
    margin = (images.shape[-1] - width) // 2
    if margin > 0:
        clean = clean[..., margin : margin + height, margin : margin + width].contiguous()
    noise = perlin_batch(height, width, numbers[:, 4], numbers[:, 5], draws.gradients)
    mask = _turn(noise[:, None], numbers[:, 2], numbers[:, 3]) > NOISE_THRESHOLD
    beta = numbers[:, 6].view(-1, 1, 1, 1)
    blended = beta * clean + (1 - beta) * textures.float()
    return torch.where(mask, blended, clean), clean, mask.float()


def perlin_batch(
    height: int, width: int, rows: Tensor, columns: Tensor, gradients: Tensor
) -> Tensor:
    """Return Perlin noise (N, H, W) over grids of rows x columns cells; see ``synthesis.perlin``.

    Args:
        height: H.
        width: W.
        rows: float32 (N,), at most 32.
        columns: float32 (N,), at most 32.
        gradients: float32 (N, 2, 33, 33): sines and cosines, zero beyond the grid.
    """
    down, near_row = _grid_lines(height, rows)
    right, near_column = _grid_lines(width, columns)
    sines, cosines = gradients[:, 0], gradients[:, 1]
    noise = (near_row * down) @ sines @ near_column.mT
    noise = noise + near_row @ cosines @ (near_column * right).mT
    return 2**0.5 * noise


def _grid_lines(length: int, cells: Tensor) -> tuple[Tensor, Tensor]:
    """Return each pixel's signed distance to each grid line, in cells, and its faded nearness."""
    position = torch.arange(length, device=cells.device).view(1, -1, 1) * cells.view(-1, 1, 1)
    lines = torch.arange(LINES, device=cells.device)
    distance = position / length - lines  # (N, length, LINES)
    t = (1 - distance.abs()).clamp_min(0)
    return distance, t * t * t * (t * (t * 6 - 15) + 10)


def _turn(images: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate float (N, C, H, W) bilinearly about the centre, counter-clockwise, zero outside."""
    height, width = images.shape[-2:]
    y = torch.arange(height, device=images.device).view(1, -1, 1) - (height - 1) / 2
    x = torch.arange(width, device=images.device).view(1, 1, -1) - (width - 1) / 2
    cosine, sine = cosine.view(-1, 1, 1), sine.view(-1, 1, 1)
    # grid_sample's coordinates run from -1 to 1 between the outer edges of the corner pixels.
    across = (cosine * x - sine * y) * (2 / width)
    along = (sine * x + cosine * y) * (2 / height)
    grid = torch.stack([across, along], dim=-1)
    return functional.grid_sample(images, grid, align_corners=False)
