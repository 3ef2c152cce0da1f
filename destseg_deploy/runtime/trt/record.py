"""Whether an engine fits the machine at hand, by the record in its spec.

An engine runs only where it was built for. Deserialising it elsewhere crashes or costs seconds, so
its record is checked first.
"""

from __future__ import annotations

from dataclasses import dataclass

from destseg_deploy.errors import SpecError
from destseg_deploy.spec import EngineRecord, ModelSpec

TITLES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
"""Builder -> what messages call it."""


@dataclass(frozen=True)
class Machine:
    """What an engine must fit.

    Attributes:
        builder: ``tensorrt`` or ``tensorrt-rtx``.
        version: Version of that builder, such as ``11.4.0.106``.
        gpu: Name of the GPU.
        sm: Its compute capability, such as ``sm_90``.
    """

    builder: str
    version: str
    gpu: str
    sm: str


def engine_record(spec: ModelSpec) -> EngineRecord:
    """Return the record of an engine's spec.

    Raises:
        SpecError: If the spec is not that of an engine.
    """
    if spec.kind != "engine" or spec.engine is None:
        raise SpecError(
            f"{spec.artifact.file}: its spec says {spec.kind}, expected engine. Copy the .json "
            "that was written with the engine."
        )
    return spec.engine


def built_by(record: EngineRecord) -> str:
    """Return the builder and its version as messages say it: ``TensorRT 11.4.0.106``."""
    return f"{TITLES.get(record.builder, record.builder)} {record.version}"


def rebuild_command(spec: ModelSpec) -> str:
    """Return the command that builds an engine of this model anew."""
    command = f"destseg-export --category {spec.category} --format engine"
    if spec.precision != "fp16":  # what the command makes unless told otherwise
        command += f" --precision {spec.precision}"
    if spec.engine is not None and spec.engine.builder == "tensorrt-rtx":
        command += " --builder tensorrt-rtx"
    return command


def check_engine(spec: ModelSpec, machine: Machine) -> EngineRecord:
    """Make sure that an engine was built for the machine at hand; return its record.

    Raises:
        SpecError: If it was not; the message names both machines and the command that rebuilds it.
    """
    record = engine_record(spec)
    same_builder = (record.builder, record.version) == (machine.builder, machine.version)
    if same_builder and machine.sm in record.targets and record.gpu in (None, machine.gpu):
        return record
    made_for = record.gpu if record.gpu and machine.sm in record.targets else None
    there = f"{', '.join(record.targets)}{f' ({made_for})' if made_for else ''}"
    here = f"{machine.sm}{f' ({machine.gpu})' if made_for else ''}"
    raise SpecError(
        f"{spec.artifact.file}: built for {there} by {built_by(record)}, this machine has {here} "
        f"and {TITLES.get(machine.builder, machine.builder)} {machine.version}. Engines are not "
        f"portable; rebuild it here: {rebuild_command(spec)}"
    )
