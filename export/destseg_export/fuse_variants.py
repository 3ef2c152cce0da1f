"""The fused graph once whole and once without each rewrite, so that each can be timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from destseg_deploy.errors import ExportError
from destseg_deploy.spec import ModelSpec
from destseg_export.fuse_file import fuse_file
from destseg_export.fusing import DEFAULT


def write_variants(
    source: Path,
    folder: Path,
    *,
    images: Sequence[Path] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Write ``fused.onnx`` and, for each rewrite that changed something, ``without-<name>.onnx``.

    Each is compared with the source, as ``fuse_file`` does, and has its spec beside it.

    Args:
        source: A plain fp32 ``.onnx`` with its spec.
        folder: Where they are written; made when missing.
        images: See ``fuse_file``.
        report: Called with a line for each file, and each rewrite that changed nothing.

    Raises:
        SpecError: See ``fuse_file``.
        ExportError: See ``fuse_file``; or if the source is fused already. Nothing is written.
        ParityError: See ``fuse_file``.
    """
    if "fused" in ModelSpec.read(source).parity:
        raise ExportError(f"{source}: fused already. Pass the export without fusions.")
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / "fused.onnx"
    _, fusions = fuse_file(source, whole, names=DEFAULT, images=images)
    report(f"{whole.name}: {', '.join(f.name for f in fusions if f.changed)}")
    written = [whole]
    for fusion in fusions:
        if not fusion.changed:
            report(f"{fusion.name}: changes nothing here, so there is no file without it")
            continue
        path = folder / f"without-{fusion.name}.onnx"
        fuse_file(source, path, names=[n for n in DEFAULT if n != fusion.name], images=images)
        report(path.name)
        written.append(path)
    return written
