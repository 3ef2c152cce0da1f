"""Exact fusions of the FP32 graph: what is applied, in which order, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import onnx

from destseg_deploy.errors import ExportError
from destseg_export.batch_norms import fold_batch_norms
from destseg_export.fusions.duplicates import drop_duplicates
from destseg_export.fusions.graph import Graph, Outcome, Refusal, Rewrite, infer_shapes
from destseg_export.fusions.kernels import move_kernels, move_twofold_kernels
from destseg_export.fusions.macs import count_macs
from destseg_export.fusions.normalization import fold_normalization
from destseg_export.fusions.optimizer import optimize
from destseg_export.fusions.pooled_branch import take_out_pooled_branch
from destseg_export.fusions.products import divide_lengths_once
from destseg_export.fusions.resizes import fix_resizes
from destseg_export.fusions.shortcuts import move_shortcuts
from destseg_export.fusions.stems import join_stems
from destseg_export.fusions.upsampling import multiply_to_upsample


def fold_norms(graph: Graph) -> Outcome:
    """Fold BatchNorm into convolutions; torch's exporter does it itself."""
    norms = graph.nodes("BatchNormalization")
    try:
        return Outcome(tuple(fold_batch_norms(graph.proto)))
    except ExportError as error:
        return Outcome((), (Refusal(norms[0].name, str(error)),))


FUSIONS: Mapping[str, Rewrite] = MappingProxyType(
    {
        "batch-norms": fold_norms,
        "resizes": fix_resizes,
        "normalization": fold_normalization,
        "stems": join_stems,
        "products": divide_lengths_once,
        "pooled-branch": take_out_pooled_branch,
        "shortcuts": move_shortcuts,
        "kernels": move_kernels,
        "kernels-twofold": move_twofold_kernels,
        "upsampling": multiply_to_upsample,
        "duplicates": drop_duplicates,
        "optimizer": optimize,
    }
)
"""In the order in which they are applied; each sees what the ones before it left."""

DEFAULT = tuple(FUSIONS)

FOR_INT8 = tuple(name for name in FUSIONS if name != "kernels-twofold")
"""What pays before quantising; see ``fusions.kernels``."""


@dataclass(frozen=True)
class Fusion:
    """What one rewrite did to a graph.

    Attributes:
        name: Its name in ``FUSIONS``.
        changed: Nodes that it replaced.
        refused: Nodes that it left, and why.
        macs_before: Multiply-accumulates for an image before it; a MAC is two FLOP.
        macs_after: The same after it.
    """

    name: str
    changed: tuple[str, ...]
    refused: tuple[Refusal, ...]
    macs_before: int
    macs_after: int

    def to_dict(self) -> dict[str, Any]:
        """Return it for a JSON file."""
        return asdict(self)


def fuse(
    proto: onnx.ModelProto, names: Sequence[str] = DEFAULT
) -> tuple[onnx.ModelProto, list[Fusion]]:
    """Return a graph with the same answers that costs less, and a report.

    Inputs, outputs, their names and the metadata stay as they are; so do the weights' names, apart
    from an ending where one was cut or scaled.

    Args:
        proto: An FP32 export; it is not changed.
        names: Rewrites to apply, of ``FUSIONS``, in the order given there.

    Raises:
        ExportError: If a name is unknown, or the graph was rewritten before.
    """
    check_names(names)
    fused = onnx.ModelProto.FromString(proto.SerializeToString())
    before = count_macs(fused)
    report = []
    for name in (name for name in FUSIONS if name in names):
        outcome = FUSIONS[name](Graph(fused))
        after = count_macs(fused)
        report.append(Fusion(name, outcome.changed, outcome.refused, before, after))
        before = after
    _describe_shapes(fused)
    _check_contract(proto, fused)
    return fused, report


def check_names(names: Sequence[str]) -> None:
    """Refuse a name that is no rewrite's.

    Raises:
        ExportError: With those there are.
    """
    if unknown := sorted(set(names) - set(FUSIONS)):
        raise ExportError(f"fusion {unknown[0]!r}: expected one of {', '.join(FUSIONS)}.")


def _describe_shapes(fused: onnx.ModelProto) -> None:
    """Put the shapes of the new tensors into the file; quantisers ask for them."""
    inferred = infer_shapes(fused)
    del fused.graph.value_info[:]
    fused.graph.value_info.extend(inferred.value_info)


def _check_contract(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Refuse a graph whose interface is another.

    Raises:
        ExportError: If inputs, outputs or metadata were touched.
    """
    onnx.checker.check_model(after)
    for what in ("input", "output"):
        if list(getattr(before.graph, what)) != list(getattr(after.graph, what)):
            raise ExportError(f"fusion changed the graph's {what}s. Export without fusions.")
    if list(before.metadata_props) != list(after.metadata_props):
        raise ExportError("fusion changed the graph's metadata. Export without fusions.")
