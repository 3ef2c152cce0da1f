"""DeSTSeg on a production line: load an exported artifact, score frames.

>>> import destseg_deploy
>>> with destseg_deploy.load("artifacts/cable-fp32.onnx") as predictor:  # doctest: +SKIP
...     prediction = predictor(frames)  # uint8 (N, H, W, 3) RGB
...     prediction.score                # float32 (N,)

Importing this loads neither torch nor onnx; each back end is imported when it is opened.
"""

import destseg_deploy.at_start  # noqa: F401 - first, before anything that takes time
from destseg_deploy.data.defects import Defect
from destseg_deploy.data.pixel_formats import FrameFormat
from destseg_deploy.device import Device
from destseg_deploy.environment import VERSION as __version__
from destseg_deploy.errors import (
    BackendError,
    DataError,
    DataWarning,
    DestsegError,
    ExportError,
    JobError,
    MetricError,
    OutOfMemoryError,
    OutputError,
    ParityError,
    ShapeError,
    SpecError,
    TrainingError,
    WeightsError,
)
from destseg_deploy.loading import load
from destseg_deploy.options import (
    OpenVinoOptions,
    Options,
    OrtOptions,
    ServerOptions,
    TensorRtOptions,
    TorchOptions,
)
from destseg_deploy.predictor import Predictor
from destseg_deploy.runtime.base import Prediction, Runtime
from destseg_deploy.spec import ModelSpec, Threshold

__all__ = [
    "BackendError",
    "DataError",
    "DataWarning",
    "Defect",
    "DestsegError",
    "Device",
    "ExportError",
    "FrameFormat",
    "JobError",
    "MetricError",
    "ModelSpec",
    "OpenVinoOptions",
    "Options",
    "OrtOptions",
    "OutOfMemoryError",
    "OutputError",
    "ParityError",
    "Prediction",
    "Predictor",
    "Runtime",
    "ServerOptions",
    "ShapeError",
    "SpecError",
    "TensorRtOptions",
    "Threshold",
    "TorchOptions",
    "TrainingError",
    "WeightsError",
    "__version__",
    "load",
]
