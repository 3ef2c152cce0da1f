"""Textures on the training device: each is decoded at its first use and then kept.

Two batches that request the same new texture before either is taken may both decode it. A texture
that is stored is never decoded again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from destseg_deploy.data.textures import Textures

CAPACITY_BYTES = 2 << 30
"""Room for all 5,640 textures of DTD at 256 x 256 pixels (1.1 GB). Textures that do not fit are
decoded at each use."""

Read = Callable[[int], NDArray[np.uint8]]
Fetch = Callable[[], NDArray[np.uint8]]
Submit = Callable[[Read, int], Fetch]
"""Starts a decoding now or later. The function that it returns waits for the texture."""


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
    """Keeps textures as uint8 on a device and hands them out by number."""

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
