"""Where weights come from and go to: the ImageNet teacher, our checkpoints, official checkpoints.

A pickle is only ever opened with ``weights_only=True``; our own format is safetensors.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from destseg_deploy.atomic import replacing, sha256
from destseg_deploy.errors import SpecError, WeightsError
from destseg_deploy.models.destseg import DeSTSeg, Teacher
from destseg_deploy.models.pinned import fetch_pinned
from destseg_deploy.spec import (
    BatchRange,
    FileRecord,
    InputSpec,
    ModelSpec,
    NetworkSpec,
    OutputSpec,
    default_top_k,
    spec_path,
)

TEACHER_FILE = "resnet18-f37072fd.pth"
TEACHER_URL = f"https://download.pytorch.org/models/{TEACHER_FILE}"
TEACHER_SHA256 = "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec"
"""torchvision's ``ResNet18_Weights.IMAGENET1K_V1``, which the paper used; pinned because newer
versions of timm serve other weights under the same model name."""

TEACHERS = ("imagenet", "random")


def load_teacher(
    teacher: Teacher, weights: Path | None = None, *, source: str = "imagenet"
) -> dict[str, str]:
    """Fill the teacher and say where its weights came from.

    Args:
        teacher: Filled in place.
        weights: A ``.pth`` or ``.safetensors`` file with torchvision's names, full or ``layer1`` to
            ``layer3`` only. None to use the cached torchvision file, downloaded when missing.
        source: ``imagenet``, or ``random`` to keep the random weights: only for demonstrations.

    Returns:
        The record for the spec: ``source``, and ``file`` and ``sha256`` unless random.

    Raises:
        WeightsError: If the weights cannot be had, read, or are of another network.
    """
    if source == "random":
        if weights is not None:
            raise WeightsError(
                f"teacher 'random' takes no weights, got {weights}. Drop one of them."
            )
        return {"source": "random"}
    if source not in TEACHERS:
        raise WeightsError(f"teacher {source!r}: expected one of {', '.join(TEACHERS)}.")
    path = weights or torchvision_teacher()
    state = {
        name: tensor
        for name, tensor in _without_prefix(read_state_dict(path)).items()
        if name.split(".")[0] in ("conv1", "bn1", "layer1", "layer2", "layer3")
    }
    _load_strictly(teacher.encoder, state, path, "a torchvision ResNet18")
    digest = sha256(path)
    origin = "torchvision IMAGENET1K_V1" if digest == TEACHER_SHA256 else "file"
    return {"source": origin, "file": path.name, "sha256": digest}


@torch.no_grad()
def fit_statistics(teacher: Teacher, images: Tensor) -> None:
    """Fit the BatchNorm statistics of a random teacher to images, so that its features differ.

    Without it each channel of a random network is nearly constant, and there is little for a
    student to learn.

    Args:
        teacher: Changed in place; in eval mode afterwards as before.
        images: float (N, 3, H, W), ImageNet-normalised.
    """
    norms = [m for m in teacher.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = 1.0  # the statistics of this one batch
        norm.train()
    teacher(images)
    for norm in norms:
        norm.momentum = 0.1
        norm.eval()


def torchvision_teacher(cache: Path | None = None, url: str = TEACHER_URL) -> Path:
    """Return torchvision's V1 file from torch's own cache, downloading it once.

    Args:
        cache: Folder of the file; ``$TORCH_HOME/hub/checkpoints`` unless given, where torchvision
            itself looks.
        url: Where to fetch it from.

    Raises:
        WeightsError: If it is not cached and cannot be downloaded, or has another content.
    """
    folder = cache or Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / TEACHER_FILE
    if not path.is_file():
        advice = (
            f"Pass --teacher-weights FILE (torchvision's {TEACHER_FILE} or a .safetensors of it), "
            f"or copy that file to {folder}. '--teacher random' trains without, for demos only."
        )
        fetch_pinned(url, path, TEACHER_SHA256, what="ImageNet teacher", advice=advice)
    elif sha256(path) != TEACHER_SHA256:
        raise WeightsError(
            f"{path}: not torchvision's IMAGENET1K_V1 (sha256 differs from {TEACHER_SHA256[:12]}). "
            "Delete the file, or name the one you want with --teacher-weights FILE."
        )
    return path


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read named tensors from ``.safetensors``, or from a pickle without running any of its code.

    Raises:
        WeightsError: If the file is missing, damaged, holds code or holds no tensors.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file. Expected a .safetensors, .pth or .pckl file.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks on newer pickle protocols
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: refused, because it is damaged or holds more than tensors, and opening it "
            "could run its code. Save it again as a plain state dict or as .safetensors."
        ) from error
    except Exception as error:  # an unpickler may raise anything at damaged bytes
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: damaged or incomplete ({reason}). Copy it again.") from error
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise WeightsError(f"{path}: not a state dict of tensors. Save model.state_dict() alone.")
    return dict(state)


def save_checkpoint(model: DeSTSeg, spec: ModelSpec, path: Path) -> ModelSpec:
    """Write ``<path>.safetensors`` and its spec, each atomically, the spec last.

    Args:
        model: The trained networks.
        spec: Its contract; the hashes of the file are filled in here.
        path: Ends in ``.safetensors``.

    Returns:
        The spec as written.
    """
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    with replacing(path) as temporary:
        # save_file would make it readable by its owner alone
        temporary.write_bytes(save(tensors, metadata={"category": spec.category}))
    record = FileRecord.of(path)
    spec = replace(spec, artifact=record, checkpoint=record)
    spec.write(path)
    return spec


def load_checkpoint(path: Path) -> tuple[DeSTSeg, ModelSpec]:
    """Read a checkpoint and its spec; the model is in eval mode.

    An official ``.pckl`` has no spec and gets the paper's: 256 x 256, T = 100.

    Raises:
        WeightsError: If the file is missing, damaged, or of another model.
        SpecError: If the spec is missing, or was written for another file.
    """
    state = read_state_dict(path)
    if path.suffix == ".safetensors":
        spec = ModelSpec.read(path)
        if spec.kind != "checkpoint":
            raise SpecError(
                f"{spec_path(path)}: describes {spec.artifact.file} ({spec.kind}), not a "
                "checkpoint. Copy the .json that was written with the checkpoint."
            )
        spec.check_artifact(path)
    else:
        spec = official_spec(path)
    model = DeSTSeg()
    _load_strictly(model, state, path, "a DeSTSeg checkpoint")
    return model.eval(), spec


def official_spec(path: Path) -> ModelSpec:
    """Return the spec of an official checkpoint, ``DeSTSeg_MVTec_5000_<category>.pckl``."""
    record = FileRecord.of(path)
    category = path.stem.removeprefix("DeSTSeg_MVTec_5000_")
    return checkpoint_spec(
        category, (256, 256), record, teacher={"source": "inside the checkpoint"}
    )


def checkpoint_spec(
    category: str, size: tuple[int, int], record: FileRecord, **provenance: Any
) -> ModelSpec:
    """Return the spec of a checkpoint whose network sees images of ``size``.

    Args:
        category: What it was trained on.
        size: Height and width.
        record: The checkpoint file; ``save_checkpoint`` fills in the real one.
        **provenance: Further fields of ModelSpec: ``teacher``, ``training``, ``threshold``.
    """
    height, width = size
    return ModelSpec(
        kind="checkpoint",
        category=category,
        precision="fp32",
        input=InputSpec(height, width, BatchRange(1, 1, 64)),
        network=NetworkSpec(height, width),
        output=OutputSpec(height, width, default_top_k(height, width)),
        artifact=record,
        checkpoint=record,
        tools={"destseg-deploy": version("destseg-deploy"), "torch": torch.__version__},
        **provenance,
    )


def _without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop what wrappers put before the names: ``module.``, ``encoder.``, ``backbone.``."""
    for prefix in ("teacher_net.encoder.", "module.", "encoder.", "backbone."):
        if any(name == f"{prefix}conv1.weight" for name in state):
            return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    return dict(state)


def _load_strictly(module: nn.Module, state: dict[str, Tensor], path: Path, what: str) -> None:
    """Fill a module; counters of BatchNorm may be missing, nothing else."""
    own = module.state_dict()
    missing = [n for n in own if n not in state and not n.endswith("num_batches_tracked")]
    unknown = [n for n in state if n not in own]
    wrong = [n for n in own if n in state and own[n].shape != state[n].shape]
    if wrong:
        name = wrong[0]
        raise WeightsError(
            f"{path}: not {what}: {name} has shape {tuple(state[name].shape)}, expected "
            f"{tuple(own[name].shape)}. Pass the file of a ResNet18-based DeSTSeg."
        )
    if missing or unknown:
        trouble = f"{missing[0]} is missing" if missing else f"{unknown[0]} is unknown"
        raise WeightsError(f"{path}: not {what}: {trouble}. Pass another file.")
    module.load_state_dict({**own, **state})
