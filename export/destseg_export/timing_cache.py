"""TensorRT's timing cache: what its tactics cost on this GPU, kept from build to build.

With it, a second build of a similar network takes a fraction of the time and picks the same
tactics. TensorRT alone knows whether a cache is its own; one of another GPU or version is put aside
and written anew. TensorRT-RTX times on the machine that runs the engine and keeps none.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from destseg_deploy.atomic import replacing


def load_timing_cache(config: Any, path: Path, report: Callable[[str], None]) -> None:
    """Give a builder's config the timings in a file, or none where it is not there or another's.

    Args:
        config: An ``IBuilderConfig``.
        path: The cache file.
        report: Called with a line that says what was done.

    Raises:
        OSError: If the file is there and cannot be read.
    """
    content = path.read_bytes() if path.is_file() else b""
    if content and _take(config, content):
        report(f"timing cache {path}: {len(content)} bytes reused")
        return
    if content:
        report(f"timing cache {path}: another GPU's or TensorRT's, written anew")
    _take(config, b"")


def save_timing_cache(config: Any, path: Path) -> None:
    """Keep a config's timings after a build; the file is whole or as it was.

    Raises:
        OSError: If it cannot be written.
    """
    cache = config.get_timing_cache()
    if cache is None:
        return
    with replacing(path) as temporary:
        temporary.write_bytes(bytes(cache.serialize()))


def _take(config: Any, content: bytes) -> bool:
    cache = config.create_timing_cache(content)
    return cache is not None and bool(config.set_timing_cache(cache, False))
