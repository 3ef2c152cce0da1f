"""torchvision's weight files, found in torch's own cache or downloaded once.

Their names end in the first 8 hex digits of their SHA-256, which pins them.
"""

from __future__ import annotations

import http.client
import urllib.request
from pathlib import Path

import torch

from destseg_deploy.atomic import replacing, sha256
from destseg_deploy.errors import WeightsError

URL = "https://download.pytorch.org/models/"
TIMEOUT_S = 30.0
BLOCK = 1 << 20


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
    if path.is_file():
        _check(path, name, f"Delete {path}, or name the file you want.")
    elif download:
        _download(address + name, path)
    else:
        raise WeightsError(f"{path}: no such weights file. Copy {address}{name} there.")
    return path


def _check(path: Path, name: str, advice: str) -> None:
    wanted = Path(name).stem.rsplit("-", 1)[-1]
    found = sha256(path)
    if not found.startswith(wanted):
        raise WeightsError(f"{name}: sha256 is {found[:12]}, expected {wanted}. {advice}")


def _download(url: str, path: Path) -> None:
    """Fetch a file; what does not have the pinned hash never gets its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(path) as temporary, urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            with temporary.open("wb") as file:
                while block := answer.read(BLOCK):
                    file.write(block)
            _check(temporary, path.name, f"A proxy may have answered instead of {url}.")
    except (OSError, http.client.HTTPException) as error:
        raise WeightsError(
            f"no pretrained weights: {path} is not there and {url} cannot be fetched ({error}). "
            "Copy the file there, or name one of the same network."
        ) from error
