"""Tuning: what was fastest for an artifact on one machine, in the file beside it.

``destseg tune`` measures and writes; ``load(..., options="tuned")``, ``--tuned`` and the C++
library follow it. A file of another machine, artifact or version is refused, not ignored: a line
would run slower, or in another precision, and nobody would know.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from destseg_deploy.environment import allowed_cores, cpu_name
from destseg_deploy.errors import BackendError, SpecError
from destseg_deploy.files import replacing
from destseg_deploy.locks import locked
from destseg_deploy.options import OpenVinoOptions, Options, OrtOptions
from destseg_deploy.runtime.offline import import_onnxruntime, import_openvino
from destseg_deploy.spec import FileRecord, ModelSpec
from destseg_deploy.spec.limits import RESTORE, check_choice, check_count, check_text
from destseg_deploy.spec.reading import parse_object, read_dataclass, read_json_text

SUFFIX = ".tuning.json"
TUNED: dict[str, type[OrtOptions] | type[OpenVinoOptions]] = {
    "onnxruntime": OrtOptions,
    "openvino": OpenVinoOptions,
}
"""Back end that can be tuned -> the class of its options."""


@dataclass(frozen=True)
class Choice:
    """A back end with what is set about it; both runtimes, Python's and C++'s, know all of it.

    Attributes:
        backend: ``onnxruntime`` or ``openvino``.
        precision: ``fp32``, or ``bf16`` with OpenVINO.
        threads: Threads within a call; 0 for the back end's choice.
        spinning: Whether ONNX Runtime's threads look for work before they sleep.
        streams: Calls that OpenVINO computes at the same time; 0 for one after another.
    """

    backend: str
    precision: str = "fp32"
    threads: int = 0
    spinning: bool = True
    streams: int = 0

    def __post_init__(self) -> None:
        """Refuse what the back end does not have.

        Raises:
            SpecError: With the value.
        """
        check_choice(self.backend, tuple(TUNED), "backend")
        precisions = ("fp32", "bf16") if self.backend == "openvino" else ("fp32",)
        check_choice(self.precision, precisions, "precision")
        check_count(self.threads, 0, 1024, "threads")
        if self.backend != "onnxruntime" and not self.spinning:
            raise SpecError(f"spinning is false, expected true with {self.backend}. {RESTORE}")
        check_count(self.streams, 0, 1024 if self.backend == "openvino" else 0, "streams")

    @property
    def options(self) -> OrtOptions | OpenVinoOptions:
        """What ``load`` takes."""
        kind = TUNED[self.backend]
        known = {one.name for one in fields(kind)}
        return kind(**{k: v for k, v in asdict(self).items() if k in known})

    def __str__(self) -> str:
        """Return it in words, such as ``openvino, bf16, 4 threads``."""
        words = [self.backend]
        words += [self.precision] if self.precision != "fp32" else []
        words += [f"{self.threads} thread{'s' * (self.threads > 1)}"] if self.threads else []
        words += [] if self.spinning else ["no spinning"]
        words += [f"{self.streams} streams"] if self.streams else []
        return ", ".join(words)


@dataclass(frozen=True)
class Machine:
    """What a measurement holds for.

    Attributes:
        cpu: The processor's name.
        cores: Logical processors that the process may use.
        version: Of the back end's library.
    """

    cpu: str
    cores: int
    version: str

    def __post_init__(self) -> None:
        """Refuse values that no machine has."""
        check_text(self.cpu, "cpu")
        check_count(self.cores, 1, 65536, "cores")
        check_text(self.version, "version")

    @classmethod
    def here(cls, backend: str) -> Machine:
        """Return this machine with a back end that is installed."""
        if backend == "openvino":
            return cls(cpu_name(), len(allowed_cores()), import_openvino().get_version())
        return cls(cpu_name(), len(allowed_cores()), import_onnxruntime().__version__)

    def __str__(self) -> str:
        """Return it in words."""
        return f"{self.cpu} with {self.cores} cores and version {self.version}"


@dataclass(frozen=True)
class Measured:
    """What the choice rests on.

    Attributes:
        batch: Images in a call.
        cameras: Calls at the same time.
        images: Images that precisions were compared on.
        milliseconds: Median until all of these calls have their answer, as chosen.
        default_milliseconds: The same, as ``load`` opens the artifact without options.
        times_faster: Median over the rounds of the default's time divided by the choice's.
    """

    batch: int
    cameras: int
    images: int
    milliseconds: float
    default_milliseconds: float
    times_faster: float


@dataclass(frozen=True)
class Tuning:
    """How an artifact runs fastest on a machine.

    Attributes:
        format: 1.
        artifact: The file that was measured.
        choice: How to open it.
        machine: Where it was measured, with the chosen back end's version.
        measured: The times.
    """

    format: int
    artifact: FileRecord
    choice: Choice
    machine: Machine
    measured: Measured

    def __post_init__(self) -> None:
        """Refuse another format."""
        check_count(self.format, 1, 1, "format")

    def write(self, artifact: Path) -> Path:
        """Write it beside an artifact and return its path."""
        path = tuning_path(artifact)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        return path

    @classmethod
    def read(cls, artifact: Path) -> Tuning:
        """Read the tuning of an artifact, which must be of that very file.

        Raises:
            BackendError: If it is missing, damaged, or of another file.
        """
        path = tuning_path(artifact)
        again = f"Run destseg tune {artifact} --images FOLDER"
        if not path.exists():
            raise BackendError(f"{path}: no such file, so {artifact.name} is not tuned. {again}.")
        try:
            data: dict[str, Any] = parse_object(read_json_text(path), str(path))
            found = read_dataclass(cls, data, str(path))
        except SpecError as error:
            # What the reader of specs advises is for specs.
            raise BackendError(f"{str(error).rpartition('. ')[0]}. {again} again.") from error
        if found.artifact != FileRecord.of(artifact):
            raise BackendError(
                f"{path}: {artifact.name} was changed after it was tuned. {again} again."
            )
        return found


@contextmanager
def hold_tuning(artifact: Path) -> Iterator[None]:
    """Hold the tuning of an artifact while it is measured: two at a time would slow each other.

    Raises:
        SpecError: If the artifact has no spec.
        OutputError: If another run holds it, or its folder cannot be written.
    """
    ModelSpec.read(artifact)
    with locked(tuning_path(artifact)):
        yield


def tuning_path(artifact: Path) -> Path:
    """Return where the tuning of an artifact lies: ``<name>.tuning.json`` beside it."""
    return artifact.with_name(artifact.stem + SUFFIX)


def tuned(artifact: Path) -> tuple[str, Options]:
    """Return the back end and the options that were fastest for an artifact on this machine.

    Raises:
        BackendError: If it was not tuned, or on another machine or version, or the back end is not
            installed.
    """
    found = Tuning.read(artifact)
    backend = found.choice.backend
    try:
        here = Machine.here(backend)
    except ImportError as error:
        raise BackendError(
            f"{tuning_path(artifact)}: chose {backend}, which is not installed. "
            f"pip install 'destseg-deploy[{backend}]', or run destseg tune {artifact} "
            "--images FOLDER again."
        ) from error
    if here != found.machine:
        raise BackendError(
            f"{tuning_path(artifact)}: made on {found.machine}; this is {here}. Run destseg tune "
            f"{artifact} --images FOLDER again."
        )
    return backend, found.choice.options
