"""A runtime without a network, for tests of what calls a predictor: brightness is anomalous.

>>> import numpy as np
>>> from destseg_deploy import Predictor
>>> from destseg_deploy.testing import FakeRuntime
>>> predictor = Predictor(FakeRuntime())
>>> predictor(np.full((32, 32, 3), 51, np.uint8)).score.tolist()
[0.20000000298023224]
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.data.resize import resize_plane
from destseg_deploy.evaluation.metrics import top_k_mean
from destseg_deploy.runtime.base import Prediction, check_images, check_open
from destseg_deploy.spec import FileRecord, InputSpec, ModelSpec, NetworkSpec, OutputSpec


class FakeRuntime:
    """Keeps the contract: the map is the red channel over 255, the score its top-k mean."""

    def __init__(self, spec: ModelSpec | None = None) -> None:
        """Take the shapes from a spec, or from ``fake_spec()``."""
        self.spec = spec or fake_spec()
        self._open: bool | None = True

    def infer(self, images: NDArray[np.uint8]) -> Prediction:
        """Score images; see ``Runtime.infer``."""
        check_open(self._open, self.spec)
        check_images(images, self.spec)
        red = images[..., 0].astype(np.float32) / np.float32(255)
        maps = np.stack([resize_plane(plane, self.spec.map_size) for plane in red])
        return Prediction(maps, top_k_mean(maps, self.spec.output.top_k))

    def close(self) -> None:
        """Refuse further work."""
        self._open = None


def fake_spec(height: int = 32, width: int = 32) -> ModelSpec:
    """Return a spec for images of a size, top-k 4, batches of 1 to 4, and no file behind it."""
    record = FileRecord("fake.onnx", "0" * 64)
    return ModelSpec(
        kind="onnx",
        category="fake",
        precision="fp32",
        input=InputSpec(height, width),
        network=NetworkSpec(height, width),
        output=OutputSpec(height, width, top_k=4),
        artifact=record,
        checkpoint=record,
    )
