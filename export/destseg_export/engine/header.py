"""What the first bytes of a TensorRT-RTX engine say, without TensorRT and without a GPU.

The layout is not documented; it was found by building engines for known targets with 1.7.1.116. So
this is a hint for people who hold a file without its spec, and nothing is decided by it.

    bytes 0-3    ``vtrt``
    bytes 24-27  the builder's version, a byte for each number
    bytes 28-31  ``vtrt`` again
    bytes 32-35  little endian, a bit for each compute capability
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MAGIC = b"vtrt"
SIZE = 64
"""Bytes of the header; ``Runtime.engine_header_size`` says the same."""
BITS = {0x1: "sm_75", 0x2: "sm_80", 0x4: "sm_86", 0x8: "sm_89", 0x10: "sm_120", 0x20: "sm_121"}


@dataclass(frozen=True)
class EngineHeader:
    """What was found.

    Attributes:
        version: Of TensorRT-RTX, such as ``1.7.1.116``.
        targets: Compute capabilities, such as ``sm_86``.
    """

    version: str
    targets: tuple[str, ...]

    def __str__(self) -> str:
        """Return it in words."""
        return f"TensorRT-RTX {self.version} for {', '.join(self.targets) or 'no known target'}"


def read_header(engine: Path) -> EngineHeader | None:
    """Return what a file's header says; None if it is not laid out like TensorRT-RTX's.

    Raises:
        OSError: If the file cannot be read.
    """
    with engine.open("rb") as file:
        header = file.read(SIZE)
    if len(header) < SIZE or header[:4] != MAGIC or header[28:32] != MAGIC:
        return None
    mask = int.from_bytes(header[32:36], "little")
    targets = tuple(name for bit, name in BITS.items() if mask & bit)
    return EngineHeader(".".join(str(number) for number in header[24:28]), targets)
