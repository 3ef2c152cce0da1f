"""ModelSpec: the contract written as ``.json`` beside every artifact.

It is the only thing that training, export, runtimes and C++ hosts share. It says what the artifact
takes and gives, how the score is judged, and where everything came from. Thresholds live here and
not in the graph, so that they can be changed after export.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from destseg_deploy.atomic import replacing, sha256
from destseg_deploy.errors import SpecError

FORMAT = 1
"""Version of the file format; a reader refuses any other."""

KINDS = ("checkpoint", "onnx", "engine")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
RESIZE = "bilinear-antialiased-16bit"
"""Name of the one resize kernel, ``destseg_deploy.data.resize``."""

MAX_SIDE = 65_536
"""Largest height or width, in pixels."""
MAX_BATCH = 65_536
MAX_TOP_K = 2**31 - 1
MAX_CALL_BYTES = 2**33
"""Largest size of a call's images, or of its maps. The C++ library has the same limits."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

T = TypeVar("T")


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

    @classmethod
    def parse(cls, text: str) -> BatchRange:
        """Read ``MIN:OPT:MAX``, or one number for a fixed batch.

        Raises:
            SpecError: If the text is neither.
        """
        parts = text.split(":")
        if len(parts) not in (1, 3) or not all(part.isdecimal() for part in parts):
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


@dataclass(frozen=True)
class NetworkSpec:
    """What happens to the pixels before the network: the resize to its size, then mean and std."""

    height: int = 256
    width: int = 256
    resize: str = RESIZE
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


@dataclass(frozen=True)
class OutputSpec:
    """The output tensors: map float32 (N, height, width) and score float32 (N,), both in [0, 1].

    The score is the mean of the ``top_k`` largest pixels of the map at the network's size (T of
    the paper's Table S1), whatever size the map is returned at.
    """

    height: int
    width: int
    top_k: int
    map_name: str = "anomaly_map"
    score_name: str = "score"


@dataclass(frozen=True)
class Threshold:
    """How scores are judged, and the rule that produced it.

    Attributes:
        score: An image is anomalous when its score is greater than this.
        pixel: A pixel is drawn as defective when its map value is greater than this.
        rule: How the two numbers came about, in words.
        images: How many images the rule looked at; 0 when set by hand.
        false_reject_rate: The rate of rejected good parts that the rule aims at; None when it
            aims at none.
    """

    score: float
    pixel: float
    rule: str
    images: int = 0
    false_reject_rate: float | None = None

    def normalized(self, score: float) -> float:
        """Map a raw score to [0, 1] so that the threshold comes to lie at 0.5.

        Linear from (0, 0) to (threshold, 0.5) and from there to (1, 1): the same for every model,
        so that an operator can compare lines. Ranking and verdict are unchanged: only what is
        greater than the threshold comes to lie above 0.5.
        """
        if score > self.score:
            return min(1.0, 0.5 + 0.5 * (score - self.score) / max(1 - self.score, 1e-6))
        return max(0.0, 0.5 * score / self.score) if self.score > 0 else 0.0


@dataclass(frozen=True)
class FileRecord:
    """A file this artifact is, or was made from."""

    file: str
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Record the name and content hash of an existing file."""
        return cls(path.name, sha256(path))


@dataclass(frozen=True)
class ModelSpec:
    """Everything a host must know about an artifact.

    Attributes:
        kind: ``checkpoint``, ``onnx`` or ``engine``.
        category: What was trained on, for example ``cable``.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        input: The input tensor.
        network: The preprocessing, and the size at which the network sees the image.
        output: The output tensors.
        artifact: Name and hash of the file beside this spec.
        checkpoint: Name and hash of the checkpoint it was exported from; its own for a checkpoint.
        threshold: How scores are judged, or None when no rule was given yet.
        teacher: Where the teacher's weights came from, with their hash.
        training: The schedule and data that made the checkpoint.
        parity: What the comparison with PyTorch measured at export.
        engine: GPU, SM and builder of an engine; empty otherwise.
        tools: Versions of the programs that made the artifact.
        format: Version of this file format.
    """

    kind: str
    category: str
    precision: str
    input: InputSpec
    network: NetworkSpec
    output: OutputSpec
    artifact: FileRecord
    checkpoint: FileRecord
    threshold: Threshold | None = None
    teacher: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)
    tools: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        return self.input.height, self.input.width

    @property
    def network_size(self) -> tuple[int, int]:
        """Height and width at which the network sees the image."""
        return self.network.height, self.network.width

    @property
    def map_size(self) -> tuple[int, int]:
        """Height and width of the returned anomaly map."""
        return self.output.height, self.output.width

    @property
    def max_batch(self) -> int:
        """The largest number of images one call takes."""
        return self.input.batch.max

    def to_json(self) -> str:
        """Return the spec as indented JSON with a final newline."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "spec") -> ModelSpec:
        """Read a spec strictly: a missing, unknown or mistyped entry is an error.

        Args:
            text: The JSON.
            where: What to call it in errors, usually the file name.

        Raises:
            SpecError: If it is no JSON, of another format version, not a spec, or of sizes that
                are not positive or too large.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise SpecError(f"{where}: not JSON ({error}). Restore it or export again.") from error
        except RecursionError:
            raise SpecError(
                f"{where}: not JSON (nested too deeply). Restore it or export again."
            ) from None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            found = data.get("format") if isinstance(data, dict) else type(data).__name__
            raise SpecError(
                f"{where}: format {found!r}, this version of destseg-deploy reads {FORMAT}. "
                "Export again with this version."
            )
        spec = _build(cls, data, where)
        _check_choice(spec.kind, KINDS, f"{where}: kind")
        _check_choice(spec.precision, PRECISIONS, f"{where}: precision")
        _check_choice(spec.network.resize, (RESIZE,), f"{where}: network.resize")
        for name, only in (("dtype", "uint8"), ("layout", "NHWC"), ("color", "RGB")):
            _check_choice(getattr(spec.input, name), (only,), f"{where}: input.{name}")
        _check_sizes(spec, where)
        return spec

    @classmethod
    def read(cls, artifact: Path) -> ModelSpec:
        """Read the spec that lies beside an artifact.

        Raises:
            SpecError: If there is none, or it cannot be read.
        """
        path = spec_path(artifact)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise SpecError(
                f"{artifact}: no spec {path.name} beside it. Copy the .json that was written with "
                f"the artifact, or make both again with destseg-export."
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise SpecError(
                f"{path}: cannot be read ({error}). Restore it or export again."
            ) from error
        return cls.from_json(text, str(path))

    def write(self, artifact: Path) -> Path:
        """Write the spec beside an artifact, atomically; return its path."""
        path = spec_path(artifact)
        with replacing(path) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")
        return path

    def check_artifact(self, artifact: Path) -> None:
        """Make sure that this spec describes that very file.

        Raises:
            SpecError: If the file is not there, or not what the spec was written for.
        """
        if not artifact.is_file():
            raise SpecError(
                f"{artifact}: no such file, only its spec. Copy {self.artifact.file} here too, or "
                f"rerun destseg-export --category {self.category}"
            )
        found = sha256(artifact)
        if found != self.artifact.sha256:
            raise SpecError(
                f"{artifact}: its content (sha256 {found[:12]}) is not what "
                f"{spec_path(artifact).name} describes ({self.artifact.file}, sha256 "
                f"{self.artifact.sha256[:12]}). The file is damaged or the pair was mixed up: copy "
                f"both again, or rerun destseg-export --category {self.category}"
            )


def spec_path(artifact: Path) -> Path:
    """Return where the spec of an artifact lies: the same name, suffix ``.json``.

    An engine's ends in ``.engine.json``, because the ``.onnx`` that it was built from has the same
    name and lies beside it.
    """
    return artifact.with_suffix(".engine.json" if artifact.suffix == ".engine" else ".json")


def default_top_k(height: int, width: int) -> int:
    """Return T for a network size: 100 at 256 x 256 as in the paper, the same share elsewhere."""
    return max(1, round(100 * height * width / 256**2))


def _check_choice(value: str, choices: tuple[str, ...], what: str) -> None:
    if value not in choices:
        raise SpecError(f"{what} is {value!r}, expected one of {', '.join(choices)}. Export again.")


def _check_sizes(spec: ModelSpec, where: str) -> None:
    """Refuse sizes that could not become buffers, in the words of the C++ library."""
    for part in ("input", "network", "output"):
        for name in ("height", "width"):
            _check_count(getattr(getattr(spec, part), name), MAX_SIDE, f"{where}: {part}: {name}")
    _check_count(spec.output.top_k, MAX_TOP_K, f"{where}: output: top_k")
    for name in ("min", "opt", "max"):
        _check_count(getattr(spec.input.batch, name), MAX_BATCH, f"{where}: input: batch: {name}")
    image, anomaly_map = (3 * spec.input.height * spec.input.width, 4 * math.prod(spec.map_size))
    taken = max(image, anomaly_map) * spec.max_batch
    if taken > MAX_CALL_BYTES:
        raise SpecError(
            f"{where}: a batch of {spec.max_batch} takes {taken} bytes, expected at most "
            f"{MAX_CALL_BYTES}. Export again with a smaller --batch."
        )


def _check_count(value: int, most: int, what: str) -> None:
    if not 1 <= value <= most:
        raise SpecError(f"{what} is {value}, expected 1 to {most}. Restore it or export again.")


def _build(cls: type[T], data: dict[str, Any], where: str) -> T:
    """Make a (nested) dataclass from parsed JSON, checking names and types."""
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]  # T is a dataclass here
    if unknown := sorted(set(data) - set(names)):
        raise SpecError(f"{where}: unknown entry {unknown[0]!r}. Export again with this version.")
    if missing := [name for name in names if name not in data]:
        raise SpecError(f"{where}: entry {missing[0]!r} is missing. Restore it or export again.")
    return cls(**{name: _convert(hints[name], data[name], f"{where}: {name}") for name in names})


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Check one JSON value against its annotation; lists become tuples, objects dataclasses."""
    origin = typing.get_origin(hint)
    if origin is types.UnionType:
        if value is None:
            return None
        return _convert(typing.get_args(hint)[0], value, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        return _build(hint, value, where)
    if origin is tuple and isinstance(value, list) and len(value) == len(typing.get_args(hint)):
        return tuple(_convert(float, item, where) for item in value)
    plain = not isinstance(value, bool)
    if hint is float and plain and isinstance(value, int | float) and _is_finite(value):
        return float(value)
    expected = origin or hint
    if hint is not float and plain and isinstance(value, expected):
        return value
    name = getattr(hint, "__name__", hint) if origin is None else hint
    raise SpecError(f"{where} is {value!r}, expected {name}. Restore it or export again.")


def _is_finite(value: float) -> bool:
    """Return whether a float can hold a number of JSON, whose whole numbers know no end."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
