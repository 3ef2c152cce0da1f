"""Weight files: the ImageNet teacher, our checkpoints (safetensors) and official ones (pickle).

A pickle is only opened with ``weights_only=True``, so that no code in it can run. A downloaded file
is only used if its SHA-256 is the pinned one.
"""

from __future__ import annotations

import http.client
import pickle
import re
import socket
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from destseg_deploy.environment import VERSION
from destseg_deploy.errors import SpecError, WeightsError
from destseg_deploy.files import sha256, staging
from destseg_deploy.memory import refuse_shortage
from destseg_deploy.models.destseg import DeSTSeg, Teacher
from destseg_deploy.models.limits import check_weights_file, is_safetensors
from destseg_deploy.spec import (
    BatchRange,
    FileRecord,
    InputSpec,
    ModelSpec,
    NetworkSpec,
    OutputSpec,
    TeacherRecord,
    check_output,
    default_top_k,
    spec_path,
)
from destseg_deploy.spec.contract import KEY, contract_of

TEACHER_FILE = "resnet18-f37072fd.pth"
TEACHER_URL = f"https://download.pytorch.org/models/{TEACHER_FILE}"
TEACHER_SHA256 = "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec"
"""torchvision's ``ResNet18_Weights.IMAGENET1K_V1``, which the paper used. Pinned because newer
versions of timm serve other weights under the same model name."""

DOWNLOAD_TIMEOUT_S = 30.0
"""A download fails when no byte arrives for this long."""

TEACHERS = ("imagenet", "auto", "random")


def load_teacher(
    teacher: Teacher, weights: Path | None = None, *, source: str = "imagenet"
) -> TeacherRecord:
    """Load weights into the teacher and return where they came from.

    Args:
        teacher: Changed in place.
        weights: A ``.pth`` or ``.safetensors`` file with torchvision's names, either the whole
            ResNet18 or only the stem and ``layer1`` to ``layer3``; or a checkpoint, official or
            ours, for the teacher in it. None uses torchvision's file from torch's cache and
            downloads it when it is missing.
        source: ``imagenet``; ``random`` to keep the random weights (for demonstrations only); or
            ``auto``: ImageNet's, and the random ones where they cannot be had.

    Returns:
        The record for the spec; file and hash are None for random weights. A checkpoint of ours
        passes on its own record.

    Raises:
        WeightsError: If the file cannot be downloaded or read, or belongs to another network.
        SpecError: If it is a checkpoint of ours and its spec is missing, or of another file.
    """
    if source == "random":
        if weights is not None:
            raise WeightsError(
                f"teacher 'random' takes no weights, got {weights}. Leave out one of the two."
            )
        return TeacherRecord("random")
    if source not in TEACHERS:
        raise WeightsError(f"teacher {source!r}: expected one of {', '.join(TEACHERS)}.")
    try:
        path = weights or torchvision_teacher()
    except WeightsError:
        if source != "auto":
            raise
        return TeacherRecord("random")
    state = {
        name: tensor
        for name, tensor in _without_prefix(read_state_dict(path)).items()
        if name.split(".")[0] in ("conv1", "bn1", "layer1", "layer2", "layer3")
    }
    _load_strictly(teacher.encoder, state, path, "a torchvision ResNet18")
    if (known := _teacher_inside(path)) is not None:
        return known
    digest = sha256(path)
    origin = "torchvision IMAGENET1K_V1" if digest == TEACHER_SHA256 else "file"
    return TeacherRecord(origin, path.name, digest)


def _teacher_inside(path: Path) -> TeacherRecord | None:
    """Return what a checkpoint of ours says of the teacher in it, which may be a random one."""
    if not is_checkpoint(path):
        return None
    spec = ModelSpec.read(path)
    spec.check_artifact(path)
    return spec.teacher


@torch.no_grad()
def fit_statistics(teacher: Teacher, images: Tensor) -> None:
    """Fit the BatchNorm statistics of a random teacher to images, so that its features differ.

    Without this, each channel of a random network is nearly constant, and the student has almost
    nothing to learn.

    Args:
        teacher: Changed in place. It is in eval mode afterwards.
        images: float (N, 3, H, W), ImageNet-normalised.
    """
    norms = [m for m in teacher.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        # Momentum 1 replaces the running statistics by those of this batch.
        norm.momentum = 1.0
        # Only the norms: Teacher.train() ignores its argument and stays in eval mode.
        norm.train()
    teacher(images)
    for norm in norms:
        norm.momentum = 0.1
        norm.eval()


def torchvision_teacher(folder: Path | None = None, url: str = TEACHER_URL) -> Path:
    """Return torchvision's V1 file from torch's cache; the first call downloads it.

    Args:
        folder: Folder of the file; ``$TORCH_HOME/hub/checkpoints`` unless given, where torchvision
            itself looks.
        url: Address of the file.

    Raises:
        WeightsError: As ``fetch_pinned``.
    """
    folder = folder or Path(torch.hub.get_dir()) / "checkpoints"
    advice = (
        f"Pass --teacher-weights FILE (torchvision's {TEACHER_FILE} or a .safetensors of it), or "
        f"copy that file to {folder}. '--teacher random' trains without, for demonstrations only."
    )
    what = "torchvision's IMAGENET1K_V1, the ImageNet teacher"
    return fetch_pinned(url, folder / TEACHER_FILE, TEACHER_SHA256, what=what, advice=advice)


def fetch_pinned(url: str, path: Path, digest: str, *, what: str, advice: str) -> Path:
    """Return a file of known content; download it if it is missing.

    Args:
        url: Address of the file.
        path: Where the file is, or is stored. Its folder is made when missing.
        digest: The file's SHA-256 in hex, or the beginning of it.
        what: Name of the content, for errors.
        advice: How else the user gets the file; one or more sentences.

    Returns:
        ``path``.

    Raises:
        WeightsError: If the file or the download has another hash, or the download fails.
    """
    if path.is_file():
        found = sha256(path)
        if not found.startswith(digest):
            raise WeightsError(
                f"{path}: not {what} (its sha256 is {found[:12]}, expected {digest[:12]}). Delete "
                f"the file to download it again. {advice}"
            )
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        # torch.hub downloads to a temporary name and renames the file only if the hash is right.
        # Here it gets the whole hash: its load_state_dict_from_url knows the 8 digits in the name.
        with _socket_timeout(DOWNLOAD_TIMEOUT_S):
            progress = sys.stderr is not None and sys.stderr.isatty()  # pythonw has none
            torch.hub.download_url_to_file(url, str(path), digest, progress)
    except (OSError, http.client.HTTPException) as error:
        raise WeightsError(
            f"no {what}: {path} is missing and {url} cannot be downloaded ({error}). {advice}"
        ) from error
    except RuntimeError as error:  # how torch.hub reports another hash
        raise WeightsError(
            f"{url}: the download has another sha256 ({error}). A proxy may have answered instead. "
            f"{advice}"
        ) from error
    return path


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Set the timeout of new sockets; torch.hub sets none and would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read named tensors from ``.safetensors``, or from a pickle without running code in it.

    Raises:
        WeightsError: If the file is missing or damaged, or holds anything but named tensors.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file. Expected a .safetensors, .pth or .pckl file.")
    try:
        check_weights_file(path)
        if is_safetensors(path):
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about newer pickle protocols
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: refused, because it is damaged or holds more than tensors, and opening it "
            "could run its code. Save it again as a plain state dict or as .safetensors."
        ) from error
    except WeightsError:
        raise
    except Exception as error:  # damaged bytes can raise any exception in an unpickler
        refuse_shortage(error, str(path))
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: damaged or incomplete ({reason}). Copy it again.") from error
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise WeightsError(f"{path}: not a state dict of tensors. Save model.state_dict() alone.")
    return dict(state)


def save_checkpoint(model: DeSTSeg, spec: ModelSpec, path: Path) -> ModelSpec:
    """Write the checkpoint and its spec: both are replaced, or none.

    Args:
        model: The trained networks.
        spec: The spec; this function fills in the hashes of the file.
        path: The checkpoint, ending in ``.safetensors``.

    Returns:
        The spec as written.

    Raises:
        OutputError: If the checkpoint or its spec would replace a file that is not one.
        OSError: If they cannot be written.
    """
    named = FileRecord(path.name, "")
    # Before the file is replaced: a spec that no reader takes must not cost the old checkpoint.
    replace(spec, artifact=named, checkpoint=named).check(str(spec_path(path)))
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    check_output(path, ".safetensors", is_checkpoint)
    with staging(path.parent) as folder:
        staged = folder / path.name
        # safetensors' save_file would make the file readable by its owner only, and would leave
        # temporary files of its own when killed.
        # One entry only: safetensors writes several in any order, and the hash would change.
        staged.write_bytes(save(tensors, metadata={KEY: contract_of(spec.as_entries())}))
        record = FileRecord.of(staged)
        spec = replace(spec, artifact=record, checkpoint=record)
        spec.write(staged)
    return spec


def is_checkpoint(path: Path) -> bool:
    """Tell whether a file was written by ``save_checkpoint``, whatever became of its spec."""
    try:
        with safe_open(path, framework="pt") as file:
            return not {KEY, "category"}.isdisjoint(file.metadata() or {})  # category: format 1
    except (SafetensorError, OSError):
        return False


def load_checkpoint(path: Path) -> tuple[DeSTSeg, ModelSpec]:
    """Read a checkpoint and its spec.

    An official ``.pckl`` has no spec. It gets the paper's values: 256 x 256 pixels, T = 100
    (supplement, section A).

    Returns:
        The model, in eval mode, and its spec.

    Raises:
        WeightsError: If the file is missing or damaged, or belongs to another model.
        SpecError: If the spec is missing, or was written for another file.
    """
    # Before the weights: where a writer was killed, reading the spec restores the old pair.
    ours = path.suffix.lower() == ".safetensors" and path.is_file()
    spec = ModelSpec.read(path) if ours else None
    state = read_state_dict(path)
    if spec is not None:
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


def category_of(checkpoint: Path) -> str:
    """Return the category that a checkpoint's name says.

    That is what follows the steps in an official ``DeSTSeg_MVTec_<steps>_<category>.pckl``, and the
    whole name without its suffix for any other.
    """
    official = re.fullmatch(r"DeSTSeg_\w+?_\d+_(.+)", checkpoint.stem)
    return official[1] if official else checkpoint.stem


def official_spec(path: Path) -> ModelSpec:
    """Return the spec of an official checkpoint; see ``category_of``."""
    record = FileRecord.of(path)
    return checkpoint_spec(
        category_of(path), (256, 256), record, teacher=TeacherRecord("inside the checkpoint")
    )


def checkpoint_spec(
    category: str, size: tuple[int, int], record: FileRecord, **provenance: Any
) -> ModelSpec:
    """Return the spec of a checkpoint.

    Args:
        category: Name of the category that it was trained on.
        size: Height and width of the network's images.
        record: The checkpoint file; ``save_checkpoint`` replaces it by the real one.
        **provenance: More fields of ModelSpec: ``teacher``, ``training``, ``threshold``.
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
        tools={"destseg-deploy": VERSION, "torch": torch.__version__},
        **provenance,
    )


def _without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes that wrappers put before names: ``module.``, ``encoder.``, ..."""
    for prefix in ("teacher_net.encoder.", "module.", "encoder.", "backbone."):
        if any(name == f"{prefix}conv1.weight" for name in state):
            return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    return dict(state)


def _load_strictly(module: nn.Module, state: dict[str, Tensor], path: Path, what: str) -> None:
    """Load a state dict that must fit the module, except for BatchNorm's step counters.

    The counters (``num_batches_tracked``) may be missing: timm and older torch do not save them.
    """
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
