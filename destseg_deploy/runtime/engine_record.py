"""What a spec says of an engine, and whether an engine fits the machine at hand.

An engine runs where it was built for and nowhere else, and finding that out by deserialising it
crashes or costs seconds. So the record is checked first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from destseg_deploy.errors import SpecError
from destseg_deploy.spec import ModelSpec

SOURCES = ("engine", "network")
"""Where the precision of layers was read."""
TITLES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
"""Builder -> what messages call it."""


@dataclass(frozen=True)
class Machine:
    """What an engine must fit.

    Attributes:
        builder: ``tensorrt`` or ``tensorrt-rtx``.
        version: Of that builder, such as ``11.4.0.106``.
        gpu: Name of the GPU.
        sm: Its compute capability, such as ``sm_90``.
    """

    builder: str
    version: str
    gpu: str
    sm: str


@dataclass(frozen=True)
class EngineRecord:
    """``ModelSpec.engine``: all that decides what an engine is and where it runs.

    Attributes:
        key: SHA-256 over everything that decides the engine: the ONNX file's hash, precision,
            profile, builder and version, targets or GPU, and flags.
        builder: ``tensorrt`` or ``tensorrt-rtx``.
        version: Of the builder.
        gpu: The GPU it was built and tuned on; None for one built ahead of time.
        targets: Compute capabilities that it runs on, such as ``sm_86``.
        onnx: Name of the ONNX file it was built from.
        onnx_sha256: Its hash.
        flags: What was asked of the builder, sorted, such as ``refit`` or ``workspace=4096MiB``.
        convolutions: How many the network has.
        half_convolutions: How many of them compute in half precision.
        precision_source: ``engine`` where the built engine's layers were read, ``network`` where
            no GPU was there to open it and its strongly typed network was.
        build_seconds: How long the build took.
        architecture: SHA-256 over the graph without the values of its weights; engines can be
            refitted from files that share it. None in specs that do not know it.
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
        """Whether its weights can be replaced."""
        return "refit" in self.flags

    @property
    def built_by(self) -> str:
        """The builder and its version, as messages say it: ``TensorRT 11.4.0.106``."""
        return f"{TITLES.get(self.builder, self.builder)} {self.version}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for ``ModelSpec.engine``."""
        record = asdict(self)
        return {**record, "targets": list(self.targets), "flags": list(self.flags)}

    @classmethod
    def of(cls, spec: ModelSpec) -> EngineRecord:
        """Read the record of an engine's spec, strictly.

        Raises:
            SpecError: If the spec is of another kind, or an entry of its record is missing,
                unknown or mistyped.
        """
        if spec.kind != "engine":
            raise SpecError(
                f"{spec.artifact.file}: its spec says {spec.kind}, expected engine. Copy the .json "
                "that was written with the engine."
            )
        try:
            return cls(**_read(spec.engine))
        except ValueError as error:
            raise SpecError(
                f"{spec.artifact.file}: the engine entry of its spec cannot be read ({error}). "
                f"Rebuild it: {rebuild_command(spec)}"
            ) from error


def rebuild_command(spec: ModelSpec) -> str:
    """Return the command that builds an engine of this model anew."""
    command = f"destseg-export --category {spec.category} --format engine"
    if spec.precision != "fp16":  # what the command makes unless told otherwise
        command += f" --precision {spec.precision}"
    if spec.engine.get("builder") == "tensorrt-rtx":
        command += " --builder tensorrt-rtx"
    return command


def check_engine(spec: ModelSpec, machine: Machine) -> EngineRecord:
    """Make sure that an engine was made for the machine at hand; return its record.

    Raises:
        SpecError: If it was not; the message names both and the command that rebuilds it.
    """
    record = EngineRecord.of(spec)
    same_builder = (record.builder, record.version) == (machine.builder, machine.version)
    if same_builder and machine.sm in record.targets and record.gpu in (None, machine.gpu):
        return record
    made_for = record.gpu if record.gpu and machine.sm in record.targets else None
    there = f"{', '.join(record.targets)}{f' ({made_for})' if made_for else ''}"
    here = f"{machine.sm}{f' ({machine.gpu})' if made_for else ''}"
    raise SpecError(
        f"{spec.artifact.file}: built for {there} by {record.built_by}, this machine has {here} "
        f"and {TITLES.get(machine.builder, machine.builder)} {machine.version}. Engines are not "
        f"portable; rebuild it here: {rebuild_command(spec)}"
    )


def _read(given: dict[str, Any]) -> dict[str, Any]:
    """Check names, types and ranges of a record's entries; lists become tuples.

    Raises:
        ValueError: With what is wrong.
    """
    entries = {field.name: field for field in fields(EngineRecord)}
    if unknown := sorted(set(given) - set(entries)):
        raise ValueError(f"unknown entry {unknown[0]!r}")
    for name, entry in entries.items():
        if name not in given and entry.default is MISSING:
            raise ValueError(f"entry {name!r} is missing")
    for name, value in given.items():
        expected, fits = _EXPECTED[str(entries[name].type)]
        if not fits(value):
            raise ValueError(f"{name} is {value!r}, expected {expected}")
    if given["half_convolutions"] > given["convolutions"]:
        raise ValueError("half_convolutions is more than convolutions")
    if given["precision_source"] not in SOURCES:
        raise ValueError(f"precision_source is {given['precision_source']!r}, not of {SOURCES}")
    return {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_seconds(value: Any) -> bool:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and math.isfinite(value) and value >= 0


_EXPECTED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "str": ("text", _is_text),
    "str | None": ("text or null", lambda value: value is None or _is_text(value)),
    "tuple[str, ...]": ("a list of text", lambda v: isinstance(v, list) and all(map(_is_text, v))),
    "int": ("a count", _is_count),
    "float": ("seconds", _is_seconds),
}
"""Annotation of an entry -> what an error calls it, and its check."""
