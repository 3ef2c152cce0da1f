"""Whether an engine that is there is the one that would be built: one key over all that decides it.

The bytes of two builds differ, so engines cannot be told by their hash; what went in can.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from destseg_deploy.errors import SpecError
from destseg_deploy.runtime.engine_record import EngineRecord
from destseg_deploy.spec import ModelSpec
from destseg_export.engine_build import BuildOptions
from destseg_export.engine_site import Site

RECIPE = 1
"""Counts changes of ``engine_build`` that make other engines of the same input."""


def engine_key(source: ModelSpec, site: Site, options: BuildOptions) -> str:
    """Return the SHA-256 over what decides an engine.

    Args:
        source: The spec of the ONNX file.
        site: The builder, and what it builds for.
        options: What is asked of it; the timing cache's path decides nothing.
    """
    return key_of(
        onnx_sha256=source.artifact.sha256,
        precision=source.precision,
        profile=str(source.input.batch),
        builder=site.builder,
        version=site.version,
        gpu=site.gpu,
        targets=site.targets,
        flags=options.flags(),
    )


def key_of(
    *,
    onnx_sha256: str,
    precision: str,
    profile: str,
    builder: str,
    version: str,
    gpu: str | None,
    targets: tuple[str, ...],
    flags: tuple[str, ...],
) -> str:
    """Return the key of these entries; see ``EngineRecord`` for their form."""
    entries = {**locals(), "recipe": RECIPE}
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def find_built(output: Path, key: str) -> ModelSpec | None:
    """Return the spec of an engine that is there, whole, and of that key; None otherwise."""
    try:
        spec = ModelSpec.read(output)
        if EngineRecord.of(spec).key != key:
            return None
        spec.check_artifact(output)
    except SpecError:
        return None
    return spec
