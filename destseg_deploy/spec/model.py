"""ModelSpec: what an artifact takes and gives, how its score is judged, and where it came from."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from destseg_deploy.errors import SpecError
from destseg_deploy.files import replacing, sweep
from destseg_deploy.spec.contract import check_contract
from destseg_deploy.spec.digest import Digest
from destseg_deploy.spec.limits import RESTORE, check_choice, check_count, check_name
from destseg_deploy.spec.parts import (
    BY_HAND,
    KINDS,
    MAX_CALL_BYTES,
    MAX_CONVOLUTIONS,
    NETWORK_STEP,
    PRECISIONS,
    FileRecord,
    InputSpec,
    NetworkSpec,
    OutputSpec,
    Threshold,
    content_hash,
)
from destseg_deploy.spec.reading import (
    OPTIONAL,
    parse_object,
    read_dataclass,
    read_json_text,
    show,
    upgrade,
)
from destseg_deploy.spec.records import (
    PRECISION_SOURCES,
    SCHEMES,
    EngineRecord,
    FusionRecord,
    HalfRecord,
    ParityRecord,
    QuantizationRecord,
    TeacherRecord,
    TrainingRecord,
)
from destseg_deploy.spec.region import RegionSpec
from destseg_deploy.spec.tiling import TileGrid, TilingSpec

FORMAT = 2
"""Version of the file format that is written; format 1 is read, too."""


@dataclass(frozen=True)
class ModelSpec:
    """Everything that the program running an artifact must know about it.

    The records are None where there is nothing to record.

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
        teacher: Where the teacher's weights came from.
        training: How the checkpoint was trained.
        parity: How the artifact's answers differ from those of the checkpoint in PyTorch.
        fusion: Which fusions were applied to the graph.
        half: What the conversion to fp16 or bf16 did.
        quantization: Which layers compute in INT8, and what that costs.
        engine: Builder and GPUs of an engine; only an engine has it.
        tools: Program -> its version, of the programs that made the artifact.
        extra: Entries that this version does not know. They are ignored, and kept when the spec is
            written again. A newer exporter puts new entries here, so that older hosts still read
            its files.
        digest: Of the file that was read; a writer computes it anew. None in memory, and for
            format 1, which has none.
        format: Version of this file format.
        tiling: How a frame is cut into tiles; None where the network sees the whole frame. Written
            only where it is not None.
        region: The part of a frame that is inspected; None for all of it. Written only where it is
            not None.
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
    teacher: TeacherRecord | None = None
    training: TrainingRecord | None = None
    parity: ParityRecord | None = None
    fusion: FusionRecord | None = None
    half: HalfRecord | None = None
    quantization: QuantizationRecord | None = None
    engine: EngineRecord | None = None
    tools: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    digest: Digest | None = field(default=None, compare=False)
    format: int = FORMAT
    tiling: TilingSpec | None = field(default=None, metadata={OPTIONAL: True})
    region: RegionSpec | None = field(default=None, metadata={OPTIONAL: True})

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        return self.input.height, self.input.width

    @property
    def network_size(self) -> tuple[int, int]:
        """Height and width at which the network sees the image."""
        return self.network.height, self.network.width

    @property
    def takes_any_size(self) -> bool:
        """Whether a host may resize frames of other sizes: pixels of tiles and regions are real."""
        return self.size == self.network_size and self.tiling is None and self.region is None

    @property
    def grid(self) -> TileGrid | None:
        """Where the tiles of a frame are; None where the network sees the whole frame."""
        if self.tiling is None:
            return None
        return TileGrid.of(self.size, self.network_size, self.tiling)

    @property
    def tiles(self) -> int:
        """How many tiles a frame has; 1 where the network sees the whole frame."""
        return 1 if self.grid is None else self.grid.count

    @property
    def working_size(self) -> tuple[int, int]:
        """Height and width of the map that the score is taken from: blended, or the network's."""
        grid = self.grid
        return self.network_size if grid is None else grid.working

    @property
    def map_size(self) -> tuple[int, int]:
        """Height and width of the returned anomaly map."""
        return self.output.height, self.output.width

    @property
    def max_batch(self) -> int:
        """The largest number of images one call takes."""
        return self.input.batch.max

    def as_entries(self) -> dict[str, Any]:
        """Return the entries of the file, without those that are optional and None."""
        optional = {f.name for f in fields(self) if OPTIONAL in f.metadata}
        return {k: v for k, v in asdict(self).items() if v is not None or k not in optional}

    def to_json(self) -> str:
        """Return the spec as indented JSON with its digest and a final newline."""
        data = self.as_entries()
        return json.dumps({**data, "digest": asdict(Digest.of(data))}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "spec") -> ModelSpec:
        """Read a spec of format 1 or 2 strictly; a missing, unknown or mistyped entry is an error.

        The digest of format 2 must fit. Only a threshold may have been edited: it then counts as
        set by hand, because its rule no longer vouches for it.

        Args:
            text: The JSON.
            where: What to call it in errors, usually the file name.

        Raises:
            SpecError: If it is not JSON, not a spec, of another format, damaged or edited, or
                describes something that no runtime can do.
        """
        data = parse_object(text, where)
        found = data.get("format")
        if type(found) is not int or found not in (1, FORMAT):
            raise SpecError(
                f"{where}: format is {show(found)}, this version of destseg-deploy reads 1 and "
                f"{FORMAT}. Install the version that wrote it, or export again with this one."
            )
        spec = read_dataclass(cls, data if found == FORMAT else upgrade(data, where), where)
        spec.check(where)
        return spec if found == 1 else _check_digest(spec, Digest.of(data), where)

    def check(self, where: str) -> None:
        """Refuse values that no runtime can do, or that no verdict can be made with.

        Raises:
            SpecError: Naming the first one.
        """
        check_choice(self.kind, KINDS, f"{where}: kind")
        check_choice(self.precision, PRECISIONS, f"{where}: precision")
        check_name(self.category, f"{where}: category")
        self.input.check(f"{where}: input")
        self.network.check(f"{where}: network")
        if self.tiling is not None:
            self.tiling.check(self.size, self.network_size, f"{where}: tiling")
        self.output.check(math.prod(self.working_size), f"{where}: output")
        self.artifact.check(f"{where}: artifact")
        self.checkpoint.check(f"{where}: checkpoint")
        if self.threshold is not None:
            self.threshold.check(f"{where}: threshold")
        _check_memory(self, where)
        if self.region is not None:
            size, top_k = self.working_size, self.output.top_k
            self.region.check(self.size, size, top_k, f"{where}: region")
        _check_checkpoint(self, where)
        if self.quantization is not None:
            scheme = self.quantization.scheme
            check_choice(scheme, SCHEMES, f"{where}: quantization: scheme")
        _check_engine(self, where)

    @classmethod
    def read(cls, artifact: Path | str) -> ModelSpec:
        """Read the spec beside an artifact.

        Raises:
            SpecError: If there is no spec, or it cannot be read.
        """
        if not Path(artifact).name:
            raise SpecError(f"{str(artifact)!r}: no name of a file. Expected an artifact.")
        path = spec_path(Path(artifact))
        sweep(path.parent)  # a writer that was killed may have replaced one file of the two
        if not path.exists():
            gone = "" if Path(artifact).exists() else "no such file, and "
            raise SpecError(
                f"{artifact}: {gone}no spec {path.name} beside it. Copy the .json that was written "
                "with the artifact, or make both again with destseg-export."
            )
        return cls.from_json(read_json_text(path), str(path))

    def write(self, artifact: Path) -> Path:
        """Write the spec beside an artifact, atomically; return its path.

        Raises:
            SpecError: If no reader would take it.
        """
        path = spec_path(artifact)
        self.check(str(path))
        with replacing(path) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")
        return path

    def check_artifact(self, artifact: Path) -> None:
        """Make sure that this spec describes that very file, and nothing beside it.

        Raises:
            SpecError: If the file is not there, not what the spec was written for, says something
                else of itself, or keeps weights in another file.
        """
        if not artifact.is_file():
            raise SpecError(
                f"{artifact}: no such file, only its spec. Copy {self.artifact.file} here too, or "
                f"rerun destseg-export --category {self.category}"
            )
        found = content_hash(artifact)
        if found != self.artifact.sha256:
            raise SpecError(
                f"{artifact}: its content (sha256 {found[:12]}) is not what "
                f"{spec_path(artifact).name} describes ({self.artifact.file}, sha256 "
                f"{self.artifact.sha256[:12]}). The file is damaged or the pair was mixed up: copy "
                f"both again, or rerun destseg-export --category {self.category}"
            )
        check_contract(artifact, self.as_entries())

    def described_by(self, path: Path) -> Path:
        """Return the artifact that this spec names, in the folder of the spec's own file.

        Raises:
            SpecError: If that is a symbolic link, which may lead to any file.
        """
        artifact = path.with_name(self.artifact.file)
        if artifact.is_symlink():
            raise SpecError(
                f"{artifact}: {path.name} names it and it is a symbolic link, expected the file "
                "itself. Copy the file there, or pass the artifact instead of its spec."
            )
        return artifact


def spec_path(artifact: Path) -> Path:
    """Return the path of an artifact's spec: the same name, suffix ``.json``.

    The spec of an engine ends in ``.engine.json``, because the ``.onnx`` that it was built from
    usually has the same name and the same folder.
    """
    return artifact.with_suffix(".engine.json" if artifact.suffix.lower() == ".engine" else ".json")


def other_scores(before: ModelSpec, now: ModelSpec, where: str = "in training") -> str | None:
    """Return why the scores of two artifacts of one model differ; None where they are the same.

    A threshold of one then says nothing about the scores of the other.

    Args:
        before: Of the checkpoint, or of what ``now`` is compared with.
        now: The spec that the words are about.
        where: What ``before`` is called in the words.
    """
    old, new = (one.tiling.scale if one.tiling else None for one in (before, now))
    if old != new:
        if old is not None and new is not None:
            return f"frames are scaled by {new:g}, and were by {old:g} {where}"
        are, were = ("not cut", "") if new is None else ("cut", "not ")
        return f"frames are {are} into tiles, and were {were}{where}"
    if before.output.top_k != now.output.top_k:
        return (
            f"the score is the mean of {now.output.top_k} pixels, and was of "
            f"{before.output.top_k} {where}"
        )
    return None


def default_top_k(height: int, width: int) -> int:
    """Return T for a network size: 100 at 256 x 256 as in the paper, the same share elsewhere.

    With tiles, T is that of one tile and not that of the frame: a defect in one tile then has the
    score that it would have in training, whatever the frame's size.
    """
    return max(1, round(100 * height * width / 256**2))


def _check_digest(spec: ModelSpec, found: Digest, where: str) -> ModelSpec:
    """Refuse a spec that is not as it was written; a threshold that is not was set by hand."""
    given = spec.digest
    if given is None:
        raise SpecError(f"{where}: digest is null, expected an object. {RESTORE}")
    if given == found:
        return spec
    if not given.is_whole or given.rest != found.rest:
        maker = "destseg-train" if spec.kind == "checkpoint" else "destseg-export"
        raise SpecError(
            f"{where}: its digest does not fit: the file was damaged, or more of it was edited "
            f"than the threshold. Restore it or rerun {maker} --category {spec.category}"
        )
    edited = spec.threshold
    if edited is not None:
        edited = replace(edited, rule=BY_HAND, images=0, false_reject_rate=None)
    return replace(spec, threshold=edited)


def _check_memory(spec: ModelSpec, where: str) -> None:
    """Refuse a call whose images or maps would be larger than any host allocates."""
    image, anomaly_map = (3 * spec.input.height * spec.input.width, 4 * math.prod(spec.map_size))
    scaled = 0 if spec.tiling is None else 12 * math.prod(spec.working_size)  # float32, RGB
    taken = max(image, anomaly_map, scaled) * spec.max_batch
    if taken > MAX_CALL_BYTES:
        raise SpecError(
            f"{where}: a batch of {spec.max_batch} takes {taken} bytes, expected at most "
            f"{MAX_CALL_BYTES}. Export again with a smaller --batch."
        )


def _check_checkpoint(spec: ModelSpec, where: str) -> None:
    """Refuse sizes that no checkpoint was trained with; PyTorch runs it at the network's size."""
    if spec.kind != "checkpoint":
        return
    for name, side in zip(("height", "width"), spec.network_size, strict=True):
        if side % NETWORK_STEP:
            raise SpecError(
                f"{where}: network: {name} is {side}, expected a multiple of {NETWORK_STEP}. "
                "Restore it or train again."
            )
    trained = spec.training.recipe.get("size") if spec.training else None
    if trained not in (None, spec.network.height):  # all that a file of format 1 says of it
        raise SpecError(
            f"{where}: network: height is {spec.network.height}, expected {show(trained)}, the "
            "size that training: recipe names. Restore it or train again."
        )
    # With tiles or a region, the input is the frame, because both count its pixels.
    frame = spec.network_size if spec.tiling is None and spec.region is None else spec.size
    if not (spec.size == frame and spec.map_size == spec.working_size):
        raise SpecError(
            f"{where}: network: its size is {spec.working_size}, expected that of input "
            f"{spec.size} and output {spec.map_size}. Restore it or train again."
        )


def _check_engine(spec: ModelSpec, where: str) -> None:
    """Refuse an engine without a record, and numbers that no engine has."""
    record = spec.engine
    if record is None:
        if spec.kind == "engine":
            raise SpecError(
                f"{where}: engine is null, but kind is engine. Copy the .json that was written "
                "with the engine."
            )
        return
    place = f"{where}: engine"
    check_choice(record.precision_source, PRECISION_SOURCES, f"{place}: precision_source")
    check_name(record.onnx, f"{place}: onnx")
    check_count(record.convolutions, 0, MAX_CONVOLUTIONS, f"{place}: convolutions")
    half = record.half_convolutions
    check_count(half, 0, record.convolutions, f"{place}: half_convolutions")
    if record.build_seconds < 0:
        raise SpecError(f"{place}: build_seconds is negative. Build the engine again.")
