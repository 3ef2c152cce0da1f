"""Writing an artifact with its spec: under a right name, over nothing of others, both or none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from destseg_deploy.errors import OutputError, SpecError
from destseg_deploy.files import making, staging
from destseg_deploy.locks import locked
from destseg_deploy.spec.model import ModelSpec, spec_path
from destseg_deploy.spec.parts import Threshold
from destseg_deploy.text import load_json

INHERITED = "threshold_inherited"
"""Entry of ``extra``: the threshold came with the weights. One that was set on the artifact itself
has no such entry, and the next export keeps it."""


def check_output(
    output: Path, suffix: str, is_ours: Callable[[Path], bool] = lambda path: False
) -> None:
    """Refuse to write an artifact under a wrong name, or over a file that is not such an artifact.

    Args:
        output: The artifact.
        suffix: How its name must end.
        is_ours: Asked about an older file that has no spec beside it.

    Raises:
        OutputError: If the name is wrong, the folder is read-only, or the artifact or its spec
            would replace another file.
    """
    spec = spec_path(output)
    if output.suffix.lower() != suffix:
        raise OutputError(f"{output}: expected a name that ends in {suffix}. Add it.")
    _check_folder(Path(os.path.realpath(output)).parent)
    if spec.exists():
        kind = _described(spec)
        if kind != suffix and (kind is not None or not output.exists()):
            what = f"describes a {kind} file" if kind else "is not a spec of destseg-deploy"
            raise OutputError(
                f"{output}: its spec would replace {spec}, which {what}. Choose another name."
            )
    elif output.exists() and not is_ours(output):
        raise OutputError(
            f"{output}: exists without {spec.name} beside it, so nothing says that it may be "
            "replaced. Choose another name, or move it away."
        )


def _check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be written, or made, before the work for it begins."""
    there = next((one for one in (folder, *folder.parents) if one.exists()), folder)
    if not os.access(there, os.W_OK):
        raise OutputError(f"{there}: cannot be written (read-only). Choose another output.")


def _described(spec: Path) -> str | None:
    """Return the suffix of the file that a spec describes, "" if it is other JSON, None if none."""
    try:
        found = load_json(spec)
    except (OSError, ValueError, RecursionError):
        return None
    try:
        return Path(found["artifact"]["file"]).suffix.lower()
    except (KeyError, TypeError):
        return ""


@contextmanager
def writing(output: Path, suffix: str) -> Iterator[Path]:
    """Give a temporary path for an artifact; move it and what is beside it when the block succeeds.

    The artifact and its spec are replaced together, also when the process is killed in between.

    Args:
        output: The artifact.
        suffix: How its name must end.

    Raises:
        OutputError: See ``check_output``; or if another process is writing it.
        OSError: If the folder cannot be made or written.
    """
    check_output(output, suffix)
    with making(output.parent), locked(output), staging(output.parent) as folder:
        yield folder / output.name


def settle_threshold(
    spec: ModelSpec, output: Path, report: Callable[[str], None] = lambda line: None
) -> ModelSpec:
    """Return a spec with the threshold that was set on the artifact it replaces.

    The threshold is kept when the model is the same; when it is not, it is named and dropped.

    Args:
        spec: Of the new artifact; its threshold came with the weights.
        output: The artifact that is replaced, if it is there.
        report: Called with a line if there was such a threshold.
    """
    inherited = {} if spec.threshold is None else {INHERITED: True}
    new = replace(spec, extra={**_without_mark(spec), **inherited})
    try:
        old = ModelSpec.read(output)
    except SpecError:
        return new
    if old.threshold is None or INHERITED in old.extra:
        return new
    kept = with_own_threshold(spec, old.threshold)
    if old.threshold == spec.threshold:
        return kept
    value = f"the threshold {old.threshold.score:.6f} ({old.threshold.rule})"
    if _judges_alike(old, spec):
        report(f"{output}: keeps {value}, which was set before for the same checkpoint")
        return kept
    report(
        f"{output}: drops {value}, which was set for another model. Set a new one: "
        f"destseg-threshold {output} --good FOLDER"
    )
    return new


def name_lost_threshold(spec: ModelSpec, copy: Path, report: Callable[[str], None]) -> None:
    """Say which threshold is lost where a copy of an artifact and its spec replaces an older one.

    Args:
        spec: Of the artifact.
        copy: What the copy will replace, if it is there.
        report: Called with a line if a threshold is lost.
    """
    try:
        old = ModelSpec.read(copy).threshold
    except SpecError:
        return
    if old is not None and old != spec.threshold:
        report(
            f"{copy}: its threshold {old.score:.6f} ({old.rule}) is replaced by that of the "
            f"artifact; to keep it, set it there first: destseg-threshold ARTIFACT --value "
            f"{old.score:g} --pixel {old.pixel:g}"
        )


def with_own_threshold(spec: ModelSpec, threshold: Threshold | None) -> ModelSpec:
    """Return a spec with a threshold that was set on this artifact itself."""
    return replace(spec, threshold=threshold, extra=_without_mark(spec))


def _without_mark(spec: ModelSpec) -> dict[str, Any]:
    return {name: value for name, value in spec.extra.items() if name != INHERITED}


def _judges_alike(old: ModelSpec, new: ModelSpec) -> bool:
    """Tell whether two artifacts give the same scores, but for rounding."""

    def model(spec: ModelSpec) -> tuple[Any, ...]:
        layers = spec.quantization and (spec.quantization.scheme, spec.quantization.layers)
        weights, score = spec.checkpoint.sha256, spec.output.top_k
        place = spec.size, spec.network, spec.tiling, spec.region
        return spec.kind, spec.precision, place, score, weights, layers

    return model(old) == model(new)
