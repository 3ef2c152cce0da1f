"""The parts of a spec that decide an answer or a verdict. Each class checks its own values.

A reader and a writer call the same ``check``, so what one refuses the other refuses, too.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from destseg_deploy.errors import SpecError
from destseg_deploy.files import sha256
from destseg_deploy.spec.limits import (
    RESTORE,
    SET_AGAIN,
    check_choice,
    check_count,
    check_name,
    check_share,
    check_text,
)
from destseg_deploy.spec.reading import show

KINDS = ("checkpoint", "onnx", "engine")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
RESIZE = "bilinear-antialiased-16bit"
"""Name of the one resize kernel, ``destseg_deploy.data.resize``."""

MAX_SIDE = 65_536
"""Largest height or width of a frame or a map, in pixels."""
NETWORK_STEP = 32
"""The network halves its image five times: ResNet18, whose last stage the student's encoder has."""
MAX_NETWORK_SIDE = 4096
"""Largest height or width of the network's image; its activations take 30 times the image."""
MAX_BATCH = 65_536
MAX_IMAGES = 2**31 - 1
MAX_CONVOLUTIONS = 65_536
MAX_CALL_BYTES = 2**33
"""Largest size of one call's images, and of its maps, in bytes. The C++ library has the same
limits: its hosts allocate buffers of these sizes from what a file says."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

MOST_DIGITS = 18
"""Of a whole number that somebody writes; 64 bits hold it."""

BY_HAND = "set by hand"
"""Rule of a threshold that somebody chose."""


def is_number(text: str) -> bool:
    """Whether a text is a whole number in the digits 0 to 9; ``isdecimal`` takes all scripts.

    One of more than ``MOST_DIGITS`` counts nothing here, and ``int`` fails beyond 4,300.
    """
    return text.isascii() and text.isdecimal() and len(text) <= MOST_DIGITS


def exceeds(scores: ArrayLike, threshold: float) -> NDArray[np.bool_]:
    """Tell which scores are NG: greater than the threshold.

    Both are compared as float32: in float64, a score that equals the threshold may be above it.

    Args:
        scores: Of any shape.
        threshold: In [0, 1].
    """
    return np.asarray(np.asarray(scores, np.float32) > np.float32(threshold))


def verdicts(scores: ArrayLike, threshold: float) -> list[str]:
    """Return ``NG`` or ``OK`` for each score (N,); see ``exceeds``."""
    return ["NG" if ng else "OK" for ng in exceeds(scores, threshold)]


@dataclass(frozen=True)
class BatchRange:
    """How many images one call takes: at least ``min``, at most ``max``, tuned for ``opt``."""

    min: int = 1
    opt: int = 1
    max: int = 16

    def __post_init__(self) -> None:
        """Refuse a range that is not ordered."""
        if not 1 <= self.min <= self.opt <= self.max:
            raise SpecError(
                f"batch {self}: expected 1 <= MIN <= OPT <= MAX, such as 1:1:16, or 4 for always 4"
            )

    def __str__(self) -> str:
        """Return ``min:opt:max``."""
        return f"{self.min}:{self.opt}:{self.max}"

    def check(self, where: str) -> None:
        """Refuse numbers that could not become a batch.

        Raises:
            SpecError: Naming the first one.
        """
        for name in ("min", "opt", "max"):
            check_count(getattr(self, name), 1, MAX_BATCH, f"{where}: {name}")

    @classmethod
    def parse(cls, text: str) -> BatchRange:
        """Read ``MIN:OPT:MAX``, or one number for a fixed batch.

        Raises:
            SpecError: If the text is neither.
        """
        parts = text.split(":")
        if len(parts) not in (1, 3) or not all(is_number(part) for part in parts):
            raise SpecError(f"batch {text!r}: expected MIN:OPT:MAX such as 1:1:16, or one number")
        numbers = [int(part) for part in parts]
        return cls(*numbers) if len(numbers) == 3 else cls(*numbers * 3)


@dataclass(frozen=True)
class InputSpec:
    """The input tensor: uint8 (N, height, width, 3) RGB, raw pixels in [0, 255]."""

    height: int
    width: int
    batch: BatchRange = field(default_factory=BatchRange)
    name: str = "image"
    dtype: str = "uint8"
    layout: str = "NHWC"
    color: str = "RGB"

    def check(self, where: str) -> None:
        """Refuse an input that no runtime takes.

        Raises:
            SpecError: Naming the first entry that is wrong.
        """
        check_text(self.name, f"{where}: name")
        for name, value in (("dtype", "uint8"), ("layout", "NHWC"), ("color", "RGB")):
            check_choice(getattr(self, name), (value,), f"{where}: {name}")
        for name in ("height", "width"):
            check_count(getattr(self, name), 1, MAX_SIDE, f"{where}: {name}")
        self.batch.check(f"{where}: batch")


@dataclass(frozen=True)
class NetworkSpec:
    """What happens to the pixels before the network: resize to its size, then mean and std."""

    height: int = 256
    width: int = 256
    resize: str = RESIZE
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def check(self, where: str) -> None:
        """Refuse a preprocessing that is not the training's.

        Raises:
            SpecError: Naming the first entry that is wrong.
        """
        for name in ("height", "width"):
            check_count(getattr(self, name), 1, MAX_NETWORK_SIDE, f"{where}: {name}")
        check_choice(self.resize, (RESIZE,), f"{where}: resize")
        for name, built_in in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            # The values are constants of the graph; a spec that says others says a falsehood.
            if getattr(self, name) != built_in:
                raise SpecError(
                    f"{where}: {name} is {show(getattr(self, name))}, expected "
                    f"{show(built_in)}, which is built into the network. {RESTORE}"
                )


@dataclass(frozen=True)
class OutputSpec:
    """The output tensors: map float32 (N, height, width) and score float32 (N,), both in [0, 1].

    The score is the mean of the ``top_k`` largest pixels of the map at the network's size (T of
    the paper's Table S1), whatever size the map is returned at. With tiles, it is that of the map
    blended from all tiles.
    """

    height: int
    width: int
    top_k: int
    map_name: str = "anomaly_map"
    score_name: str = "score"

    def check(self, pixels: int, where: str) -> None:
        """Refuse outputs that the network cannot give.

        Args:
            pixels: Of the map that the score is taken from: the network's, or the blended one.
            where: The file and the entry, for the error.

        Raises:
            SpecError: Naming the first entry that is wrong.
        """
        for name in ("height", "width"):
            check_count(getattr(self, name), 1, MAX_SIDE, f"{where}: {name}")
        check_count(self.top_k, 1, pixels, f"{where}: top_k")
        for name in ("map_name", "score_name"):
            check_text(getattr(self, name), f"{where}: {name}")


@dataclass(frozen=True)
class Threshold:
    """How scores are judged, and the rule that produced it.

    Attributes:
        score: An image with a greater score is anomalous (NG).
        pixel: A pixel with a greater map value is drawn as defective.
        rule: How the two numbers were set, in words.
        images: Number of images that the rule used; 0 when set by hand.
        false_reject_rate: Share of good parts that may be rejected, in [0, 1]; None when the rule
            does not use such a share.
    """

    score: float
    pixel: float
    rule: str
    images: int = 0
    false_reject_rate: float | None = None

    def normalized(self, score: float) -> float:
        """Map a raw score to [0, 1] so that the threshold becomes 0.5.

        The map is linear from (0, 0) to (threshold, 0.5) and from there to (1, 1). It is the same
        for every model, so that an operator can compare production lines. It changes neither the
        order of scores nor a verdict: only a score above the threshold becomes more than 0.5.
        """
        raw, limit = float(np.float32(score)), float(np.float32(self.score))  # see ``exceeds``
        # Without 1e-6, a threshold of 1 would divide by 0 for a score that rounding lifted above 1.
        if raw > limit:
            return min(1.0, 0.5 + 0.5 * (raw - limit) / max(1 - limit, 1e-6))
        return max(0.0, 0.5 * raw / limit) if limit > 0 else 0.0

    def check(self, where: str) -> None:
        """Refuse a threshold that no score or pixel could exceed, or that all would.

        Raises:
            SpecError: Naming the first entry that is wrong.
        """
        check_share(self.score, f"{where}: score")
        check_share(self.pixel, f"{where}: pixel")
        check_text(self.rule, f"{where}: rule")
        check_count(self.images, 0, MAX_IMAGES, f"{where}: images")
        rate = self.false_reject_rate
        if rate is not None and not 0 < rate < 1:
            raise SpecError(
                f"{where}: false_reject_rate is {show(rate)}, expected a number between 0 and 1. "
                f"{SET_AGAIN}"
            )


@dataclass(frozen=True)
class FileRecord:
    """A file this artifact is, or was made from."""

    file: str
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Record the name and content hash of an existing file."""
        return cls(path.name, content_hash(path))

    def check(self, where: str) -> None:
        """Refuse a name that is not plain: it is looked up in the spec's own folder.

        Raises:
            SpecError: Naming it.
        """
        check_name(self.file, f"{where}: file")


def content_hash(path: Path) -> str:
    """Return the SHA-256 of all that an artifact is made of.

    That is one file, except for OpenVINO's ``.xml``, whose weights lie in the ``.bin`` beside it.

    Raises:
        SpecError: If there is no such ``.bin``.
    """
    found = sha256(path)
    if path.suffix.lower() != ".xml":
        return found
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise SpecError(f"{path}: its weights {weights.name} are missing. Copy them here, too.")
    return hashlib.sha256((found + sha256(weights)).encode()).hexdigest()
