"""Contender: a row of settings, one way to run one artifact."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from destseg_deploy.options import Options


@dataclass(frozen=True)
class Contender:
    """One way to run one artifact.

    Attributes:
        name: What tables call it; unique among those timed together.
        artifact: The file.
        precision: What it computes in.
        size: Height and width of its frames.
        back_end: Key of ``contenders.CPU_BACK_ENDS``; empty for the one that the artifact's suffix
            names.
        device: ``cpu``, ``cuda`` or ``cuda:<index>``.
        threads: Threads within an operator, of the back ends that take it; 0 for their choice.
        torch_way: How PyTorch runs the checkpoint outside its runtime: ``reference``, ``eager``
            or ``compiled``, see ``torch_contenders``. Empty for the runtime.
        origin: ``host`` or ``device``, see ``contenders``.
        options: How its back end runs it; None for what ``back_end`` or the suffix says.
    """

    name: str
    artifact: Path
    precision: str
    size: tuple[int, int]
    back_end: str = ""
    device: str = "cpu"
    threads: int = 0
    torch_way: str = ""
    origin: str = "host"
    options: Options | None = None

    @property
    def concurrent(self) -> bool:
        """Whether calls may run at the same time; not where they share one buffer on the GPU."""
        return self.origin == "host"
