"""A fake artifact, its frames, and what a server says of its model."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from destseg_deploy import ServerOptions, load
from destseg_deploy.predictor import Predictor
from destseg_deploy.spec import FileRecord, ModelSpec, Threshold

FRAMES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)

METADATA = {
    "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 32, 32, 3]}],
    "outputs": [
        {"name": "anomaly_map", "datatype": "FP32", "shape": [-1, 32, 32]},
        {"name": "score", "datatype": "FP32", "shape": [-1, 1]},
    ],
}


def write_artifact(path: Path, spec: ModelSpec, content: bytes = b"a model") -> Path:
    """Write a file that no runtime reads, with its spec."""
    path.write_bytes(content)
    threshold = Threshold(0.5, 0.6, "made up", 9, 0.1)
    replace(spec, artifact=FileRecord.of(path), threshold=threshold).write(path)
    return path


def opened(artifact: Path, url: str, **more: object) -> Predictor:
    return load(artifact, options=ServerOptions(url=url, **more))
