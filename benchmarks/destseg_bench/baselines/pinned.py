"""torchvision's weight files, found in torch's own cache or downloaded once.

Their names end in the first 8 hex digits of their SHA-256, which pins them.
"""

from __future__ import annotations

from pathlib import Path

import torch

from destseg_deploy.atomic import sha256
from destseg_deploy.errors import WeightsError
from destseg_deploy.models.pinned import fetch_pinned

URL = "https://download.pytorch.org/models/"


def pinned_file(
    name: str, *, download: bool, cache: Path | None = None, address: str = URL
) -> Path:
    """Return a weight file from the cache, downloading it where asked for.

    Args:
        name: Such as ``wide_resnet50_2-95faca4d.pth``.
        download: Whether to fetch it when it is not cached.
        cache: Folder of the file; ``$TORCH_HOME/hub/checkpoints`` unless given.
        address: What stands before the name where it is fetched from.

    Raises:
        WeightsError: If it is not there and cannot be had, or has another content.
    """
    path = (cache or Path(torch.hub.get_dir()) / "checkpoints") / name
    digest = Path(name).stem.rsplit("-", 1)[-1]
    if path.is_file():
        found = sha256(path)
        if not found.startswith(digest):
            raise WeightsError(
                f"{name}: sha256 is {found[:12]}, expected {digest}. Delete {path}, or name the "
                "file you want with --weights."
            )
    elif download:
        advice = (
            "Copy the file there, or name one of the same network with --weights NAME=FILE; "
            "--random-weights goes on without, which only time can be measured with."
        )
        fetch_pinned(address + name, path, digest, what="pretrained weights", advice=advice)
    else:
        raise WeightsError(f"{path}: no such weights file. Copy {address}{name} there.")
    return path
