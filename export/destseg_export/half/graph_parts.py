"""Which part of DeSTSeg each node of an exported graph belongs to, read from the graph itself.

Precision is chosen part by part. The exporter's scopes do not help (the teacher's nodes have none,
because it runs under ``no_grad``), so a node's part follows from its operator and from the parts it
reads::

    pixels ─► stem ─► trunk ─► norm ─► product ─► trunk ─► logit ─► sigmoid ─► map ─► score
              (teacher, student)                (segmentation) ◄─► pool

A graph with an operator at an unexpected place, or with other counts than the architecture's, is
refused: guessing would leave a node at the wrong precision without a word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from destseg_deploy.errors import ExportError
from destseg_export.graph.edit import feeds

PARTS = ("pixels", "stem", "trunk", "pool", "norm", "product", "logit", "sigmoid", "map", "score")
"""In the order in which a node that reads several of them belongs to the last."""

SIZE = "size"
"""Arithmetic on shapes, in int64: no part of the network."""

_BLENDING = ("Reshape", "Squeeze", "Unsqueeze", "Gather", "Slice", "Mul", "Add", "Concat", "Where")
"""Operators that put the maps of tiles together and cut a region out, or do nothing."""

_FOLLOWS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "pixels": {
        "pixels": ("Transpose", "MatMul", "Add", "Floor", "Div", "Mul", "Sub", "Slice", "Concat"),
        "stem": ("Conv",),
    },
    "stem": {"stem": ("Relu", "MaxPool"), "trunk": ("Conv",)},
    "trunk": {
        "trunk": ("Conv", "Relu", "Add", "MaxPool", "Concat", "Resize"),
        "pool": ("ReduceMean",),
        "norm": ("ReduceL2",),
    },
    "pool": {"trunk": ("Conv",)},
    "norm": {"norm": ("Add", "Div"), "product": ("Neg", "Mul")},
    "product": {"product": ("Mul", "Resize", "Concat"), "trunk": ("Conv",)},
    "logit": {"sigmoid": ("Sigmoid",)},
    "sigmoid": {"map": ("Resize", *_BLENDING)},
    "map": {"map": ("Resize", *_BLENDING), "score": ("TopK", "ReduceMean")},
    "score": {"score": ("Reshape", "TopK", "ReduceMean", "Squeeze")},
}
"""Part that is read -> part that reads it -> its operators there."""

_COUNTS = {
    ("stem", "Conv"): 2,
    ("trunk", "Conv"): 63,
    ("logit", "Conv"): 1,
    ("norm", "ReduceL2"): 6,
    ("norm", "Div"): 6,
    ("product", "Mul"): 3,
    ("pool", "ReduceMean"): 1,
    ("sigmoid", "Sigmoid"): 1,
    ("score", "TopK"): 1,
}
"""What DeSTSeg has, once for each group of tiles that the network takes: 15 convolutions of the
teacher, 39 of the student, 12 of the segmentation net, the first of the two encoders being their
stems and the last of all giving the logit; three levels of features from each of two networks."""


def split_into_parts(graph: ir.Graph) -> list[str]:
    """Return the part of each node, in the order of the graph's nodes.

    Args:
        graph: An export of ``InferenceGraph`` without BatchNorm, sorted; types do not matter.

    Returns:
        One of ``PARTS``, or ``SIZE``, for each node.

    Raises:
        ExportError: If an operator stands where the architecture has none, or counts differ.
    """
    part_of: dict[ir.Value | None, str] = dict.fromkeys(graph.inputs, "pixels")
    parts = []
    for node in graph:
        part = _part(node, [part_of[value] for value in node.inputs if value in part_of])
        # The last convolution is like those before it; what tells it apart is its reader.
        if part == "trunk" and feeds(node.outputs[0], "Sigmoid"):
            part = "logit"
        if part == "map" and node.op_type == "Reshape" and feeds(node.outputs[0], "TopK"):
            part = "score"
        part_of.update(dict.fromkeys(node.outputs, part))
        parts.append(part)
    _check_counts(graph, parts)
    return parts


def _part(node: ir.Node, read: Sequence[str]) -> str:
    """Return the part of a node from the parts of its computed inputs."""
    known = [part for part in read if part != SIZE]
    if node.op_type == "Shape" or not known:
        return SIZE
    last = max(known, key=PARTS.index)
    if node.op_type == "Cast":  # moves a tensor between types, not between parts
        return last
    for part, operators in _FOLLOWS[last].items():
        if node.op_type in operators:
            return part
    raise ExportError(
        f"{node.name}: no {node.op_type} is expected after {last!r}. The exporter wrote this graph "
        "otherwise than it was written before; use the versions of constraints.txt, or export in "
        "fp32."
    )


def _check_counts(graph: ir.Graph, parts: Sequence[str]) -> None:
    found = Counter((part, n.op_type) for part, n in zip(parts, graph, strict=True))
    stems = found["stem", "Conv"]
    networks = max(1, stems // _COUNTS["stem", "Conv"])
    for (part, operator), once in _COUNTS.items():
        count = once if part == "score" else once * networks
        if found[part, operator] != count:
            raise ExportError(
                f"the graph has {found[part, operator]} {operator} in {part!r}, expected {count}. "
                "Pass a graph that destseg-export wrote in fp32, with the versions of "
                "constraints.txt."
            )
