"""DeSTSeg on a production line: load an exported artifact, score frames.

>>> import destseg_deploy
>>> with destseg_deploy.load("artifacts/cable-fp32.onnx") as predictor:  # doctest: +SKIP
...     prediction = predictor(frames)  # uint8 (N, H, W, 3) RGB
...     prediction.score                # float32 (N,)

Importing this loads neither torch nor onnx; each back end is imported when it is opened.
"""

from destseg_deploy.errors import (
    BackendError,
    DataError,
    DestsegError,
    ExportError,
    MetricError,
    ParityError,
    ShapeError,
    SpecError,
    TrainingError,
    WeightsError,
)
from destseg_deploy.predictor import EngineOptions, Predictor, load
from destseg_deploy.runtime.base import Prediction, Runtime
from destseg_deploy.runtime.cpu_options import OpenVinoOptions, OrtCpuOptions
from destseg_deploy.spec import ModelSpec, Threshold

__all__ = [
    "BackendError",
    "DataError",
    "DestsegError",
    "EngineOptions",
    "ExportError",
    "MetricError",
    "ModelSpec",
    "OpenVinoOptions",
    "OrtCpuOptions",
    "ParityError",
    "Prediction",
    "Predictor",
    "Runtime",
    "ShapeError",
    "SpecError",
    "Threshold",
    "TrainingError",
    "WeightsError",
    "load",
]
