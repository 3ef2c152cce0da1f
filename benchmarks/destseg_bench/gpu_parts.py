"""A trained checkpoint in small files: half weights without the teacher, in parts of 15 MiB.

A host that returns 64 MiB a command cannot return a checkpoint of 134 MiB. The teacher is the file
that it was trained from, so it need not come along.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load, save

from destseg_deploy.errors import WeightsError
from destseg_deploy.files import replacing
from destseg_deploy.models.destseg import DeSTSeg
from destseg_deploy.models.weights import load_checkpoint, load_teacher, save_checkpoint
from destseg_deploy.spec import ModelSpec

PART = 15 * 2**20
TEACHER = "teacher_net."


def pack(checkpoint: Path, folder: Path) -> list[Path]:
    """Write a checkpoint's weights in half, without its teacher, and its spec.

    Returns:
        The parts and the spec.

    Raises:
        WeightsError, SpecError: If the checkpoint cannot be read.
    """
    model, spec = load_checkpoint(checkpoint)
    own = {n: t for n, t in model.state_dict().items() if not n.startswith(TEACHER)}
    content = save({n: t.half() if t.is_floating_point() else t for n, t in own.items()})
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{checkpoint.stem}.part*"):
        old.unlink()
    paths = []
    for number, start in enumerate(range(0, len(content), PART)):
        paths.append(folder / f"{checkpoint.stem}.part{number}")
        with replacing(paths[-1]) as temporary:
            temporary.write_bytes(content[start : start + PART])
    spec.write(folder / f"{checkpoint.stem}.safetensors")
    return [*paths, folder / f"{checkpoint.stem}.json"]


def unpack(spec: Path, teacher_weights: Path | None, output: Path) -> Path:
    """Put the parts beside a spec together again; the weights are as half has rounded them.

    Args:
        spec: ``<category>.json`` that ``pack`` wrote, the parts beside it.
        teacher_weights: What the teacher was trained from; None for torchvision's file.
        output: The checkpoint.

    Raises:
        WeightsError: If a part is missing, or the teacher is another.
    """
    parts = sorted(spec.parent.glob(f"{spec.stem}.part*"), key=lambda p: int(p.suffix[5:]))
    content = b"".join(path.read_bytes() for path in parts)
    try:
        own = load(content)
    except Exception as error:  # safetensors' error is no class that can be named
        raise WeightsError(
            f"{spec.parent}: {len(parts)} parts of {spec.stem} make no checkpoint ({error}). Copy "
            "all of them, as destseg-bench pack wrote them."
        ) from error
    model, known = DeSTSeg(), ModelSpec.read(spec.with_suffix(".safetensors"))
    record = load_teacher(model.teacher_net, teacher_weights)
    if known.teacher is not None and record.sha256 != known.teacher.sha256:
        raise WeightsError(
            f"{teacher_weights}: not the teacher of {spec.stem} (its sha256 is {record.sha256}, "
            f"expected {known.teacher.sha256}). Name the file it was trained from."
        )
    state = {n: t.float() if t.dtype == torch.float16 else t for n, t in own.items()}
    model.load_state_dict({**model.state_dict(), **state})
    save_checkpoint(model, known, output)
    return output
