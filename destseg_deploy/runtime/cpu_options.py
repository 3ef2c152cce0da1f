"""What a host may choose about running on a CPU, per back end; ``destseg_deploy.load`` takes both.

Defaults are right for a PC that does nothing else. Each back end checks its options when it opens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class OrtCpuOptions:
    """How ONNX Runtime uses the cores and the memory of a CPU.

    Attributes:
        arena: Keep the memory of a call for the next one. Without it, a predictor holds little more
            than its weights between calls, and each call takes longer.
        spinning: Let threads look for work for a while before they sleep. Fastest where the cores
            are free; on a PC shared with other programs it takes their time, and theirs ours.
        worker_cores: Logical processors, counted from 0, that the threads beside the calling one
            are pinned to, one each; there are then one more threads than cores named. The calling
            thread is the host's and stays where the host puts it. Not pinned unless given.
    """

    arena: bool = True
    spinning: bool = True
    worker_cores: tuple[int, ...] = ()


@dataclass(frozen=True)
class OpenVinoOptions:
    """How OpenVINO runs a graph.

    Attributes:
        precision: ``fp32``, or ``bf16`` where the CPU computes in it: about twice as fast, with
            differences of up to a few hundredths. Set the threshold in the precision that runs.
        hint: ``latency``, all cores on one call, or ``throughput``, several calls at a time.
        streams: Calls that run at the same time, each on its share of the cores; 0 for what the
            hint brings.
        pinning: Whether threads stay on their cores; OpenVINO's choice unless given.
        cache: Folder for compiled models, made if missing; the next start is faster. Each is as
            large as the artifact, and is taken as it is found there, without a hash.
    """

    precision: str = "fp32"
    hint: str = "latency"
    streams: int = 0
    pinning: bool | None = None
    cache: Path | None = None
