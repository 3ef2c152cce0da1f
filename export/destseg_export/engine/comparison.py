"""An engine is compared with the checkpoint that it was made from, or says that it was not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from destseg_deploy.errors import ExportError
from destseg_deploy.files import sha256
from destseg_deploy.loading import load
from destseg_deploy.models.weights import load_checkpoint
from destseg_deploy.spec import ModelSpec, ParityRecord
from destseg_export.frames import verification_frames
from destseg_export.parity import (
    Verification,
    answer,
    check_parity,
    check_sight,
    compare,
    open_reference,
)


def compare_engine(
    staged: Path,
    spec: ModelSpec,
    checkpoint: Path,
    verification: Verification,
    *,
    device: str,
    report: Callable[[str], None],
) -> ParityRecord:
    """Run an engine under its temporary path, its spec beside it, and compare it with PyTorch.

    Returns:
        What was measured, for the spec.

    Raises:
        ParityError: If its answers differ beyond the budget, or the images cannot show it.
        BackendError: If it cannot be run.
    """
    model, trained = load_checkpoint(checkpoint)
    frames = verification_frames(verification.images, trained, spec.size, spec.tiles)
    report(f"comparing the engine with PyTorch on {len(frames.images)} {frames.source}")
    wanted = answer(open_reference(model, trained, spec), frames)
    with load(staged, device=device) as candidate:
        parity = compare(wanted, candidate, frames)
    budget = verification.budget(spec.precision)
    check_sight(parity, spec.artifact.file)
    check_parity(parity, budget, spec.artifact.file)
    return parity.record(spec.artifact.file, frames.source, budget)


def carry_parity(source: ModelSpec) -> ParityRecord:
    """Return the record of an ONNX file for an engine that cannot be run here.

    Its ``compared`` keeps the name of the ONNX file, so that the engine's spec does not claim that
    the engine itself was compared.

    Raises:
        ExportError: If the ONNX file was not compared either.
    """
    if source.parity is None:
        raise ExportError(
            f"{source.artifact.file}: it was never compared with PyTorch, and the engine cannot be "
            "run here. Export it with destseg-export, which compares it."
        )
    return source.parity


def find_checkpoint(onnx: Path, source: ModelSpec, given: Path | None) -> Path:
    """Return the checkpoint that an ONNX file was exported from.

    Raises:
        ExportError: If it is missing, or the file found is not that checkpoint.
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
