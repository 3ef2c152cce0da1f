"""Fetches weights whose content is known: what has another hash never gets its name."""

from __future__ import annotations

import http.client
import urllib.request
from pathlib import Path

from destseg_deploy.atomic import replacing, sha256
from destseg_deploy.errors import WeightsError

TIMEOUT_S = 30.0
BLOCK = 1 << 20


def fetch_pinned(url: str, path: Path, digest: str, *, what: str, advice: str) -> None:
    """Download a file under a temporary name, check it and rename it.

    Args:
        url: Where it is.
        path: What it becomes; its folder is made when missing.
        digest: Its SHA-256 in hex, or how that begins.
        what: What is missing without it, for the error.
        advice: How else to get it, a sentence.

    Raises:
        WeightsError: If it cannot be fetched, or has another content.
    """
    try:
        with replacing(path) as temporary:
            _copy(url, temporary)
            found = sha256(temporary)
            if not found.startswith(digest):
                raise WeightsError(
                    f"{url}: the download's sha256 is not {digest[:12]} (it is {found[:12]}). A "
                    f"proxy may have answered instead. {advice}"
                )
    except (OSError, http.client.HTTPException) as error:
        raise WeightsError(
            f"no {what}: {path} is not there and {url} cannot be fetched ({error}). {advice}"
        ) from error


def _copy(url: str, path: Path) -> None:
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer, path.open("wb") as file:
        while block := answer.read(BLOCK):
            file.write(block)
