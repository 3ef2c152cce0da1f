"""The contract written as ``.json`` beside every artifact.

It is the only thing that training, export, runtimes and C++ hosts share. Thresholds are here and
not in the graph, so that they can be changed after the export. ``destseg_deploy/spec.schema.json``
is the same contract as a JSON Schema.
"""

from destseg_deploy.spec.model import ModelSpec, default_top_k, other_scores, spec_path
from destseg_deploy.spec.parts import (
    BY_HAND,
    IMAGENET_MEAN,
    IMAGENET_STD,
    MAX_BATCH,
    MAX_CALL_BYTES,
    MAX_NETWORK_SIDE,
    MAX_SIDE,
    BatchRange,
    FileRecord,
    InputSpec,
    NetworkSpec,
    OutputSpec,
    Threshold,
    exceeds,
    is_number,
    verdicts,
)
from destseg_deploy.spec.records import (
    Accuracy,
    Budget,
    EngineRecord,
    FusionRecord,
    HalfRecord,
    ParityRecord,
    QuantizationRecord,
    TeacherRecord,
    TrainingRecord,
)
from destseg_deploy.spec.region import RegionSpec
from destseg_deploy.spec.tiling import (
    TileGrid,
    TilingSpec,
    blend_weights,
    tile_positions,
    working_size,
)
from destseg_deploy.spec.writing import (
    check_output,
    name_lost_threshold,
    settle_threshold,
    with_own_threshold,
    writing,
)

__all__ = [
    "BY_HAND",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "MAX_BATCH",
    "MAX_CALL_BYTES",
    "MAX_NETWORK_SIDE",
    "MAX_SIDE",
    "Accuracy",
    "BatchRange",
    "Budget",
    "EngineRecord",
    "FileRecord",
    "FusionRecord",
    "HalfRecord",
    "InputSpec",
    "ModelSpec",
    "NetworkSpec",
    "OutputSpec",
    "ParityRecord",
    "QuantizationRecord",
    "RegionSpec",
    "TeacherRecord",
    "Threshold",
    "TileGrid",
    "TilingSpec",
    "TrainingRecord",
    "blend_weights",
    "check_output",
    "default_top_k",
    "exceeds",
    "is_number",
    "name_lost_threshold",
    "other_scores",
    "settle_threshold",
    "spec_path",
    "tile_positions",
    "verdicts",
    "with_own_threshold",
    "working_size",
    "writing",
]
