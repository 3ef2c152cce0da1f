"""The files of trainings, to compare two folders of them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from destseg_deploy.spec.digest import Digest


def trained_files(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's files, by name; the duration of a training as 0."""
    found: dict[str, Any] = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in [name for name in found if name.endswith(".json")]:
        found[name] = _timeless(json.loads(found[name]))
    return found


def _timeless(spec: dict[str, Any]) -> str:
    assert spec["digest"] == asdict(Digest.of(spec))
    assert spec["training"]["seconds"] >= 0
    spec["training"]["seconds"] = 0
    spec["digest"] = asdict(Digest.of(spec))  # it covers the duration
    return json.dumps(spec)
