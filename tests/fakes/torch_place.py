"""Where PyTorch runs in tests: on the host, in a fake GPU's memory and on its streams."""

from __future__ import annotations

import numpy as np
import torch

from destseg_deploy.models.fused import PlainLayers
from destseg_deploy.runtime.cuda.memory import array_at


class HostPlace:
    """See ``Place``. Work is queued on the fake stream, so it is done when someone waits."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        """Nothing is recorded yet."""
        self.recorded = 0

    def tensor(self, pointer: int, shape: tuple[int, ...], kind: str) -> torch.Tensor:
        """See ``Place.tensor``."""
        kind = np.dtype(kind)
        size = int(np.prod(shape)) * kind.itemsize
        return torch.from_numpy(array_at(pointer, size).view(kind).reshape(shape))

    def layers(self, gpu, kind) -> PlainLayers:
        """See ``Place.layers``."""
        return PlainLayers(kind)

    def run(self, stream, work) -> None:
        """See ``Place.run``."""
        stream.queue("torch", work)

    def record(self, stream, work):
        """See ``Place.record``."""
        self.recorded += 1
        stream.begin_capture()
        stream.queue("torch", work)
        graph = stream.end_capture()
        return lambda: stream.launch_graph(graph), graph.close
