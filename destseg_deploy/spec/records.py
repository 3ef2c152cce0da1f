"""What is recorded about an artifact beside its contract: how it was made and what was measured.

Each class is one entry of ``ModelSpec``, which is None where there is nothing to record. A field
is None where the program that wrote the spec did not know it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SCHEMES = ("u8", "s8")
"""Types of quantised activations: uint8 for CPUs, int8 with zero point 0 for TensorRT."""
PRECISION_SOURCES = ("engine", "network")
"""Where the precision of an engine's layers was read."""

Scalar = int | float | str | None


@dataclass(frozen=True)
class Budget:
    """Largest absolute differences allowed between two answers; all values lie in [0, 1].

    Attributes:
        anomaly_map: Allowed for any pixel of any map.
        score: Allowed for any score.
        map_mean: Allowed for the mean over all pixels of all maps; 1 sets no limit of its own.
    """

    anomaly_map: float = 1e-4
    score: float = 1e-4
    map_mean: float = 1.0


@dataclass(frozen=True)
class ParityRecord:
    """What the comparison with the reference measured, as absolute differences in [0, 1].

    Attributes:
        compared: Name of the file whose answers were measured. For an engine that could not be
            run where it was built, this is the ``.onnx`` that it was built from.
        images: What the images were, in words.
        count: Number of images.
        map_max_abs: Largest difference of any map pixel.
        score_max_abs: Largest difference of any score.
        control: Largest map difference of an image to another one; that of the image that differs
            least. It is far larger than ``map_max_abs`` where the images can tell right from wrong.
        map_mean_abs: Mean difference of the map pixels.
        score_mean_abs: Mean difference of the scores.
        budget: The differences that were allowed.
        rounding: How the precision's rounding was reproduced, such as ``emulated fp16``; None
            where the file itself was run.
    """

    compared: str
    images: str
    count: int
    map_max_abs: float
    score_max_abs: float
    control: float
    map_mean_abs: float | None = None
    score_mean_abs: float | None = None
    budget: Budget | None = None
    rounding: str | None = None


@dataclass(frozen=True)
class FusionRecord:
    """Which fusions were applied to a graph, and how little its answers moved.

    Attributes:
        fusions: Names of the fusions that changed the graph, in the order they were applied.
        parity: The fused graph compared with the graph before.
        macs_before: Multiply-accumulate operations for one image before the fusions.
        macs_after: The same after them.
    """

    fusions: tuple[str, ...]
    parity: ParityRecord
    macs_before: int | None = None
    macs_after: int | None = None


@dataclass(frozen=True)
class HalfRecord:
    """What the conversion to fp16 or bf16 did.

    Attributes:
        convolutions: Number of convolutions in the graph.
        half_convolutions: How many of them compute in half precision.
        fp32_parts: Parts of the graph that stay in fp32.
        casts: Number of inserted casts.
        weights: Number of rounded weights.
        weights_zeroed: How many of them became 0.
        weights_subnormal: How many lost bits because they are too small for half.
        largest_tensor: Name of the tensor with the largest activation.
        largest_activation: That activation, measured on the images of the comparison.
    """

    convolutions: int
    half_convolutions: int
    fp32_parts: tuple[str, ...]
    casts: int
    weights: int
    weights_zeroed: int
    weights_subnormal: int
    largest_tensor: str | None = None
    largest_activation: float | None = None


@dataclass(frozen=True)
class Accuracy:
    """The two metrics that quantisation must keep, in [0, 1].

    Attributes:
        pixel_ap: Average precision over all pixels.
        image_auroc: AUROC of the image scores.
    """

    pixel_ap: float
    image_auroc: float


@dataclass(frozen=True)
class QuantizationRecord:
    """Which layers compute in INT8, and what that costs.

    Attributes:
        quantiser: The program that placed the quantisers.
        scheme: ``u8`` for CPUs, ``s8`` for TensorRT.
        layers: Convolutions in INT8.
        given_back: Convolutions that were returned to fp32 to keep the accuracy.
        share_of_macs: Share of all multiply-accumulate operations that run in INT8, in [0, 1].
        images: What the accuracy was measured on, in words.
        count: Number of those images.
        fp32: Accuracy before.
        int8: Accuracy after.
        drop: Points lost by the worse of the two metrics.
        max_drop: Points that each metric was allowed to lose.
        moved_alone: Layer -> how far the maps move when this layer alone is quantised.
    """

    quantiser: str
    scheme: str
    layers: tuple[str, ...]
    given_back: tuple[str, ...] = ()
    share_of_macs: float | None = None
    images: str | None = None
    count: int | None = None
    fp32: Accuracy | None = None
    int8: Accuracy | None = None
    drop: float | None = None
    max_drop: float | None = None
    moved_alone: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class EngineRecord:
    """All that decides what an engine is and where it runs.

    Attributes:
        key: SHA-256 over everything that decides the engine: the ONNX file's hash, precision,
            profile, builder and version, targets or GPU, and flags.
        builder: ``tensorrt`` or ``tensorrt-rtx``.
        version: Version of the builder, such as ``11.4.0.106``.
        gpu: Name of the GPU it was built and tuned on; None for one built ahead of time.
        targets: Compute capabilities that it runs on, such as ``sm_86``.
        onnx: Name of the ONNX file it was built from.
        onnx_sha256: Hash of that file.
        flags: What was asked of the builder, sorted, such as ``refit`` or ``workspace=4096MiB``.
        convolutions: Number of convolutions in the network.
        half_convolutions: How many of them compute in half precision.
        precision_source: ``engine`` where the layers of the built engine were read, ``network``
            where no GPU could open it and its strongly typed network was read instead.
        build_seconds: Duration of the build in seconds.
        architecture: SHA-256 over the graph without the values of its weights; an engine can be
            refitted from files with the same hash. None where it is not known.
    """

    key: str
    builder: str
    version: str
    gpu: str | None
    targets: tuple[str, ...]
    onnx: str
    onnx_sha256: str
    flags: tuple[str, ...]
    convolutions: int
    half_convolutions: int
    precision_source: str
    build_seconds: float
    architecture: str | None = None

    @property
    def refittable(self) -> bool:
        """Whether the weights of the engine can be replaced."""
        return "refit" in self.flags


@dataclass(frozen=True)
class TrainingRecord:
    """How a checkpoint was trained.

    Attributes:
        recipe: The fields of ``training.recipe.Recipe``. They are plain values here because only
            the training knows which of them can be trained with.
        data: Folder of the category.
        images: Number of images trained on.
        held_out: Names of the normal images kept from the training, for the threshold.
        textures: Name of the texture source.
        device: Device of the training, such as ``cuda:0``.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        loop: ``lean``, or ``literal`` for the loop of the authors' code.
        seconds: Duration in seconds, parts before an interruption included.
        losses: Phase -> loss of its last step.
        identity: SHA-256 over everything that decides the result. A run with the same hash is
            not repeated.
    """

    recipe: dict[str, Scalar] = field(default_factory=dict)
    data: str | None = None
    images: int | None = None
    held_out: tuple[str, ...] = ()
    textures: str | None = None
    device: str | None = None
    precision: str | None = None
    loop: str | None = None
    seconds: float | None = None
    losses: dict[str, float] = field(default_factory=dict)
    identity: str | None = None


@dataclass(frozen=True)
class TeacherRecord:
    """Where the teacher's weights came from.

    Attributes:
        source: The source in words, such as ``torchvision IMAGENET1K_V1`` or ``random``.
        file: Name of the file they were read from.
        sha256: Hash of that file.
    """

    source: str
    file: str | None = None
    sha256: str | None = None
