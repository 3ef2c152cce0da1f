"""The gate of engines: compared with PyTorch where they can run, honest about it where not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from destseg_deploy import predictor
from destseg_deploy.atomic import sha256
from destseg_deploy.errors import ExportError
from destseg_deploy.models.weights import load_checkpoint
from destseg_deploy.predictor import Predictor
from destseg_deploy.runtime.pytorch import PyTorchRuntime
from destseg_deploy.spec import ModelSpec
from destseg_export.verify import Budget, check_parity, compare, verification_frames


@dataclass(frozen=True)
class Limits:
    """Largest differences allowed, of a map's pixel and of a score; the precision's where None."""

    anomaly_map: float | None = None
    score: float | None = None

    def budget(self, precision: str) -> Budget:
        """Return the budget of a precision with these limits."""
        return Budget.of(precision, self.anomaly_map, self.score)


@dataclass(frozen=True)
class Verification:
    """What an engine is compared with, on what, and how closely.

    Attributes:
        checkpoint: The checkpoint it was exported from; looked for beside the ONNX file unless
            given.
        images: Images to compare on; see ``verification_frames``.
        budget: Largest differences allowed; the precision's unless given.
    """

    checkpoint: Path | None = None
    images: Sequence[Path] | None = None
    budget: Budget | None = None


def compare_engine(
    staged: Path,
    spec: ModelSpec,
    checkpoint: Path,
    verification: Verification,
    *,
    device: str,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Run an engine that lies with its spec under a temporary path, and compare it with PyTorch.

    Returns:
        What was measured, for the spec.

    Raises:
        ParityError: If its answers differ beyond the budget, or the images cannot show it.
        BackendError: If it cannot be run.
    """
    model, trained = load_checkpoint(checkpoint)
    frames, source = verification_frames(verification.images, trained, spec.size)
    report(f"comparing the engine with PyTorch on {len(frames)} {source}")
    reference = Predictor(PyTorchRuntime(model, trained))
    with predictor.load(staged, device=device) as candidate:
        parity = compare(reference, candidate, frames)
    budget = verification.budget or Budget.of(spec.precision)
    check_parity(parity, budget, spec.artifact.file)
    return {
        "engine_run": True,
        "images": source,
        "budget": asdict(budget),
        **parity.summary(),
    }


def carry_parity(source: ModelSpec) -> dict[str, Any]:
    """Return what the comparison of the ONNX file measured, marked as not of the engine.

    Raises:
        ExportError: If the ONNX file was not compared either.
    """
    if "map_max_abs" not in source.parity:
        raise ExportError(
            f"{source.artifact.file}: it was never compared with PyTorch, and the engine cannot be "
            "run here. Export it with destseg-export, which compares it."
        )
    return {**source.parity, "engine_run": False, "compared": source.artifact.file}


def find_checkpoint(onnx: Path, source: ModelSpec, given: Path | None) -> Path:
    """Return the very checkpoint that an ONNX file was exported from.

    Raises:
        ExportError: If it is not there, or another.
    """
    path = given or onnx.with_name(source.checkpoint.file)
    if not path.is_file():
        raise ExportError(
            f"{path}: no such file. An engine is compared with the checkpoint it was made from; "
            "name it with --checkpoint."
        )
    found = sha256(path)
    if found != source.checkpoint.sha256:
        raise ExportError(
            f"{path}: its content (sha256 {found[:12]}) is not what {onnx.name} was exported from "
            f"({source.checkpoint.file}, sha256 {source.checkpoint.sha256[:12]}). Name that one "
            "with --checkpoint, or export again."
        )
    return path
