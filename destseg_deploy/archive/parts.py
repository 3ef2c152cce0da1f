"""The answers of an archive: Parquet files that appear whole, and that a later run goes on from.

The folder is a table for every reader of Parquet. Each part says in its metadata what its answers
were made with, so that those of two models never mix. Only the run that holds the folder's lock
writes, and a part is renamed to its name when it is complete, so an image is in one part at most.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from destseg_deploy import environment
from destseg_deploy.archive.answers import Answer, Work
from destseg_deploy.errors import OutputError
from destseg_deploy.files import replacing
from destseg_deploy.spec import ModelSpec
from destseg_deploy.text import storable

METADATA = b"destseg"
"""Key of a part's metadata; its value is JSON."""

MOST_ROWS = 2000
MOST_BYTES = 64 * 2**20  # of maps: they wait in memory until their part is written
OLDEST_S = 60.0
"""A part is written when it has so many rows or bytes, or its first row is so old; a kill costs no
more than that."""


@dataclass(frozen=True)
class Origin:
    """What answers were made with. Answers of different origins are never in one folder.

    Attributes:
        artifact: Its SHA-256.
        file: Its name.
        threshold: Scores above it are NG; None without a threshold.
        computed: The back end, and the precision where it has a choice.
        bit_depth: Of the camera, for 16-bit files; None where the values tell it.
        maps: Longer side of the maps; None where none are kept.
    """

    artifact: str
    file: str
    threshold: float | None
    computed: str
    bit_depth: int | None
    maps: int | None

    @classmethod
    def of(cls, spec: ModelSpec, work: Work) -> Origin:
        """Return the origin of what a model answers."""
        precision = getattr(work.options, "precision", "fp32")
        computed = " ".join(filter(None, (work.backend, precision)))
        threshold = None if spec.threshold is None else spec.threshold.score
        record = spec.artifact
        return cls(record.sha256, record.file, threshold, computed, work.bit_depth, work.maps)

    def refuse_other(self, other: Origin, folder: Path) -> None:
        """Refuse answers of another origin, naming the first difference.

        Raises:
            OutputError: With both values.
        """
        choose = "or choose another --output."
        if other.artifact != self.artifact:
            raise OutputError(
                f"{folder}: its answers are of {other.file} (sha256 {other.artifact[:12]}), and "
                f"this is {self.file} (sha256 {self.artifact[:12]}). Pass that artifact, {choose}"
            )
        for name in ("threshold", "computed", "bit_depth", "maps"):
            before, now = getattr(other, name), getattr(self, name)
            if before != now:
                raise OutputError(
                    f"{folder}: its answers were made with {name} {before}, and this run has "
                    f"{now}. Pass the same, {choose}"
                )


@dataclass(frozen=True)
class Counts:
    """What the parts hold: images, those that are NG, those with an error, and the first error."""

    images: int = 0
    ng: int = 0
    errors: int = 0
    first: str | None = None


class Parts:
    """The parts of one folder. The caller holds its lock."""

    def __init__(self, folder: Path, origin: Origin) -> None:
        """Look at the parts of earlier runs.

        Raises:
            OutputError: If a part is damaged, not ours, or of another origin.
        """
        self._folder, self._origin = folder, origin
        self._paths = sorted(folder.glob("part-*.parquet"))
        for path in self._paths:
            origin.refuse_other(_origin_of(path), folder)
        numbers = (path.stem.removeprefix("part-") for path in self._paths)
        self._next = max((int(n) for n in numbers if n.isdecimal()), default=0) + 1

    def answered(self) -> set[str]:
        """Return the paths that have an answer, as ``storable`` writes them."""
        return {path for part in self._paths for path in _read(part, ["path"])["path"].to_pylist()}

    def counts(self) -> Counts:
        """Count what all parts hold."""
        found = Counts()
        for part in self._paths:
            table = _read(part, ["verdict", "error"])
            errors = table["error"].drop_null()
            found = Counts(
                found.images + len(table),
                found.ng + table["verdict"].to_pylist().count("NG"),
                found.errors + len(errors),
                found.first or (errors[0].as_py() if len(errors) else None),
            )
        return found

    @contextmanager
    def writing(self) -> Iterator[Writer]:
        """Give what collects answers and writes them; the rest is written in the end, too.

        Also where the block raises: an interruption costs no answer. Where a part could not be
        written, its images are scored again by the next run.
        """
        writer = Writer(self)
        try:
            yield writer
        except OutputError:  # the disk is full
            raise
        except BaseException:
            writer.flush()
            raise
        writer.flush()

    def write(self, answers: Iterable[Answer]) -> Path:
        """Write a part and return its path.

        Raises:
            OutputError: If it cannot be written; nothing of it is left then.
        """
        path = self._folder / f"part-{self._next:06d}.parquet"
        try:
            with replacing(path) as temporary:
                temporary.write_bytes(_encoded(answers, self._origin))
        except OSError as error:
            raise OutputError(
                f"{path}: it cannot be written ({error.strerror or error}). The parts before it "
                "are complete. Make room; the same command goes on."
            ) from error
        self._paths.append(path)
        self._next += 1
        return path


class Writer:
    """Collects answers until they are worth a part."""

    def __init__(self, parts: Parts) -> None:
        """Begin with no answer."""
        self._parts = parts
        self._rows: list[Answer] = []
        self._bytes, self._since = 0, 0.0

    def add(self, answers: Iterable[Answer]) -> None:
        """Take answers; write a part when there are enough.

        Raises:
            OutputError: As ``Parts.write``.
        """
        for answer in answers:
            self._since = self._since if self._rows else time.monotonic()
            self._rows.append(answer)
            self._bytes += len(answer.map or b"")
        old = bool(self._rows) and time.monotonic() - self._since > OLDEST_S
        if old or len(self._rows) >= MOST_ROWS or self._bytes >= MOST_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is there as a part."""
        if self._rows:
            self._parts.write(self._rows)
            self._rows, self._bytes = [], 0


def _schema(maps: bool, metadata: dict[bytes, bytes]) -> Any:
    import pyarrow as pa

    columns = [
        ("path", pa.string()),
        ("score", pa.float32()),
        ("normalized_score", pa.float32()),
        ("verdict", pa.string()),
        ("error", pa.string()),
        ("time", pa.timestamp("us", "UTC")),
    ]
    return pa.schema(columns + [("map", pa.binary())] * maps, metadata)


def _encoded(answers: Iterable[Answer], origin: Origin) -> bytes:
    """Return the bytes of a part."""
    import pyarrow as pa
    from pyarrow.parquet import write_table

    said = {"format": 1, "version": environment.VERSION, **asdict(origin)}
    schema = _schema(origin.maps is not None, {METADATA: json.dumps(said).encode()})
    rows = [answer._replace(path=storable(answer.path))._asdict() for answer in answers]
    for row in rows:
        row["error"] = None if row["error"] is None else storable(row["error"])
    content = io.BytesIO()
    write_table(pa.Table.from_pylist(rows, schema), content, compression="zstd")
    return content.getvalue()


def _origin_of(path: Path) -> Origin:
    """Return what the answers of a part were made with."""
    from pyarrow.parquet import read_schema

    with _readable(path):
        metadata = read_schema(path).metadata or {}
    try:
        said = json.loads(metadata[METADATA])
        return Origin(**{name: said[name] for name in Origin.__dataclass_fields__})
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise OutputError(
            f"{path}: exists and was not written by this command. Choose another --output, or move "
            "it away."
        ) from error


def _read(path: Path, columns: list[str]) -> Any:
    from pyarrow.parquet import ParquetFile

    with _readable(path), ParquetFile(path) as file:
        return file.read(columns=columns)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise OutputError(
            f"{path}: it cannot be read ({reason}). Delete it; the same command then scores its "
            "images again."
        ) from error
